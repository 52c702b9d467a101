# SPDX-License-Identifier: Apache-2.0
"""Runs to look at: pictures in S3, pictures at the vendor, many pictures, and none."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

BUCKET = "gallery"
S3 = {"aws_conn_id": "gallery_s3"}

with DAG(
    "gallery_private", schedule=None, default_args=S3, params={"prompt": Param("A private picture", type="string")}
):
    submit = GptImgSubmitOperator(task_id="submit", prompt="{{ params.prompt }}", n=2, aspect_ratio="3:2")
    wait = GptImgTaskSensor(task_id="wait", gptimg_task_id=submit.output, deferrable=True)
    GptImgToS3Operator(task_id="mirror", gptimg_task_id=wait.output, s3_bucket=BUCKET)

with DAG("gallery_hosted", schedule=None, params={"prompts": Param(["One", "Two"], type="array")}):
    GptImgGenerateOperator.partial(task_id="generate", deferrable=True).expand_kwargs(
        [{"prompt": "{{ params.prompts[0] }}"}, {"prompt": "{{ params.prompts[1] }}"}]
    )

with DAG(
    "gallery_many",
    schedule=None,
    default_args=S3,
    params={"image_tasks": Param([], type="array")},
    render_template_as_native_obj=True,
):
    GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id="{{ params.image_tasks }}",
        s3_bucket=BUCKET,
        s3_key="many/{task_id}/{index}{ext}",
    )

with DAG(
    "gallery_batch",
    schedule=None,
    default_args=S3,
    params={"prompts": Param([], type="array")},
    render_template_as_native_obj=True,
):
    GptImgBatchToS3Operator(
        task_id="batch", requests="{{ params.prompts }}", s3_bucket=BUCKET, max_in_flight=2, deferrable=True
    )

# Whose transfer mirrors nothing, and for which somebody writes an XCom.
for name, connection in (("gallery_own", "gallery_s3"), ("gallery_slow", "gallery_slow_s3")):
    with DAG(name, schedule=None):
        GptImgToS3Operator(
            task_id="mirror",
            gptimg_task_id="gpt-image-2-unknown",
            timeout=0.1,
            s3_bucket=BUCKET,
            aws_conn_id=connection,
        )

with DAG("gallery_empty", schedule=None):
    pass

with DAG("gallery_imageless", schedule=None):
    pass
