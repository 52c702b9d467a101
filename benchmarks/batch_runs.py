# SPDX-License-Identifier: Apache-2.0
"""One run on a running Airflow, against an API of its own: what was paid, what arrived, and what it took."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import DagRun, StandaloneAirflow
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES

__all__ = ["BUCKET", "TASK", "Scene", "cpu_seconds", "kill_at_random", "memory_of"]

BUCKET = "images"
TASK = "images"
_NOT_THERE = (psutil.Error, LookupError)


@dataclass
class Scene:
    """A DAG, its API, and the bucket.

    :param name: Of the DAG, of its connection and of its folder in the bucket.
    """

    name: str
    api: Emulator
    airflow: StandaloneAirflow
    s3: Any

    def connect(self, **extra: Any) -> None:
        """Make or change its Airflow connection.

        :param extra: Added to the connection's.
        """
        fields = json.loads(self.api.connection_json)
        body = fields | {"connection_id": self.name, "extra": json.dumps(fields["extra"] | extra)}
        if self.airflow.api.call("GET", f"/connections/{self.name}"):
            self.airflow.api.call("PATCH", f"/connections/{self.name}", body)
        else:
            self.airflow.api.call("POST", "/connections", body)

    @property
    def accepted(self) -> int:
        """Requests that the API has accepted so far."""
        return len(self.api.tasks)

    @property
    def charged(self) -> int:
        """Credits that were charged and not refunded."""
        return sum(entry.credits if entry.kind == "charge" else -entry.credits for entry in self.api.ledger)

    @property
    def alive(self) -> int:
        """Accepted requests that did not fail."""
        return sum(task.status != "failed" for task in self.api.tasks)

    @property
    def bought_again(self) -> int:
        """Accepted requests that did not fail, beyond the first of each prompt."""
        bought = Counter(task.prompt for task in self.api.tasks if task.status != "failed")
        return sum(bought.values()) - len(bought)

    def exact(self) -> tuple[int, int]:
        """Return how many objects are in S3 that are exactly an image of the API, and how many that are not."""
        made = {
            f"{self.name}/{task.task_id}-{index}.png": hashlib.sha256(image).digest()
            for task in self.api.tasks
            for index, image in enumerate(task.images)
        }
        exact = wrong = 0
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.name}/"):
            for found in page.get("Contents", ()):
                body = self.s3.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read()
                if hashlib.sha256(body).digest() == made.get(found["Key"]):
                    exact += 1
                else:
                    wrong += 1
        return exact, wrong


def kill_at_random(scene: Scene, run: DagRun, images: int, chance: random.Random, deferrable: bool) -> Counter[str]:
    """Kill the task's process three times at random moments.

    :param images: That the run is to make.
    :param deferrable: Kill also the triggerer, once the task has deferred, each time before the task's process.
    :returns: How often what was killed.
    """
    kills: Counter[str] = Counter()
    for moment in sorted(chance.sample(range(images // 10, images * 9 // 10), 3)):
        _until(run, lambda moment=moment: scene.accepted >= moment)
        if deferrable and _until(run, lambda: run.task_instance(TASK)["state"] == "deferred"):
            time.sleep(chance.uniform(0.0, 1.0))
            scene.airflow.kill("triggerer")
            scene.airflow.launch("triggerer")
            kills["triggerer"] += 1
        _until(run, lambda: run.task_instance(TASK)["state"] == "running")
        time.sleep(chance.uniform(0.0, 1.0))
        kills["task"] += _until(run, partial(_kill_task, scene, run))
    return kills


def _until(run: DagRun, condition: Callable[[], bool]) -> bool:
    """Wait until that is true, and return whether it came true before the run ended."""
    while not (met := condition()) and run.state not in FINAL_RUN_STATES:
        time.sleep(0.05)
    return met


def _kill_task(scene: Scene, run: DagRun) -> bool:
    with suppress(*_NOT_THERE):
        process, _ = scene.airflow.task_processes(run, TASK)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.kill()
            return True
    return False


@contextmanager
def memory_of(scene: Scene, run: DagRun) -> Iterator[list[float]]:
    """Take the memory of the task's process in MB each half second, once it has accepted requests."""
    samples: list[float] = []
    over = threading.Event()

    def sample() -> None:
        process = None
        while not over.wait(0.5):
            with suppress(*_NOT_THERE):
                if process is None or not process.is_running():
                    process, _ = scene.airflow.task_processes(run, TASK)
                memory = process.memory_info().rss / 1e6
                if scene.accepted and memory:
                    samples.append(memory)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def cpu_seconds(airflow: StandaloneAirflow) -> float:
    """Return the CPU seconds that all processes of an Airflow have used so far, those that have ended too."""
    ours = {process.pid for process in airflow.processes()}
    seconds = 0.0
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            # One that has ended, and that its parent has not noticed, has no environment to be told by.
            if process.pid in ours or process.ppid() in ours:
                seconds += sum(process.cpu_times()[:4])  # its own and its ended children's, user and system
    return seconds
