# SPDX-License-Identifier: Apache-2.0
"""Every class and decorator of the provider once; `test_compat.py` holds that none is missing."""

from __future__ import annotations

from datetime import datetime

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG("gptimg_compat", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
    submit = GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["a", "b"])
    wait = GptImgTaskSensor(
        task_id="wait",
        gptimg_task_id=submit.output,
        deferrable=True,
        start_from_trigger=True,
        end_from_trigger=True,
    )
    GptImgToS3Operator(task_id="mirror", gptimg_task_id=wait.output, s3_bucket="images")
    GptImgGenerateOperator(task_id="generate", prompt="c", deferrable=True)
    GptImgBatchToS3Operator(
        task_id="batch",
        requests=["d", {"prompt": "e", "n": 2}],
        s3_bucket="images",
        s3_key="batch/{task_id}/{index}{ext}",
    )

    @task.gptimg
    def picture():
        return {"prompt": "{{ kept }}", "n": 2}

    @task.gptimg_batch(s3_bucket="images", s3_key="posters/{task_id}/{index}{ext}", deferrable=True)
    def posters():
        return ["f"]

    @task.gptimg_batch(s3_bucket="images", s3_key="cards/{task_id}/{index}{ext}")
    def cards():
        return ["g"]

    picture()
    posters()
    cards()
