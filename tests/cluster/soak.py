# SPDX-License-Identifier: Apache-2.0
"""Keep the cluster under a steady load and see whether memory, sockets and open files stay flat."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from cluster import Cluster
from load import Run, ended, start, verify
from report import table

LOAD = {"chains": 4, "batch": 8}
"""Images of each run; all of these runs are started every `EVERY` seconds."""
EVERY = 30.0
WATCHED = ("triggerer-1", "triggerer-2", "worker-1", "worker-2", "api-server-1", "api-server-2", "scheduler")
# What may grow from the middle third to the last: a share, and a number below which a share says nothing.
GROWTH = {"memory": (0.10, 20.0), "sockets": (0.25, 10.0), "files": (0.25, 20.0)}

Usage = dict[str, dict[str, float]]


def main() -> int:
    """Return the exit status: 0 if nothing grew, and every image is exact and was charged once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="default: %(default)g")
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    with Cluster(seed=1, settings={"CLUSTER_SENSORS": "1"}) as cluster:
        runs, samples = _load(cluster, options.minutes * 60)
        grown = _grown(samples)
        outcomes = [verify(cluster, run) for run in runs]
    images = sum(run.images for run in runs)
    exact, twice = sum(outcome.exact for outcome in outcomes), sum(len(outcome.charged_twice) for outcome in outcomes)
    page = _page(options.minutes, samples, images, exact, twice)
    print(page)
    if options.report:
        options.report.write_text(page)
    for line in grown:
        print(line, file=sys.stderr)
    return 1 if grown or exact != images or twice else 0


def _load(cluster: Cluster, seconds: float) -> tuple[list[Run], list[Usage]]:
    """Start runs at a steady pace; return them, and the usage seen meanwhile."""
    runs: list[Run] = []
    samples: list[Usage] = []
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        if now >= EVERY * len(runs) / len(LOAD):
            number = len(runs) // len(LOAD)
            runs += [start(cluster, dag_id, images, f"soak-{number}") for dag_id, images in LOAD.items()]
        samples.append(cluster.usage())
        time.sleep(5)
    limit = time.monotonic() + 300
    while not all(map(ended, runs)) and time.monotonic() < limit:
        time.sleep(2)
    return runs, samples


def _thirds(samples: list[Usage], name: str, what: str) -> tuple[float, float]:
    """Return the medians of the middle and of the last third; in the first one, all warms up."""
    values, third = [sample[name].get(what, 0) for sample in samples], len(samples) // 3
    return statistics.median(values[third : 2 * third]), statistics.median(values[2 * third :])


def _grown(samples: list[Usage]) -> list[str]:
    found = []
    for name in WATCHED:
        for what, (share, least) in GROWTH.items():
            middle, last = _thirds(samples, name, what)
            if last - middle > max(share * middle, least):
                found.append(f"{what} of {name} grew from {middle:.0f} to {last:.0f}")
    return found


def _page(minutes: float, samples: list[Usage], images: int, exact: int, twice: int) -> str:
    head = ("component", "memory (MiB)", "last third", "sockets", "last third", "files", "last third")
    rows = [(name, *(f"{value:.0f}" for what in GROWTH for value in _thirds(samples, name, what))) for name in WATCHED]
    load = " and ".join(f"{number} images of {dag_id}" for dag_id, number in LOAD.items())
    return f"""\
---
orphan: true
---

# Under steady load

`make soak MINUTES={minutes:g}` wrote this page on {datetime.now(UTC):%Y-%m-%d}, on {os.cpu_count()} cores. The cluster
is that of [On a cluster](cluster.md), with Airflow {version("apache-airflow")} and airflow-provider-gptimg
{version("airflow-provider-gptimg")}. Every {EVERY:g} s came {load}: {images} images in all,
{exact} of them exact in S3, {twice} charged twice.

The medians of the middle third of the time, and of the last one. In the first third all warms up. Memory is the
proportional set size of a component with its tasks.

{table(head, rows)}
"""


if __name__ == "__main__":
    sys.exit(main())
