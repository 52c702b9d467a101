# SPDX-License-Identifier: Apache-2.0
"""A catalogue in one task: many pictures, each paid for once, mirrored as they finish and listed in a manifest."""

from __future__ import annotations

# [START howto_dag_gptimg_batch]
from airflow.sdk import DAG, Param, task

PRODUCTS = ["A teapot", "A stool", "A lantern", "A kite", "A clock", "A canoe"]
VIEWS = ["from the front", "in use"]

with DAG(
    "example_gptimg_batch",
    schedule=None,
    params={"bucket": Param("gptimg-demo", type="string")},
    tags=["example", "gptimg"],
    doc_md=__doc__,
):

    @task.gptimg_batch(
        s3_key="s3://{{ params.bucket }}/catalogue/{task_id}-{index}{ext}",
        manifest_key="catalogue/{{ run_id | replace(':', '') }}.jsonl",
        max_in_flight=8,
        max_credits=50,  # More would be refused before anything is sent.
        deferrable=True,
        retries=2,  # A retry does only what is missing.
    )
    def catalogue() -> list[dict[str, str]]:
        return [
            {"prompt": f"{product}, {view}, product photo", "aspect_ratio": "4:3"}
            for product in PRODUCTS
            for view in VIEWS
        ]

    @task
    def report(summary: dict[str, int | str]) -> str:
        return f"{summary['images']} images, {summary['credits']} credits: {summary['manifest']}"

    report(catalogue())
# [END howto_dag_gptimg_batch]
