# SPDX-License-Identifier: Apache-2.0
"""A batch whose process is killed at random moments: nothing is paid twice silently, and everything arrives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_instance import FileStore, prompts

from airflow_provider_gptimg.batch.entries import Entry
from airflow_provider_gptimg.batch.ledger import read_entries
from airflow_provider_gptimg.batch.sending import CHUNK
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox.rest import until

IMAGES = 48


class Worker:
    """Attempts at a batch in processes of their own."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self.store = FileStore(folder)
        self.attempts = 0

    def start(self, max_tries: int = 0, **arguments: Any) -> int:
        """Start the next attempt; return its process id."""
        self.attempts += 1
        order = {
            "store": str(self.store.folder),
            "number": self.attempts,
            "max_tries": max_tries,
            "env": {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW_CONN_")},
            "batch": {"requests": prompts(IMAGES), "max_in_flight": 16, **arguments},
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def kill(self, pid: int) -> dict[str, Any]:
        """Kill the attempt, and return how it ended."""
        os.kill(pid, signal.SIGKILL)
        return self.ended()

    def ended(self) -> dict[str, Any]:
        """Return how the attempt ended."""
        ending: dict[str, Any] = json.loads(self._answer())
        return ending

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    @property
    def entries(self) -> list[Entry]:
        """What is recorded of each request."""
        return read_entries(lambda name: self.store.get(f"gptimg:{name}"), self.attempts)

    @property
    def unknown(self) -> int:
        """Submits of which no outcome is recorded."""
        return sum(sent.is_unknown for entry in self.entries for sent in entry.submissions)


@pytest.fixture
def api() -> Iterator[Emulator]:
    with Emulator(speed=150, seed=3, credits=10_000) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("batch_worker.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.fixture
def worker(
    process: subprocess.Popen[str], api: Emulator, s3: Any, tmp_path: Path, connect: Callable[..., None]
) -> Worker:
    connect(api, poll_interval=0.1, first_poll_after=0.2, timeout=10)
    return Worker(process, tmp_path / "store")


def kill_at(worker: Worker, pid: int, api: Emulator, calls: int) -> dict[str, Any]:
    """Kill the attempt as soon as the API has seen so many more calls, and return how it ended."""
    goal = len(api.calls) + calls
    while len(api.calls) < goal and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        time.sleep(0.0005)
    return worker.kill(pid)


@pytest.mark.parametrize(
    ("seed", "deferrable"), [(1, False), pytest.param(2, False, marks=pytest.mark.system), (3, True)]
)
def test_kills_at_random_moments(
    worker: Worker, api: Emulator, stored: Callable[[], dict[str, bytes]], seed: int, deferrable: bool
) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        before = worker.unknown
        pid = worker.start(deferrable=deferrable)
        assert kill_at(worker, pid, api, chance.randint(1, 60)) == {"killed": True}
        assert worker.unknown - before <= CHUNK

    worker.start(deferrable=deferrable)
    ending = worker.ended()

    bought = Counter(task.prompt for task in api.tasks)
    assert max(bought.values()) == 1, "nothing is repeated silently"
    lost = worker.unknown
    if lost:
        assert ending["error"] == "GptImgSubmissionUnknownError"
        assert f"{lost} have an unknown outcome" in ending["message"]
        worker.start(max_tries=1, on_unknown_submission="resubmit", deferrable=deferrable)
        ending = worker.ended()
    assert ending["summary"]["mirrored"] == IMAGES
    assert len(api.tasks) <= IMAGES + lost
    assert sum(entry.credits for entry in api.ledger) == 2 * len(api.tasks)
    delivered = {
        entry.objects["objects"][0]["key"]: api.task(entry.task_id).images[0]
        for entry in worker.entries
        if entry.objects
    }
    assert stored() == delivered
    assert len(delivered) == IMAGES


def test_a_kill_in_the_pause_after_a_refusal_leaves_nothing_unknown(worker: Worker, api: Emulator) -> None:
    api.fault("submit", 429, times=CHUNK, retry_after=30)
    pid = worker.start()
    until(lambda: len(api.calls) >= CHUNK and not worker.unknown, 60, "the refusals to be recorded", pause=0.01)
    assert worker.kill(pid) == {"killed": True}

    worker.start()

    assert worker.ended()["summary"]["mirrored"] == IMAGES
    assert len(api.tasks) == IMAGES
