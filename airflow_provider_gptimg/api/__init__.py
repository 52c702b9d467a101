# SPDX-License-Identifier: Apache-2.0
"""The wire format of the API: pure, without I/O, clock or Airflow."""
