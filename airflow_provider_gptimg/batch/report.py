# SPDX-License-Identifier: Apache-2.0
"""A batch in words: its summary, the error it ends with, and what is paid for when it is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.api.tasks import COMPLETED, ImageTask
from airflow_provider_gptimg.api.texts import shorten
from airflow_provider_gptimg.batch.entries import Entry
from airflow_provider_gptimg.exceptions import GptImgError, GptImgTaskNotFoundError, from_dict
from airflow_provider_gptimg.journal.entries import Submitted, unknown_submission
from airflow_provider_gptimg.mirroring.images import Pixels
from airflow_provider_gptimg.mirroring.mirror import MirroredObject
from airflow_provider_gptimg.polling import may_have_ended
from airflow_provider_gptimg.verdicts import is_final

__all__ = ["Report", "mirrored_objects", "standing_of", "warn_of_unknown"]

_SHOWN = 5
_SMALL = 3500
"""Bytes of JSON that a summary may have."""


@dataclass(frozen=True)
class Report:
    """The end of each request of a batch.

    :param unknown: Submitted, and nobody knows the outcome; also those that are not asked for any more.
    :param stopped: The error that ended submission early.
    :param on_unknown: `resubmit` if another attempt submits any of `unknown` again, else `fail`.
    :param try_number: Of this attempt.
    :param charged: Credits that this attempt was charged, before refunds.
    :param way_to_drop: How a person makes the provider forget what it knows of the task instance.
    """

    mirrored: list[Entry]
    failed: list[Entry]
    unknown: list[Entry]
    not_submitted: list[Entry]
    stopped: GptImgError | None
    on_unknown: str
    try_number: int
    charged: int
    way_to_drop: str

    @property
    def is_complete(self) -> bool:
        """True if every request is mirrored."""
        return not (self.failed or self.unknown or self.not_submitted)

    def summary(self, manifest: str | None) -> dict[str, Any]:
        """Return what goes to XCom, less than 4 KiB whatever the batch's size.

        :param manifest: URI of the manifest.
        """
        objects = [fact for entry in self.mirrored for fact in (entry.objects or {})["objects"]]
        summary: dict[str, Any] = {
            "requests": self._number,
            "mirrored": len(self.mirrored),
            "failed": len(self.failed),
            "unknown": len(self.unknown),
            "not_submitted": len(self.not_submitted),
            "taken_up": sum(sent.attempt < self.try_number for sent in self._paid),
            "images": len(objects),
            "bytes": sum(fact["size"] for fact in objects),
            "credits": sum(sent.credits for sent in self._paid),
            "manifest": manifest,
            "errors": [],
        }
        if reused := sum(sent.is_reused for sent in self._paid):
            summary["reused"] = reused
        if self.stopped and self.not_submitted:
            summary["errors"].append(shorten(f"{len(self.not_submitted)} were not submitted: {self.stopped}", 300))
        summary["errors"] += [shorten(f"{name}: {error}", 300) for name, error in self._errors()][:_SHOWN]
        while summary["errors"] and len(json.dumps(summary)) > _SMALL:
            summary["errors"].pop()
        return summary

    def error(self) -> GptImgError | None:
        """Return the error that the task ends with, whose text counts them all; None if there is none.

        An error that another attempt may mend comes before one that it would not, unless all submission has ended.
        """
        if self.is_complete:
            return None
        errors = list(self._errors())
        candidates = [self.stopped] if self.stopped else []
        candidates += [error for _, error in errors]
        if not candidates:
            candidates = [GptImgError("The batch did not finish")]
        chosen = candidates[0]
        if not (self.stopped and is_final(self.stopped, self.on_unknown)):
            chosen = next((error for error in candidates if not is_final(error, self.on_unknown)), chosen)
        first = "; ".join(shorten(f"{name}: {error}", 300) for name, error in errors[:_SHOWN])
        owed = sum(sent.credits for sent in self._paid) - sum(map(_credits, self.mirrored))
        paid = f", delivers what {owed} credits are paid for already and" if owed else ""
        chosen.add_hint(
            f"Of {self._number} requests {len(self.mirrored)} are mirrored, {len(self.failed)} failed, "
            f"{len(self.unknown)} have an unknown outcome and {len(self.not_submitted)} were not submitted; another "
            f"attempt, or clearing the task{paid} does only what is missing"
        )
        if any(_is_dead(entry.error or {}) for entry in self.failed):
            chosen.add_hint(f"To submit the whole batch again, {self.way_to_drop} and clear the task")
        if first:
            chosen.add_hint(f"First errors: {first}")
        return chosen

    def told_of_success(self) -> str:
        """Return what is missing, for the log of a task that succeeds all the same."""
        told = (
            f"The task succeeds as on_partial_failure='succeed' says, with {len(self.mirrored)} of {self._number} "
            f"requests: {len(self.failed)} failed, {len(self.unknown)} have an unknown outcome and "
            f"{len(self.not_submitted)} were not submitted"
        )
        if lost := sum(sent.credits for entry in self.unknown for sent in entry.plan.unknown):
            told += (
                f". Up to {lost} credits may have been charged for those with an unknown outcome: the vendor's "
                "transaction log shows it. Another run that asks for them pays again"
            )
        return told

    @property
    def _number(self) -> int:
        """Of all requests."""
        return len(self.mirrored) + len(self.failed) + len(self.unknown) + len(self.not_submitted)

    @property
    def _paid(self) -> list[Submitted]:
        """The submissions that were charged and not refunded, of the requests that are asked for."""
        current = (entry.current for entry in (*self.mirrored, *self.failed))
        return [sent for sent in current if sent and sent.task_id]

    def _errors(self) -> Iterator[tuple[str, GptImgError]]:
        for entry in self.failed:
            yield entry.name, from_dict(entry.error or {})
        for entry in self.unknown:
            yield entry.name, unknown_submission(entry.plan.unknown, self.way_to_drop)


def warn_of_unknown(entries: Iterable[Entry], log: Any) -> None:
    """Log the submissions without a known outcome whose request another image task has answered."""
    for entry in entries:
        plan = entry.plan
        for sent in plan.unknown if plan.paid else ():
            log.warning("%s is taken up, and %s", entry.name, sent.lost)


def standing_of(entries: Sequence[Entry], sending: int) -> str:
    """Return what was sent and what is paid for, for the log of a stopped task.

    :param sending: Submits that are under way.
    """
    paid = [entry.current.credits for entry in entries if entry.current and entry.current.task_id]
    return (
        f"Of {len(entries)} requests {len(paid)} are paid for ({sum(paid)} credits), {sending} are being sent right "
        "now, and the others were not sent. Clearing the task takes up what is paid for"
    )


def mirrored_objects(entries: Iterable[Entry]) -> tuple[list[MirroredObject], dict[str, ImageTask]]:
    """Return all objects of mirrored requests, and by id the image tasks they are of, as the ledger knows them."""
    objects: list[MirroredObject] = []
    tasks: dict[str, ImageTask] = {}
    for entry in entries:
        facts = entry.objects or {}
        of_task: dict[str, Any] = {name: facts.get(name) for name in ("model", "created_at", "updated_at")}
        tasks[entry.task_id] = ImageTask(entry.task_id, COMPLETED, **of_task)
        for index, fact in enumerate(facts.get("objects", ())):
            pixels = Pixels(*fact["pixels"]) if fact["pixels"] else None
            objects.append(MirroredObject(task_id=entry.task_id, index=index, etag="", **{**fact, "pixels": pixels}))
    return objects, tasks


def _credits(entry: Entry) -> int:
    return entry.current.credits if entry.current else 0


def _is_dead(error: Mapping[str, Any]) -> bool:
    """Return whether waiting on for an image task would not bring it."""
    return isinstance(from_dict(dict(error)), GptImgTaskNotFoundError) or may_have_ended(error.get("last_status"))
