# SPDX-License-Identifier: Apache-2.0
"""Many requests in one Airflow task: read, submitted a few at a time, each paid for once, mirrored as they finish."""
