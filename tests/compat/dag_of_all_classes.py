# SPDX-License-Identifier: Apache-2.0
"""Every class of the provider once, in names that all supported versions of Airflow have."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
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

    @task.gptimg
    def picture():
        return {"prompt": "{{ kept }}", "n": 2}

    picture()
