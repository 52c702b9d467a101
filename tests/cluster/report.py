# SPDX-License-Identifier: Apache-2.0
"""The report of a cluster run, as a page of the docs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil
from cluster import HEARTBEAT_TIMEOUT

__all__ = ["report", "table"]

_DAGS = {
    "chains": "mapped generate → mirror",
    "sensors": "submit → sensor in the triggerer → mirror",
    "batch": "one deferrable batch",
}
_COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "postgres")


def report(figures: dict[str, Any]) -> str:
    """Return the page for what :mod:`run` measured."""
    sums = figures["sums"]
    return f"""\
# On a cluster

What happens to images and credits while parts of an Airflow cluster fail. `make cluster` wrote this page.

- **When**: {datetime.now(UTC):%Y-%m-%d}; it took {figures["seconds"] / 60:.0f} minutes.
- **Command**: `{figures["command"]}`.
- **Machine**: {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, all on
  one{_shared(figures["load before"])}.
- **Software**: Airflow {version("apache-airflow")}, Celery {version("celery")}, Python {sys.version.split()[0]},
  airflow-provider-gptimg {version("airflow-provider-gptimg")}, PostgreSQL and Redis from Debian.
- **Cluster**: two workers of six slots, two triggerers, two API servers behind a balancer, a scheduler, a DAG
  processor. A task without a heartbeat is given up after {HEARTBEAT_TIMEOUT} s (default: 300 s). The API is the
  emulator, three times as fast as the real one.

## Outcome

{table(("", "requests"), sums.items())}

An image is "paid and lost" if it was paid for, is not in S3, and no failed task names it. A request is "unknown and
named" if its submit got no answer: its task fails with `GptImgSubmissionUnknownError`, and a person decides.

{table(*_outcomes(figures))}

## Faults

One after another, while the load ran. Times count from the fault's end: "healthy" until every component was well again,
"next success" until a task had succeeded since, which is asked only then. What ended by itself was started again, as a
supervisor of services does.

{table(*_faults(figures))}

## What an image costs Airflow

Measured before the first fault, without heartbeats, which depend on how long a task runs. CPU is in seconds.

{table(*_costs(figures))}

## Memory and sockets

Before the load and after it. Memory is the proportional set size in MiB. What ended in between is younger.

{table(("component", "memory", "after", "sockets", "after", "files", "after"), _usage(figures))}
"""


def _shared(load: float) -> str:
    """Say so if other work ran on the machine, which makes every time longer."""
    return f". Other work ran there too: the load average was {load:.0f} before the start" if load >= 1 else ""


def _outcomes(figures: dict[str, Any]) -> tuple[tuple[str, ...], Iterable[tuple[object, ...]]]:
    head = ("load", "requests", "paid for", "exact", "charged twice", "unknown", "first end", "end after a clear")
    rows = [
        (
            _DAGS[dag_id],
            figures["images"][dag_id],
            outcome["paid"],
            outcome["exact"],
            len(outcome["charged_twice"]),
            outcome["unknown"],
            figures["before the clear"][dag_id],
            outcome["state"],
        )
        for dag_id, outcome in figures["outcomes"].items()
    ]
    return head, rows


def _faults(figures: dict[str, Any]) -> tuple[tuple[str, ...], Iterable[tuple[object, ...]]]:
    head = ("fault", "detail", "lasted", "healthy", "next success", "ended by themselves")
    return head, map(_fault, figures["faults"])


def _fault(happened: dict[str, Any]) -> tuple[object, ...]:
    seconds = (happened["lasted"], happened["healthy"], happened["next_success"])
    restarted = ", ".join(f"{name} {number}×" for name, number in happened["restarted"].items())
    return (
        happened["name"],
        happened["detail"] or "–",
        *("not seen" if each is None else f"{each:.0f} s" for each in seconds),
        restarted or "–",
    )


def _costs(figures: dict[str, Any]) -> tuple[tuple[str, ...], Iterable[tuple[object, ...]]]:
    calm = figures["calm"]
    names = ["calls", "S3 requests", "database bytes", *(f"CPU of {part}" for part in _COMPONENTS)]
    labels = {"calls": "calls of Airflow's API"}
    rows = [
        (labels.get(name, name), *(f"{calm[dag_id][name]:,.{_digits(name)}f}" for dag_id in _DAGS)) for name in names
    ]
    return ("for each image", *_DAGS.values()), [("images", *(calm[dag_id]["images"] for dag_id in _DAGS)), *rows]


def _digits(name: str) -> int:
    return 0 if "bytes" in name else 2 if "CPU" in name else 1


def _usage(figures: dict[str, Any]) -> Iterable[tuple[object, ...]]:
    before, after = figures["usage before"], figures["usage after"]
    for name in sorted(before):
        pairs = [(before[name].get(what, 0), after[name].get(what, 0)) for what in ("memory", "sockets", "files")]
        yield name, *(f"{value:.0f}" for pair in pairs for value in pair)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
