# SPDX-License-Identifier: Apache-2.0
"""What `benchmarks/batch.py` runs: batches, and the same images by mapped tasks and by a loop in one task."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


def prompts(number: int) -> list[str]:
    return [f"Picture {index}" for index in range(number)]


MANY = prompts(int(os.environ.get("BENCHMARK_MANY", "1000")))
SOME = prompts(int(os.environ.get("BENCHMARK_SOME", "200")))
MAPPED = prompts(int(os.environ.get("BENCHMARK_MAPPED", "200")))
KEY = "{task_id}-{index}{ext}"
RETRIES = {"retries": 8, "retry_delay": timedelta(seconds=1)}


def batch(name: str, requests: list[str], **arguments: Any) -> None:
    """Make a DAG of one batch, with a connection and a folder of its own."""
    with DAG(name, schedule=None, default_args=RETRIES):
        GptImgBatchToS3Operator(
            task_id="images",
            gptimg_conn_id=name,
            requests=requests,
            s3_key=f"s3://images/{name}/{KEY}",
            manifest_key=f"{name}.jsonl",
            **arguments,
        )


batch("plain", MANY, max_in_flight=100)
batch("killed_held", MANY, max_in_flight=100)
batch("killed_deferred", MANY, max_in_flight=100, deferrable=True)
batch("faulty", MANY, max_in_flight=100, deferrable=True)
batch("poor", MANY, max_in_flight=100, deferrable=True)
batch("pace", MANY, max_in_flight=len(MANY), deferrable=True)
batch("first", SOME[:1], deferrable=True)
batch("held", SOME)
batch("deferred", SOME, deferrable=True)
batch("wide", SOME, max_in_flight=len(SOME), deferrable=True)

with DAG("mapped", schedule=None, default_args=RETRIES):
    generate = GptImgGenerateOperator.partial(task_id="generate", gptimg_conn_id="mapped", deferrable=True)
    mirror = GptImgToS3Operator.partial(task_id="images", gptimg_conn_id="mapped", s3_key=f"s3://images/mapped/{KEY}")
    mirror.expand(gptimg_task_id=generate.expand(prompt=MAPPED).output)

with DAG("loop", schedule=None):

    @task
    def images() -> int:
        """Submit, poll and upload in a loop, as one writes it by hand: if it dies, all is paid for again."""
        import time

        import httpx
        from airflow.providers.amazon.aws.hooks.s3 import S3Hook
        from airflow.sdk import Connection

        conn = Connection.get("loop")
        s3 = S3Hook()
        with httpx.Client(base_url=conn.host, headers={"Authorization": f"Bearer {conn.password}"}) as api:
            submits = [api.post("/api/v1/images/generate", json={"prompt": prompt}) for prompt in SOME]
            waiting = [submit.json()["data"]["task_id"] for submit in submits]
            while waiting:
                time.sleep(conn.extra_dejson["poll_interval"])
                for task_id in list(waiting):
                    polled = api.get(f"/api/v1/images/task/{task_id}").json()["data"]
                    if polled["status"] == "completed":
                        waiting.remove(task_id)
                        for index, image in enumerate(polled["images"]):
                            s3.load_bytes(api.get(image["url"]).content, f"loop/{task_id}-{index}.png", "images")
        return len(SOME)

    images()
