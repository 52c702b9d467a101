# SPDX-License-Identifier: Apache-2.0
"""Run the load on the cluster while one thing after another fails, and write what came of it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from cluster import Cluster
from faults import FAULTS, Happened, Scene
from load import Outcome, Run, clear_failed, ended, start, summary, verify
from report import report

from airflow_provider_gptimg.sandbox.rest import until

LOAD = {"chains": 200, "sensors": 50, "batch": 300}
"""Images by DAG."""


def main() -> int:
    """Return the exit status: 0 if nothing was charged twice or lost, and every run came to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="of the load, as a factor; default: %(default)g")
    parser.add_argument("--seed", type=int, default=1, help="chooses the faults' order and victims")
    parser.add_argument("--faults", type=int, default=len(FAULTS), help="how many of the faults; default: all")
    parser.add_argument("--minutes", type=float, default=45, help="after which it is given up; default: %(default)g")
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="Airflow environment")
    options = parser.parse_args()
    logging.getLogger("werkzeug").propagate = False
    requests = _count_s3_requests()
    load = {dag_id: round(images * options.size) for dag_id, images in LOAD.items()}
    settings = dict(pair.split("=", 1) for pair in options.set) | {"CLUSTER_SENSORS": str(load["sensors"])}
    began, busy = time.monotonic(), os.getloadavg()[0]
    with Cluster(options.seed, settings) as cluster:
        say(f"up after {time.monotonic() - began:.0f} s, in {cluster.home}")
        figures = {"calm": calm(cluster, requests, load["sensors"]), "usage before": cluster.usage()}
        for dag_id, cost in figures["calm"].items():
            say(f"an image of {dag_id} costs {cost}")
        figures |= stormy(cluster, load, options.seed, options.faults, began + options.minutes * 60)
        figures["usage after"] = cluster.usage()
    figures |= {"seed": options.seed, "cores": os.cpu_count(), "load before": busy, "seconds": time.monotonic() - began}
    figures["command"] = _command(options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1, default=str))
    if options.report:
        options.report.write_text(report(figures))
    sums = figures["sums"]
    print(json.dumps(sums))
    return 1 if sums["charged twice"] or sums["paid and lost"] or sums["wrong bytes"] or figures["hangs"] else 0


def _command(options: argparse.Namespace) -> str:
    """Return the command that makes this run again."""
    chosen = {"--size": options.size != 1, "--seed": options.seed != 1, "--faults": options.faults != len(FAULTS)}
    told = [f"{name} {getattr(options, name.lstrip('-')):g}" for name, is_chosen in chosen.items() if is_chosen]
    told += [f"--set {pair}" for pair in options.set]
    return "make cluster" + (f" CLUSTER_ARGS='{' '.join(told)}'" if told else "")


def say(text: str) -> None:
    """Print what goes on, with the time."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def calm(cluster: Cluster, requests: Counter[str], sensors: int) -> dict[str, dict[str, float]]:
    """Return what an image costs while nothing fails, by DAG."""
    figures = {}
    for dag_id, images in {"chains": 10, "sensors": sensors, "batch": 40}.items():
        before, size, cpu = requests.total(), _database_bytes(cluster), _cpu(cluster)
        began = time.monotonic()
        run = start(cluster, dag_id, images, "calm")
        until(lambda run=run: ended(run), 900, f"the calm {dag_id}", pause=1)
        calls = cluster.balancer.calls[dag_id]
        beats = sum(number for kind, number in calls.items() if "heartbeat" in kind)
        spent = _cpu(cluster)
        figures[dag_id] = {
            "images": images,
            "seconds": time.monotonic() - began,
            "exact": verify(cluster, run).exact,
            "calls": (calls.total() - beats) / images,
            "S3 requests": (requests.total() - before) / images,
            "database bytes": (_database_bytes(cluster) - size) / images,
            **{f"CPU of {part}": (seconds - cpu[part]) / images for part, seconds in spent.items()},
        }
        figures[dag_id]["kinds"] = dict(calls.most_common())
    return figures


def stormy(cluster: Cluster, load: dict[str, int], seed: int, number: int, deadline: float) -> dict[str, object]:
    """Run the load amid faults; then clear what failed, once; return all figures."""
    order = random.Random(seed).sample(list(FAULTS), number)
    scene = Scene(cluster, f"storm-{seed}", random.Random(seed))
    began = time.monotonic()
    runs = [start(cluster, dag_id, images, scene.label) for dag_id, images in load.items()]
    until(lambda: scene.pick(1, "running", "deferred"), 120, "the load to begin")
    happened: list[Happened] = []
    for name in order:
        if not scene.goes_on():
            say(f"the load is over; not made: {name}")
            break
        happened.append(scene.make(name))
        say(json.dumps(asdict(happened[-1])))
        time.sleep(scene.chance.uniform(5, 15))
    hangs = _wait(runs, deadline)
    seconds = time.monotonic() - began
    before = {run.run.dag_id: run.run.state for run in runs}
    say(f"ended: {before}")
    for run in runs:
        if not hangs and run.run.state == "failed":
            clear_failed(cluster, run)
    hangs = hangs or _wait(runs, deadline)
    outcomes: dict[str, Outcome] = {run.run.dag_id: verify(cluster, run) for run in runs}
    for dag_id, outcome in outcomes.items():
        say(f"{dag_id}: {asdict(outcome)}")
    return {
        "faults": [asdict(each) for each in happened],
        "load seconds": seconds,
        "before the clear": before,
        "images": {run.run.dag_id: run.images for run in runs},
        "outcomes": {dag_id: asdict(outcome) for dag_id, outcome in outcomes.items()},
        "sums": summary(outcomes),
        "hangs": hangs,
    }


def _wait(runs: list[Run], deadline: float) -> bool:
    """Wait for the end of all runs; return whether one of them hangs."""
    try:
        until(lambda: all(map(ended, runs)), max(30, deadline - time.monotonic()), "the runs", pause=2)
    except TimeoutError:
        return True
    return False


def _database_bytes(cluster: Cluster) -> int:
    return int(cluster.query("select pg_database_size('postgres')")[0][0])


def _cpu(cluster: Cluster) -> Counter[str]:
    """Return CPU seconds by kind of component."""
    total: Counter[str] = Counter()
    for name, used in cluster.usage().items():
        total[name.rstrip("-12")] += used.get("cpu", 0)
    return total


def _count_s3_requests() -> Counter[str]:
    """Count what moto's server, which runs in this process, logs of each request."""
    requests: Counter[str] = Counter()

    class Count(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            requests[record.getMessage().partition('"')[2].partition(" ")[0]] += 1
            return False

    logger = logging.getLogger("werkzeug")
    logger.addFilter(Count())
    # S3Server quiets it at its start; here the filter does.
    logger.setLevel = lambda level: None  # type: ignore[method-assign]
    logging.Logger.setLevel(logger, logging.INFO)
    return requests


if __name__ == "__main__":
    sys.exit(main())
