# SPDX-License-Identifier: Apache-2.0
"""Image to image: a new picture made from two reference pictures in S3."""

from __future__ import annotations

# [START howto_dag_gptimg_edit]
from airflow.sdk import DAG, Param

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG(
    "example_gptimg_edit",
    schedule=None,
    default_args={"retries": 2},  # A retry takes up what is paid for already.
    params={
        "prompt": Param("The chair of the first picture in the room of the second", type="string"),
        "bucket": Param("gptimg-demo", type="string"),
    },
    tags=["example", "gptimg"],
    doc_md=__doc__,
):
    edit = GptImgGenerateOperator(
        task_id="edit",
        prompt="{{ params.prompt }}",
        reference_images=[
            "s3://{{ params.bucket }}/references/chair.png",
            "s3://{{ params.bucket }}/references/room.png",
        ],
        deferrable=True,
    )
    GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id=edit.output,
        s3_key="s3://{{ params.bucket }}/edits/{task_id}/{index}{ext}",
    )
# [END howto_dag_gptimg_edit]
