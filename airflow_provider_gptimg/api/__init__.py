# SPDX-License-Identifier: Apache-2.0
"""What is said on the wire: pure, without I/O, clock or Airflow."""
