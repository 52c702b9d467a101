# SPDX-License-Identifier: Apache-2.0
"""A throw-away Airflow with a stand-in API and an S3 in memory, to run DAGs without an account.

`python -m airflow_provider_gptimg.sandbox` runs an example DAG from the prompt to the objects in S3. Its parts can be
had one by one, for tests.
"""

from __future__ import annotations

from airflow_provider_gptimg.sandbox.rest import AirflowApi, DagRun
from airflow_provider_gptimg.sandbox.s3 import S3Server
from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

__all__ = ["AirflowApi", "DagRun", "S3Server", "StandaloneAirflow"]
