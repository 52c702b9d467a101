# SPDX-License-Identifier: Apache-2.0
"""A product shot of each photo that arrives: an asset event starts an image-to-image run.

The event names the photos, as `{"uris": ["s3://…"]}` in its `extra`. Whoever puts them into S3 emits it: a task with
this asset among its outlets (a mirror of this provider says the same of its images), a `POST /api/v2/assets/events`,
or a person with *Create Event* on the page of the asset. A run by hand takes the photo of the `photo` param.

The product shots are an asset too, and its event starts the DAG that announces them.
"""

from __future__ import annotations

from airflow.sdk import DAG, Asset, Param, task

from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

# [START howto_dag_gptimg_on_asset]
PHOTOS = Asset("gptimg_photos")
PRODUCT_SHOTS = Asset("gptimg_product_shots")

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
        # A run may stand for several events.
        uris = [uri for events in triggering_asset_events.values() for event in events for uri in event.extra["uris"]]
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
        outlets=[PRODUCT_SHOTS],
    )

with DAG(
    "example_gptimg_on_asset_announce",
    schedule=[PRODUCT_SHOTS],
    tags=["example", "gptimg"],
    doc_md="Says which product shots are new, for a message to the shop.",
):

    @task
    def message(triggering_asset_events) -> str:
        uris = [uri for events in triggering_asset_events.values() for event in events for uri in event.extra["uris"]]
        return "\n".join(["New product shots:", *uris])

    message()
# [END howto_dag_gptimg_on_asset]
