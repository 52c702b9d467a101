# SPDX-License-Identifier: Apache-2.0
"""A product shot of each photo that arrives: an asset event starts an image-to-image run.

The event lists the photos in its `extra`, as `{"uris": ["s3://…"]}`. It can come from a task that has this asset among
its outlets (a mirror of this provider adds such an `extra`), from `POST /api/v2/assets/events`, or from a person who
clicks *Create Event* on the asset's page. A run that is started by hand uses the param `photo`.

The product shots are an asset too, and its event starts the DAG that announces them.
"""

from __future__ import annotations

# [START howto_dag_gptimg_on_asset]
from airflow.sdk import DAG, Asset, Param, task

from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

PHOTOS = Asset("gptimg_photos")
PRODUCT_SHOTS = Asset("gptimg_product_shots")


def event_uris(triggering_asset_events) -> list[str]:
    """Return the URIs of all events that started a run: several events may start one."""
    events = [event for events in triggering_asset_events.values() for event in events]
    return [uri for event in events for uri in event.extra["uris"]]


with DAG(
    "example_gptimg_on_asset",
    schedule=[PHOTOS],
    default_args={"retries": 2},  # A retry takes up what is paid for already.
    params={
        "photo": Param("references/chair.png", type="string"),
        "bucket": Param("gptimg-demo", type="string"),
    },
    tags=["example", "gptimg"],
    doc_md=__doc__,
):

    @task
    def photos(params, triggering_asset_events) -> list[str]:
        uris = event_uris(triggering_asset_events)
        return uris or [f"s3://{params['bucket']}/{params['photo']}"]

    @task.gptimg(deferrable=True, max_credits=2)
    def product_shot(photo: str) -> dict:
        return {
            "prompt": "This product on white, evenly lit, for a catalogue",
            "reference_images": [photo],
            "aspect_ratio": "1:1",
        }

    GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id=product_shot.expand(photo=photos()),
        s3_key="s3://{{ params.bucket }}/product-shots/{task_id}{ext}",
        deferrable=True,
        outlets=[PRODUCT_SHOTS],
    )

with DAG(
    "example_gptimg_on_asset_announce",
    schedule=[PRODUCT_SHOTS],
    tags=["example", "gptimg"],
    doc_md="Write a message that lists the new product shots.",
):

    @task
    def message(triggering_asset_events) -> str:
        uris = event_uris(triggering_asset_events)
        return "\n".join(["New product shots:", *uris])

    message()
# [END howto_dag_gptimg_on_asset]
