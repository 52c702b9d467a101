# SPDX-License-Identifier: Apache-2.0
"""The ways to bring images from an HTTP host into S3; as a script, one of them in a worker process of its own.

Prints seconds and the growth of peak memory as JSON. What a method imports is there before either is measured.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile

import boto3
import httpx
import requests
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.amazon.aws.transfers.http_to_s3 import HttpToS3Operator
from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

from airflow_provider_gptimg import waiting  # noqa: F401
from airflow_provider_gptimg.hooks import gptimg as hook  # noqa: F401
from airflow_provider_gptimg.mirroring import assembly, lineage  # noqa: F401
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
from benchmarks.mirroring_servers import BUCKET, images_of, s3_client


@dataclass(frozen=True)
class Job:
    """So many images of so many bytes, `concurrency` at a time where a method knows how."""

    images_url: str
    s3_url: str
    count: int
    size: int
    concurrency: int

    @property
    def paths(self) -> list[str]:
        return [f"{self.size}/{number}.png" for number in range(self.count)]

    @property
    def urls(self) -> list[str]:
        return [f"{self.images_url}/{path}" for path in self.paths]


def gptimg(job: Job) -> None:
    """Mirror finished tasks of four images each, as the wait before the transfer hands them on."""
    tasks = [
        {
            "task_id": f"task-{job.size}-{first}",
            "status": "completed",
            "images": images_of(job.images_url, job.size, first),
        }
        for first in range(0, job.count, 4)
    ]
    operator = GptImgToS3Operator(task_id="mirror", gptimg_task_id=tasks, s3_bucket=BUCKET, concurrency=job.concurrency)
    assert len(operator.execute({})) == job.count  # type: ignore[arg-type, typeddict-item]


def http_to_s3(job: Job) -> None:
    for number, path in enumerate(job.paths):
        operator = HttpToS3Operator(
            task_id=f"mirror-{number}", endpoint=path, http_conn_id="images", s3_bucket=BUCKET, s3_key=f"{number}.png"
        )
        operator.execute({})  # type: ignore[arg-type, typeddict-item]


def load_bytes(job: Job) -> None:
    s3 = S3Hook()
    with requests.Session() as session:
        for number, url in enumerate(job.urls):
            answer = session.get(url, timeout=30)
            answer.raise_for_status()
            s3.load_bytes(answer.content, f"{number}.png", BUCKET)


def spooled_put(job: Job) -> None:
    """The pattern that ours is built on: no checks, no look whether it is there, no retries of a download."""
    s3 = s3_client(job.s3_url)
    with httpx.Client(trust_env=False, timeout=30) as client:

        def copy(number: int) -> None:
            with SpooledTemporaryFile(max_size=1024 * 1024) as file:
                with client.stream("GET", job.urls[number]) as answer:
                    for chunk in answer.raise_for_status().iter_bytes():
                        file.write(chunk)
                file.seek(0)
                s3.put_object(Bucket=BUCKET, Key=f"{number}.png", Body=file, ContentType="image/png")

        _at_a_time(job, copy)


def streamed_upload(job: Job) -> None:
    """boto3's own managed transfer, fed by the answer as it comes."""
    s3 = s3_client(job.s3_url)
    managed = boto3.s3.transfer.TransferConfig(use_threads=False)
    with requests.Session() as session:

        def copy(number: int) -> None:
            with session.get(job.urls[number], stream=True, timeout=30) as answer:
                answer.raise_for_status()
                s3.upload_fileobj(answer.raw, BUCKET, f"{number}.png", Config=managed)

        _at_a_time(job, copy)


METHODS: dict[str, Callable[[Job], None]] = {
    function.__name__: function for function in (gptimg, http_to_s3, load_bytes, spooled_put, streamed_upload)
}


def _at_a_time(job: Job, copy: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(job.concurrency) as pool:
        list(pool.map(copy, range(job.count)))


def _memory(name: str) -> float:
    """Return a figure of this process's memory, in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def main() -> None:
    method, job = METHODS[sys.argv[1]], Job(**json.loads(sys.argv[2]))
    logging.disable(logging.WARNING)
    # A worker has loaded Airflow's plugins and its client for connections before it runs a task.
    get_hook_lineage_collector()
    S3Hook.get_connection("images")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # from here on counts the peak
    memory, started = _memory("VmRSS"), time.perf_counter()
    cpu = time.process_time()
    method(job)
    seconds = time.perf_counter() - started
    growth = _memory("VmHWM") - memory
    print(json.dumps({"seconds": seconds, "growth": growth, "cpu": time.process_time() - cpu}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
