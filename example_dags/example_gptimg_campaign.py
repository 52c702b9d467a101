# SPDX-License-Identifier: Apache-2.0
"""The pictures of two campaigns: mapped prompts, and one wait, one manifest and one asset for each campaign.

The assets start a second DAG. It reads from their events which images are new, and publishes the list for a website.
"""

from __future__ import annotations

# [START howto_dag_gptimg_campaign]
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
            mapped = GptImgSubmitOperator.partial(task_id="submit", aspect_ratio="16:9")
            submit = mapped.expand(prompt=prompts)
            GptImgToS3Operator(
                task_id="mirror",
                gptimg_task_id=submit.output,
                deferrable=True,  # It waits for what is not finished.
                s3_bucket="{{ params.bucket }}",
                s3_key=f"campaigns/{campaign}/" + "{{ dag_run.run_after | ds }}/{task_id}-{index}{ext}",
                manifest_key=f"campaigns/{campaign}/manifests/" + "{{ run_id | replace(':', '') }}.jsonl",
                outlets=[PICTURES[campaign]],
            )

with DAG(
    "example_gptimg_campaign_publish",
    schedule=list(PICTURES.values()),  # When each campaign has new pictures.
    tags=["example", "gptimg"],
    doc_md="Publish which images of each campaign are the current ones.",
):

    @task(retries=2)
    def publish(triggering_asset_events) -> list[str]:
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook

        s3, written = S3Hook(), []
        for asset, events in triggering_asset_events.items():
            latest = events[-1].extra  # From the mirror: `uris`, `images` (their number), `manifest`.
            bucket, _ = S3Hook.parse_s3_url(latest["manifest"])
            key = f"campaigns/current/{asset.name}.json"
            s3.load_string(json.dumps(latest), key, bucket, replace=True)
            written.append(f"s3://{bucket}/{key}")
        return written

    publish()
# [END howto_dag_gptimg_campaign]
