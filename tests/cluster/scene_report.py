# SPDX-License-Identifier: Apache-2.0
"""The report of the scenes, as a page of the docs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from report import table

__all__ = ["page"]

_HEAD = ("task", "first attempt", "requests", "charged", "states", "unknown and named", "late POSTs", "")


def page(ends: Sequence[Any], failed: int, seconds: float) -> str:
    """Return the page.

    :param ends: How the scenes ended, as `scenes.Ended`.
    :param failed: Scenes that did not come to their end.
    """
    twice = sum(max(end.charged) > end.allowed for end in ends)
    return f"""\
# Several attempts at once

Airflow can have two attempts of a task alive, can execute a write late, and lets a task run on for seconds after a
person marked it failed. Each row is one of these cases on the cluster of [On a cluster](cluster.md), with an emulator
of its own.

- **When**: {datetime.now(UTC):%Y-%m-%d}; it took {seconds / 60:.0f} minutes on {os.cpu_count()} cores.
- **Command**: `make scenes`, Airflow {version("apache-airflow")}, \
airflow-provider-gptimg {version("airflow-provider-gptimg")}.
- **Scenes**: {len(ends) + failed}; {twice} charged more than allowed, {failed} did not come to their end.

"Frozen" scenes stop the first attempt and its supervisor at a point (SIGSTOP) until Airflow gave it up and the second
attempt ended; then they let it go on. "A late write" is kept by the balancer, as a stalled server keeps it, and
executed when its repetition is long done. "Charged" counts image tasks at the end of the second attempt (or right after
the click), at the run's end, and, where that failed, after a person's clear; "states" are the run's at those moments.
"Late POSTs" went out after the thaw or the click, and before the clear.
{"".join(_of(journal, ends) for journal in dict.fromkeys(end.journal for end in ends))}"""


_PLACES = {"auto": "the task state store (`journal = auto`)"}


def _of(journal: str, ends: Sequence[Any]) -> str:
    """Return the part of the page that is about one place of the journal."""
    rows = [
        (
            end.kind,
            end.scene,
            end.requests,
            " → ".join(map(str, end.charged)),
            " → ".join(end.states),
            "yes" if end.named else "no",
            end.late_posts,
            "" if end.is_well else "**not as promised**",
        )
        for end in ends
        if end.journal == journal
    ]
    return f"""
## With the journal in {_PLACES.get(journal, f"S3 (`journal = {journal}`)")}

{table(_HEAD, rows)}
"""
