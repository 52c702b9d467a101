# SPDX-License-Identifier: Apache-2.0
"""What many images a day need, computed from what one image costs on the cluster (`make cluster`)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.simulation import simulate

__all__ = ["COSTS", "page_tables"]

COSTS = Path(__file__).with_name("cluster_costs.json")
"""The figures of a run of the cluster: `make cluster CLUSTER_ARGS="--json benchmarks/cluster_costs.json"`."""
DAYS = (10_000, 100_000, 1_000_000)
WAYS = {
    "chains": "mapped generate → mirror",
    "sensors": "submit → sensor in the triggerer → mirror",
    "batch": "one deferrable batch",
}

HOURS = 8.0
"""Hours of the day in which the images come: machines are sized for those."""
WAIT = 55.0
"""Seconds that an image is waited for: a generation of 45 to 60 s, seen 2.5 s late."""
UTILIZATION = 0.6
"""Share of a core's time that may be used before queues grow."""
TRIGGERS = 1000
"""Triggers of one triggerer, Airflow's default capacity."""
PRICE_OF_REQUESTS = 0.005 / 1000
"""Dollars for an S3 request, all taken as PUTs, which cost most (AWS's list price in us-east-1)."""
CREDITS = 2


def needs(cost: dict[str, Any], images: int) -> dict[str, str]:
    """Return what so many images a day need, by the name of the row."""
    rate = images / (HOURS * 3600)

    def cores(*components: str) -> float:
        return rate * sum(cost[f"CPU of {component}"] for component in components) / UTILIZATION

    waiting = rate * WAIT
    # A triggerer is one event loop, so one core; a second one takes over when the first is lost.
    triggerers = max(2, math.ceil(waiting / TRIGGERS), math.ceil(cores("triggerer")))
    requests = images * cost["S3 requests"]
    return {
        "images a second, in the busy hours": f"{rate:.2f}",
        "image tasks waiting at a time": f"{waiting:,.0f}",
        "triggerers": f"{triggerers}",
        "cores of workers": _cores(cores("worker")),
        "cores of API servers": _cores(cores("api-server")),
        "cores of schedulers": _cores(cores("scheduler")),
        "cores of PostgreSQL": _cores(cores("postgres")),
        "calls of Airflow's API, a second": f"{rate * cost['calls']:,.1f}",
        "growth of the database, MiB a day": f"{images * cost['database bytes'] / 2**20:,.0f}",
        "S3 requests a day": f"{requests:,.0f}",
        "… in dollars a day, at most": f"{requests * PRICE_OF_REQUESTS:,.2f}",
        "credits a day": f"{images * CREDITS:,}",
    }


def _cores(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:,.0f}"


def page_tables() -> str:
    """Return the tables of `docs/scale.md`."""
    figures = json.loads(COSTS.read_text())
    parts = []
    for way, title in WAYS.items():
        columns = [needs(figures["calm"][way], images) for images in DAYS]
        lines = [f"| images a day | {' | '.join(f'{images:,}' for images in DAYS)} |", "|---|" + "---:|" * len(DAYS)]
        lines += [f"| {row} | {' | '.join(column[row] for column in columns)} |" for row in columns[0]]
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n" + "\n".join(lines))
    calm, cores = figures["calm"], figures["cores"]
    runs = [(f"{calm[way]['images']} images, {title}", {way: calm[way]["images"]}) for way, title in WAYS.items()]
    measured = [calm[way]["seconds"] for way in WAYS]
    rows = [
        f"| {name} | {simulate(calm, images, cores):.0f} | {seconds:.0f} |"
        for (name, images), seconds in zip(
            [*runs, ("the whole load, whose faults are not simulated", figures["images"])],
            [*measured, figures["load seconds"]],
            strict=True,
        )
    ]
    head = "| seconds until the last image is in S3 | simulated | measured |\n|---|---:|---:|\n"
    parts.append("## The model against the cluster\n\n" + head + "\n".join(rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page_tables())
