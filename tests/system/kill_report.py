# SPDX-License-Identifier: Apache-2.0
"""What became of a killed task: what was sent and charged, before the kill and in all, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox.rest import DagRun

TASK = "images"


@dataclass(frozen=True)
class Evidence:
    """What can be seen from outside at one moment.

    :param posts: Submits that came in at the API.
    :param answers: Those among them that were answered.
    :param charges: Credits of each charge.
    :param record: How far the task's journal has come: `none`, `intent`, `task id` or `delivered`.
    :param result: Whether the task's XCom is there.
    """

    posts: int
    answers: int
    charges: tuple[int, ...]
    record: str
    result: bool

    @classmethod
    def now(cls, run: DagRun, emulator: Emulator) -> Evidence:
        """Look at the API's ledger and at Airflow's stores."""
        posts = [call for call in emulator.calls if call.method == "POST"]
        return cls(
            posts=len(posts),
            answers=sum(call.status is not None for call in posts),
            charges=tuple(entry.credits for entry in emulator.ledger if entry.kind == "charge"),
            record=record_of(run),
            result=run.xcom(TASK) is not None,
        )

    @property
    def credits(self) -> int:
        return sum(self.charges)


def record_of(run: DagRun, map_index: int = -1) -> str:
    """Return how far a task's journal has come."""
    entries = run.state_store(TASK, map_index)
    if any(key.endswith(".end") for key in entries):
        return "delivered"
    outcomes = {key: entry for key, entry in entries.items() if key.endswith(".outcome")}
    if any(outcome.get("task_id") for outcome in outcomes.values()):
        return "task id"
    unknown = [key for key in entries if key.endswith(".intent") and key.replace(".intent", ".outcome") not in outcomes]
    return "intent" if unknown else "none"


def failed_for_unknown_outcome(run: DagRun, map_index: int = -1) -> bool:
    """Return whether a task's last attempt ended with the error that says so."""
    return "GptImgSubmissionUnknownError" in run.log(TASK, map_index=map_index)


def delivered(run: DagRun, emulator: Emulator, map_index: int = -1) -> str | None:
    """Return the id of the image task that a task has returned, None if it has not; whole images count only."""
    result: Any = run.xcom(TASK, map_index=map_index)
    if isinstance(result, str):  # a submit's
        return result
    if not result or result["status"] != "completed" or not result["images"]:
        return None
    names = {picture.name for picture in emulator.task(result["task_id"]).pictures}
    assert {image["url"].rpartition("/")[2] for image in result["images"]} == names
    task_id: str = result["task_id"]
    return task_id


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows, the first of which is the head, as aligned lines."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
