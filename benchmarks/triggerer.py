# SPDX-License-Identifier: Apache-2.0
"""A process that runs the waits of one contestant as Airflow's triggerer does, and prints what they cost it.

It is the triggerer's own runner, fed with the workloads that its supervisor would send. What is measured is read from
a thread, since a trigger that blocks the event loop would delay a measurement made on it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from airflow.executors import workloads
from airflow.jobs.triggerer_job_runner import TriggerRunner
from airflow.models.trigger import Trigger
from airflow.sdk.log import configure_logging

from benchmarks.waits import CONTESTANTS, Contestant

_BEAT = 0.005


class Heart:
    """Beats on the event loop, and remembers the longest time that the loop let it wait."""

    def __init__(self) -> None:
        self._beat_at = time.monotonic()
        self._longest = 0.0

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            now = time.monotonic()
            self._longest = max(self._longest, now - self._beat_at - _BEAT)
            self._beat_at = now

    def longest_since_asked(self) -> float:
        """Return the longest block in seconds, also of one that is not over."""
        longest, self._longest = max(self._longest, time.monotonic() - self._beat_at - _BEAT), 0.0
        return longest


def resident_kib() -> int:
    """Return the memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:", 1)[1].split()[0])


def measure(heart: Heart, warm_up: float, window: float) -> dict[str, Any]:
    """Return what the process did in `window` seconds, `warm_up` seconds from now."""
    memory = resident_kib()
    heart.longest_since_asked()
    cpu_before = time.process_time()
    time.sleep(warm_up)
    block_at_start = heart.longest_since_asked()
    start, cpu = time.time(), time.process_time()
    time.sleep(window)
    end, cpu_after = time.time(), time.process_time()
    return {
        "start": start,
        "end": end,
        "cpu": cpu_after - cpu,
        "cpu_at_start": cpu - cpu_before,
        "block_at_start": block_at_start,
        "block": heart.longest_since_asked(),
        "memory_kib": resident_kib() - memory,
    }


def planned(contestant: Contestant, url: str, waits: int) -> list[workloads.RunTrigger]:
    """Return the workloads as the supervisor would send them."""
    return [
        workloads.RunTrigger(
            id=number,
            classpath=contestant.classpath,
            encrypted_kwargs=Trigger.encrypt_kwargs(contestant.arguments(url, number)),
        )
        for number in range(1, waits + 1)
    ]


async def run(contestant: Contestant, url: str, waits: int, warm_up: float, window: float) -> None:
    """Start all waits at once, and end the process when they are measured."""
    heart, runner = Heart(), TriggerRunner()
    beating = asyncio.create_task(heart.beat())
    runner.to_create.extend(planned(contestant, url, waits))
    # A trigger that blocks the loop keeps it from ending, hence no orderly end.
    gc.collect()
    await asyncio.sleep(0.5)
    threading.Thread(target=lambda: finish(measure(heart, warm_up, window)), daemon=True).start()
    await runner.create_triggers()
    await beating


def finish(result: dict[str, Any]) -> None:
    """Print the result and leave."""
    print(json.dumps(result), flush=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("url")
    parser.add_argument("waits", type=int)
    parser.add_argument("warm_up", type=float)
    parser.add_argument("window", type=float)
    arguments = parser.parse_args()
    contestant = CONTESTANTS[arguments.contestant]
    for module in (contestant.classpath.rpartition(".")[0], *contestant.imports):
        importlib.import_module(module)
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        configure_logging(json_output=True, output=nowhere, sending_to_supervisor=True)
        asyncio.run(run(contestant, arguments.url, arguments.waits, arguments.warm_up, arguments.window))


if __name__ == "__main__":
    main()
