# SPDX-License-Identifier: Apache-2.0
"""One task each, which the scenes of several attempts freeze, mark failed and clear. Their conf says what to submit."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator

REQUEST = {"prompt": "{{ dag_run.conf['prompt'] }}", "gptimg_conn_id": "{{ dag_run.conf['connection'] }}"}
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=2)}

for mode in ("fail", "resubmit"):
    with DAG(f"submit_{mode}", schedule=None, default_args=RETRIES):
        GptImgSubmitOperator(task_id="images", on_unknown_submission=mode, **REQUEST)
    with DAG(f"generate_{mode}", schedule=None, default_args=RETRIES):
        GptImgGenerateOperator(task_id="images", on_unknown_submission=mode, deferrable=True, **REQUEST)
    with DAG(f"batch_{mode}", schedule=None, default_args=RETRIES, render_template_as_native_obj=True):
        GptImgBatchToS3Operator(
            task_id="images",
            on_unknown_submission=mode,
            requests="{{ dag_run.conf['requests'] }}",
            gptimg_conn_id="{{ dag_run.conf['connection'] }}",
            s3_bucket="images",
            s3_key="attempts/{{ run_id }}/{task_id}-{index}{ext}",
            deferrable=True,
            max_in_flight=300,
        )
