# SPDX-License-Identifier: Apache-2.0
"""Each week's pictures for some campaigns: mapped prompts, one wait for all of them, one asset a campaign."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Asset, Param, TaskGroup

from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

CAMPAIGNS = {
    "harvest": ["A farmers' market in October, gouache", "Apples on a doorstep, gouache"],
    "first_snow": ["A village under the first snow, linocut", "Skates by the door, linocut"],
}

with DAG(
    "example_gptimg_campaign",
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 2},  # A retry takes up what is paid for already.
    params={"bucket": Param("gptimg-demo", type="string")},
    tags=["example", "gptimg"],
    doc_md=__doc__,
):
    for campaign, prompts in CAMPAIGNS.items():
        with TaskGroup(campaign):
            # [START howto_operator_gptimg_submit_mapped]
            submit = GptImgSubmitOperator.partial(task_id="submit", aspect_ratio="16:9").expand(prompt=prompts)
            # [END howto_operator_gptimg_submit_mapped]

            # [START howto_transfer_gptimg_to_s3_asset]
            GptImgToS3Operator(
                task_id="mirror",
                gptimg_task_id=submit.output,
                deferrable=True,  # It waits for what is not finished.
                s3_bucket="{{ params.bucket }}",
                s3_key="campaigns/" + campaign + "/{{ dag_run.run_after | ds }}/{task_id}-{index}{ext}",
                outlets=[Asset(f"gptimg_campaign_{campaign}")],
            )
            # [END howto_transfer_gptimg_to_s3_asset]
