# SPDX-License-Identifier: Apache-2.0
"""What a poll costs the triggerer, with thousands of waits in one event loop, each polling every 5 s."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cryptography.fernet import Fernet

from benchmarks.loopback_api import LoopbackApi
from benchmarks.tables import print_table
from benchmarks.waits import CONTESTANTS, POLL_INTERVAL

REFERENCE = "aiohttp"
OURS = "gptimg"
CPUS = sorted(os.sched_getaffinity(0))
"""The server gets the first one and the triggerer the last one."""

# One makes its calls on the event loop, the other takes a thread for each: shown where they still work.
NOT_FOR_THOUSANDS = ("openai", "common-ai")


@dataclass(frozen=True)
class Scene:
    """So many waits, with TLS or without, of each of some contestants."""

    waits: int
    tls: bool
    contestants: tuple[str, ...]

    @property
    def title(self) -> str:
        wanted = self.waits / POLL_INTERVAL
        return f"{self.waits:,} waits, {'TLS' if self.tls else 'no TLS'}, {wanted:g} polls/s wanted"


@dataclass(frozen=True)
class Cost:
    """What one contestant cost in one run."""

    cpu_ms: float
    polls_per_s: float
    block_at_start_ms: float
    block_ms: float
    sockets: int
    memory_kib: float


@dataclass(frozen=True)
class Times:
    """Seconds until the first polls are over, and seconds that are measured.

    The window is long enough to hold its share of full garbage collections, which come about once in half a minute.
    """

    warm_up: float = 8.0
    window: float = 30.0


def run(api: LoopbackApi, scene: Scene, contestant: str, times: Times, home: Path) -> dict[str, float]:
    """Run one contestant in a process of its own, and return what it measured with what the server saw."""
    url = api.url(scene.tls)
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "SSL_CERT_FILE": str(api.ca_bundle),
        "no_proxy": "127.0.0.1,localhost",
    }
    connection = CONTESTANTS[contestant].connection
    if connection:
        environment["AIRFLOW_CONN_BENCH"] = json.dumps(connection(url, str(api.ca_bundle)))
    command = [sys.executable, "-m", "benchmarks.triggerer", contestant, url]
    command += [str(value) for value in (scene.waits, times.warm_up, times.window)]
    api.forget()
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120 + times.warm_up + times.window,
        preexec_fn=lambda: os.sched_setaffinity(0, CPUS[-1:]),
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result["polls"] = api.answers_between(result["start"], result["end"])
    result["sockets"] = api.most_connections
    return result


def costs(api: LoopbackApi, scene: Scene, times: Times, home: Path) -> Iterator[tuple[str, Cost]]:
    """Run all contestants of a scene once, and yield what their polls cost beyond what waiting costs Airflow itself."""
    empty = run(api, scene, "empty", times, home)
    for contestant in scene.contestants:
        result = run(api, scene, contestant, times, home)
        polls = max(result["polls"], 1)
        yield (
            contestant,
            Cost(
                cpu_ms=1000 * (result["cpu"] - empty["cpu"]) / polls,
                polls_per_s=result["polls"] / (result["end"] - result["start"]),
                block_at_start_ms=1000 * result["block_at_start"],
                block_ms=1000 * result["block"],
                sockets=int(result["sockets"]),
                memory_kib=(result["memory_kib"] - empty["memory_kib"]) / scene.waits,
            ),
        )


def measure(api: LoopbackApi, scenes: list[Scene], rounds: int, times: Times, home: Path) -> None:
    """Run all scenes so many times over, then print a table for each."""
    seen: dict[Scene, dict[str, list[Cost]]] = {scene: {name: [] for name in scene.contestants} for scene in scenes}
    for number in range(1, rounds + 1):
        for scene in scenes:
            print(f"round {number} of {rounds}: {scene.title}", file=sys.stderr, flush=True)
            for contestant, cost in costs(api, scene, times, home):
                print(f"  {contestant}: {cost}", file=sys.stderr, flush=True)
                seen[scene][contestant].append(cost)
    for scene in scenes:
        print_table(
            f"{scene.title} (median of {rounds})",
            ["wait", "CPU ms a poll", "to aiohttp", "polls/s", "block ms, start / later", "sockets", "KiB a wait"],
            [_row(name, seen[scene]) for name in scene.contestants],
        )
    _print_growth(seen)


def _row(name: str, seen: dict[str, list[Cost]]) -> list[str]:
    found = seen[name]
    ratio = median(cost.cpu_ms / other.cpu_ms for cost, other in zip(found, seen[REFERENCE], strict=True))
    return [
        CONTESTANTS[name].label,
        f"{median(cost.cpu_ms for cost in found):.2f}",
        f"{ratio:.2f} ×",
        f"{median(cost.polls_per_s for cost in found):.0f}",
        f"{median(cost.block_at_start_ms for cost in found):.0f} / {median(cost.block_ms for cost in found):.0f}",
        f"{max(cost.sockets for cost in found)}",
        f"{median(cost.memory_kib for cost in found):.1f}",
    ]


def _print_growth(seen: dict[Scene, dict[str, list[Cost]]]) -> None:
    """Say how the cost of a poll grows with the number of waits."""
    for few in seen:
        for many in seen:
            if many.tls == few.tls and many.waits > few.waits >= 1000:
                pairs = zip(seen[many][OURS], seen[few][OURS], strict=True)
                growth = median(more.cpu_ms / less.cpu_ms for more, less in pairs)
                print(
                    f"CPU a poll with {many.waits:,} waits to that with {few.waits:,}, "
                    f"{'TLS' if few.tls else 'no TLS'}: {growth:.2f} ×"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all scenes and contestants: half an hour")
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, help="of 1,000 waits, over TLS")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    thousands = tuple(name for name in CONTESTANTS if name not in ("empty", *NOT_FOR_THOUSANDS))
    ours = ("hand-written", REFERENCE, OURS)
    if arguments.only:
        scenes = [Scene(1000, True, (REFERENCE, *(name for name in arguments.only if name != REFERENCE)))]
    elif arguments.full:
        scenes = [
            Scene(100, True, (REFERENCE, OURS, *NOT_FOR_THOUSANDS)),
            Scene(1000, True, thousands),
            Scene(5000, True, ours),
            Scene(1000, False, ours),
            Scene(5000, False, ours),
        ]
    else:
        scenes = [Scene(1000, True, (*ours, "http-sensor", "databricks"))]
    times = Times()
    os.sched_setaffinity(0, CPUS[:1])
    with tempfile.TemporaryDirectory() as folder, LoopbackApi(Path(folder)) as api:
        measure(api, scenes, arguments.rounds, times, Path(folder))


if __name__ == "__main__":
    main()
