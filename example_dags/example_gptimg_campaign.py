# SPDX-License-Identifier: Apache-2.0
"""The pictures of some campaigns: mapped prompts, one wait, a manifest and an asset for each campaign.

A second DAG is started by those assets: the event of each says which images are new, and it tells the website.
"""

from __future__ import annotations

import json

from airflow.sdk import DAG, Asset, Param, TaskGroup, task

from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

CAMPAIGNS = {
    "harvest": ["A farmers' market in October, gouache", "Apples on a doorstep, gouache"],
    "first_snow": ["A village under the first snow, linocut", "Skates by the door, linocut"],
}
PICTURES = {campaign: Asset(f"gptimg_campaign_{campaign}") for campaign in CAMPAIGNS}

with DAG(
    "example_gptimg_campaign",
    schedule=None,  # Or "@weekly": each run has images of its own.
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
                manifest_key="campaigns/" + campaign + "/manifests/{{ run_id | replace(':', '') }}.jsonl",
                outlets=[PICTURES[campaign]],
            )
            # [END howto_transfer_gptimg_to_s3_asset]

# [START howto_dag_gptimg_campaign_publish]
with DAG(
    "example_gptimg_campaign_publish",
    schedule=list(PICTURES.values()),  # Once there are new pictures of each campaign.
    tags=["example", "gptimg"],
    doc_md="Tells the website which images of each campaign are the current ones.",
):

    @task(retries=2)
    def publish(triggering_asset_events) -> list[str]:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        s3, written = S3Hook(), []
        for asset, events in triggering_asset_events.items():
            latest = events[-1].extra  # What the mirror says: `uris`, their number as `images`, and the `manifest`.
            bucket, _ = S3Hook.parse_s3_url(latest["manifest"])
            key = f"campaigns/current/{asset.name}.json"
            s3.load_string(json.dumps(latest), key, bucket, replace=True)
            written.append(f"s3://{bucket}/{key}")
        return written

    publish()
# [END howto_dag_gptimg_campaign_publish]
