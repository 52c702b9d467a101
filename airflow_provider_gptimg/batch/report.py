# SPDX-License-Identifier: Apache-2.0
"""What a batch tells in the end: a small summary, what is in S3, and the error that stands for what went wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_gptimg.api.tasks import COMPLETED, ImageTask
from airflow_provider_gptimg.batch.ledger import Entry
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgSubmissionUnknownError,
    from_dict,
)
from airflow_provider_gptimg.mirroring.images import Pixels
from airflow_provider_gptimg.mirroring.mirror import MirroredObject
from airflow_provider_gptimg.verdicts import is_final

__all__ = ["Report", "mirrored_objects"]

_SHOWN = 5
_SMALL = 3500
"""Bytes of JSON that a summary may have."""


@dataclass(frozen=True)
class Report:
    """How each request of a batch ended.

    :param unknown: Submitted, and nobody knows the outcome; also those that are not asked for any more.
    :param strays: Accepted by the API, and not asked for any more.
    :param stopped: The error that ended submission early.
    :param on_unknown: `resubmit` if another attempt submits any of `unknown` again, else `fail`.
    :param try_number: Of this attempt.
    """

    mirrored: list[Entry]
    failed: list[Entry]
    unknown: list[Entry]
    not_submitted: list[Entry]
    strays: list[Entry]
    stopped: GptImgError | None
    on_unknown: str
    try_number: int

    @property
    def charged(self) -> int:
        """Credits that this attempt was charged, before refunds."""
        accepted = (*self._accepted, *self.strays)
        return sum(_credits(entry) for entry in accepted if entry.submitted_by == self.try_number)

    @property
    def is_complete(self) -> bool:
        """Whether every request is mirrored."""
        return not (self.failed or self.unknown or self.not_submitted)

    def summary(self, manifest: str | None) -> dict[str, Any]:
        """Return what goes to XCom, less than 4 KiB whatever the batch's size.

        :param manifest: URI of the manifest.
        """
        objects = [fact for entry in self.mirrored for fact in (entry.mirrored or {})["objects"]]
        requests = len(self.mirrored) + len(self.failed) + len(self.unknown) + len(self.not_submitted)
        summary: dict[str, Any] = {
            "requests": requests,
            "mirrored": len(self.mirrored),
            "failed": len(self.failed),
            "unknown": len(self.unknown),
            "not_submitted": len(self.not_submitted),
            "taken_up": sum(entry.submitted_by < self.try_number for entry in self._accepted),
            "images": len(objects),
            "bytes": sum(fact["size"] for fact in objects),
            "credits": sum(_credits(entry) for entry in self._accepted if not entry.is_refunded),
            "manifest": manifest,
            "errors": [],
        }
        if self.stopped and self.not_submitted:
            summary["errors"].append(f"{len(self.not_submitted)} were not submitted: {self.stopped}"[:300])
        summary["errors"] += [f"{name}: {error}"[:300] for name, error in self._errors()][:_SHOWN]
        while summary["errors"] and len(json.dumps(summary)) > _SMALL:
            summary["errors"].pop()
        return summary

    def error(self) -> GptImgError | None:
        """Return the error that the task ends with, whose text counts them all; None if there is none.

        An error that another attempt may mend stands before one that it would not, unless all submission has ended.
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
        first = "; ".join(f"{name}: {error}"[:200] for name, error in errors[:_SHOWN])
        requests = len(self.mirrored) + len(self.failed) + len(self.unknown) + len(self.not_submitted)
        chosen.message = (
            f"{chosen.message}. Of {requests} requests {len(self.mirrored)} are mirrored, {len(self.failed)} failed, "
            f"{len(self.unknown)} have an unknown outcome and {len(self.not_submitted)} were not submitted; another "
            "attempt, or clearing the task, does only what is missing"
        )
        if first:
            chosen.message += f". First errors: {first}"
        return chosen

    @property
    def _accepted(self) -> Iterator[Entry]:
        return (entry for entry in (*self.mirrored, *self.failed) if entry.task_id)

    def _errors(self) -> Iterator[tuple[str, GptImgError]]:
        for entry in self.failed:
            yield entry.name, from_dict(entry.error or {})
        for entry in self.unknown:
            yield entry.name, _unknown(entry)


def mirrored_objects(entries: Iterable[Entry]) -> tuple[list[MirroredObject], dict[str, ImageTask]]:
    """Return all objects of mirrored requests, and by id the image tasks they are of, as the ledger knows them."""
    objects: list[MirroredObject] = []
    tasks: dict[str, ImageTask] = {}
    for entry in entries:
        facts = entry.mirrored or {}
        tasks[entry.task_id] = ImageTask(
            entry.task_id, COMPLETED, created_at=facts.get("created_at"), updated_at=facts.get("updated_at")
        )
        for index, fact in enumerate(facts.get("objects", ())):
            pixels = Pixels(*fact["pixels"]) if fact["pixels"] else None
            objects.append(MirroredObject(task_id=entry.task_id, index=index, etag="", **{**fact, "pixels": pixels}))
    return objects, tasks


def _credits(entry: Entry) -> int:
    return entry.submission.credits if entry.submission else 0


def _unknown(entry: Entry) -> GptImgSubmissionUnknownError:
    return GptImgSubmissionUnknownError(
        f"It was submitted, and the outcome was not recorded: up to {_credits(entry)} credits may have been charged. "
        "Look into the vendor's transaction log; to submit such requests again, and only these, set "
        "on_unknown_submission='resubmit' and clear the task"
    )
