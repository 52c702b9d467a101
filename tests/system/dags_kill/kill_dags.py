# SPDX-License-Identifier: Apache-2.0
"""DAGs whose processes are killed: one task of each kind, which the run's conf tells what to ask whom for."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator

REQUEST = {"prompt": "{{ dag_run.conf['prompt'] }}", "gptimg_conn_id": "{{ dag_run.conf['connection'] }}"}
AGAIN = {"retries": 2, "retry_delay": timedelta(seconds=1)}

with DAG("kill_submit", schedule=None):
    GptImgSubmitOperator(task_id="images", **REQUEST, **AGAIN)

with DAG("kill_generate", schedule=None):
    GptImgGenerateOperator(task_id="images", deferrable=False, **REQUEST, **AGAIN)

with DAG("kill_generate_deferrable", schedule=None):
    GptImgGenerateOperator(task_id="images", deferrable=True, **REQUEST, **AGAIN)

with DAG("kill_generate_once", schedule=None):
    GptImgGenerateOperator(task_id="images", deferrable=False, **REQUEST, retries=0)
