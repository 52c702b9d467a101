# SPDX-License-Identifier: Apache-2.0
"""From a prompt to objects in S3: submit, wait without a worker, mirror."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG(
    "example_gptimg_to_s3",
    schedule=None,
    params={
        "prompt": Param("A lighthouse at dawn, in watercolour", type="string"),
        "bucket": Param("gptimg-demo", type="string"),
    },
    tags=["example", "gptimg"],
    doc_md=__doc__,
):
    # [START howto_operator_gptimg_submit]
    submit = GptImgSubmitOperator(
        task_id="submit",
        prompt="{{ params.prompt }}",
        aspect_ratio="3:2",
        n=2,
    )
    # [END howto_operator_gptimg_submit]

    # [START howto_sensor_gptimg_task]
    wait = GptImgTaskSensor(task_id="wait", gptimg_task_id=submit.output, deferrable=True)
    # [END howto_sensor_gptimg_task]

    # [START howto_transfer_gptimg_to_s3]
    GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id=wait.output,
        s3_bucket="{{ params.bucket }}",
        s3_key="gptimg/{task_id}/{index}{ext}",
    )
    # [END howto_transfer_gptimg_to_s3]
