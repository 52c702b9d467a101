# SPDX-License-Identifier: Apache-2.0
"""From a prompt to objects in S3: one task submits, the next one waits without a worker and mirrors."""

from __future__ import annotations

# [START howto_dag_gptimg_to_s3]
from airflow.sdk import DAG, Param

from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG(
    "example_gptimg_to_s3",
    schedule=None,
    default_args={"retries": 2},  # A retry takes up what is paid for already.
    params={
        "prompt": Param("A lighthouse at dawn, in watercolour", type="string"),
        "bucket": Param("gptimg-demo", type="string"),
    },
    tags=["example", "gptimg"],
    doc_md=__doc__,
):
    submit = GptImgSubmitOperator(
        task_id="submit",
        prompt="{{ params.prompt }}",
        aspect_ratio="3:2",
        n=2,
    )
    GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id=submit.output,
        s3_bucket="{{ params.bucket }}",
        s3_key="gptimg/{task_id}/{index}{ext}",
        deferrable=True,  # It waits in the triggerer, not on a worker.
    )
# [END howto_dag_gptimg_to_s3]
