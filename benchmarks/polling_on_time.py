# SPDX-License-Identifier: Apache-2.0
"""Whether thousands of waits of the default schedule are polled when they are due, if an answer takes 300 ms.

A steady state: generations of 45 to 60 s, each of which is followed by another one when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import quantiles

from benchmarks.loopback_api import LoopbackApi
from benchmarks.tables import print_table
from benchmarks.waits import KEY

LATENCY = 0.3
FIRST_POLL_AFTER, POLL_INTERVAL = 39.5, 5.0
WARM_UP, WINDOW = 10.0, 30.0
CPUS = sorted(os.sched_getaffinity(0))


async def keep_waiting(age: float) -> None:
    """Wait for one task after another; the first one is `age` seconds old."""
    from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

    while True:
        submitted = time.time() - age
        first = max(submitted + FIRST_POLL_AFTER * random.uniform(1.0, 1.05), time.time())
        if age > FIRST_POLL_AFTER:
            first += random.uniform(0.0, POLL_INTERVAL)
        ends = submitted + random.uniform(max(45.0, age), 60.0)
        trigger = GptImgTaskTrigger(
            f"gpt-image-2-{ends:.3f}-{first:.3f}",
            "bench",
            deadline=submitted + 600,
            submitted_at=submitted,
            first_poll_at=first,
        )
        async for event in trigger.run():
            assert event.payload["status"] == "finished", event.payload
        age = 0.0


async def wait(waits: int) -> None:
    waiting = [asyncio.create_task(keep_waiting(random.uniform(0.0, 52.5))) for _ in range(waits)]
    await asyncio.sleep(WARM_UP)
    start, cpu = time.time(), time.process_time()
    await asyncio.sleep(WINDOW)
    print(json.dumps({"start": start, "end": time.time(), "cpu": time.process_time() - cpu}), flush=True)
    assert not any(task.done() for task in waiting)
    os._exit(0)


def run(api: LoopbackApi, waits: int, home: Path) -> list[str]:
    """Return a line of the table."""
    connection = {
        "conn_type": "gptimg",
        "host": api.url(tls=True),
        "password": KEY,
        "extra": json.dumps({"verify": str(api.ca_bundle)}),
    }
    api.forget()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.polling_on_time", "--wait", str(waits)],
        env={**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW_CONN_BENCH": json.dumps(connection)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, CPUS[-1:]),
    )
    told = json.loads(done.stdout.splitlines()[-1])
    polls = defaultdict(list)
    for at, path in api.asked:
        polls[path].append(at)
    late = []
    for path, asked in polls.items():
        due = float(path.rsplit("-", 1)[1])
        for at in asked:
            if told["start"] <= at < told["end"]:
                late.append(at - due)
            due = at + LATENCY + POLL_INTERVAL
    cuts = quantiles(late, n=100)
    return [
        f"{waits:,}",
        f"{len(late) / WINDOW:.0f}",
        f"{1000 * told['cpu'] / len(late):.2f}",
        f"{cuts[49]:.2f} / {cuts[94]:.2f} / {max(late):.2f}",
        f"{100 * sum(seconds <= 1.0 for seconds in late) / len(late):.1f} %",
        f"{api.most_connections}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wait", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--full", action="store_true", help="10,000 waits too")
    arguments = parser.parse_args()
    if arguments.wait:
        from airflow.sdk.log import configure_logging

        with Path(os.devnull).open("wb", buffering=0) as nowhere:
            configure_logging(json_output=True, output=nowhere, sending_to_supervisor=True)
            asyncio.run(wait(arguments.wait))
    os.sched_setaffinity(0, CPUS[:1])
    with tempfile.TemporaryDirectory() as folder, LoopbackApi(Path(folder), LATENCY, spread=0) as api:
        rows = [run(api, waits, Path(folder)) for waits in (1000, 5000, *([10_000] if arguments.full else []))]
    print_table(
        "waits of the default schedule, answers after 300 ms, TLS",
        ["waits", "polls/s", "CPU ms a poll", "late by, median / 95 % / most (s)", "within 1 s", "sockets"],
        rows,
    )


if __name__ == "__main__":
    main()
