# SPDX-License-Identifier: Apache-2.0
"""What became of each request of a batch, kept in the task instance's state so that no attempt pays twice.

A request is known by its fingerprint, and by how many equal ones stand before it: a list in another order is the same
batch. A get from the state store takes about 13 ms and a set 21 ms, so records stand together in pages.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    from_dict,
)
from airflow_provider_gptimg.submission import Decision, SubmissionRecord, decide

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.api.tasks import ImageTask
    from airflow_provider_gptimg.batch.requests import BatchRequest
    from airflow_provider_gptimg.mirroring.mirror import MirroredObject

__all__ = ["HEADER_KEY", "PAGE_SIZE", "Entry", "Ledger", "Standing", "page_key"]

HEADER_KEY = "gptimg_batch"
PAGE_SIZE = 16
"""Requests whose records stand in one value: with four images each, below the 64 KB that Airflow wants of a value."""

_VERSION = 1
_PROMPT_SHOWN = 150
"""Characters of a prompt that are kept for people to know a request by."""


def page_key(page: int) -> str:
    """Return the key of a page in the state store."""
    return f"{HEADER_KEY}_{page}"


class Standing(Enum):
    """How a request stands in this attempt."""

    PENDING = "to be submitted"
    IN_FLIGHT = "submitted"
    MIRRORED = "mirrored"
    FAILED = "failed in this attempt"
    UNKNOWN = "submitted, and nobody knows the outcome"


@dataclass(eq=False)
class Entry:
    """One request's record.

    :param occurrence: Number of equal requests before this one.
    :param submission: As of a single submission; None: there is none that counts.
    :param submitted_by: Number of the attempt that submitted it.
    :param mirrored: When the API made its images, and facts of their objects in S3, in the images' order.
    :param refusals: Times that the API failed at its submit in attempt `refused_by`.
    :param prompt: How its prompt begins; empty where that was not kept.
    :param passed_over: `max_tries` when the batch last succeeded without asking for it; None: it never did.
    :param asked: The request; None: it is not asked for any more.
    :param error: What ended it in attempt `failed_by`, as :meth:`GptImgError.as_dict`. Another attempt forgets it.
    """

    fingerprint: str
    occurrence: int
    page: int
    submission: SubmissionRecord | None = None
    submitted_by: int = 0
    mirrored: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    failed_by: int = 0
    refusals: int = 0
    refused_by: int = 0
    prompt: str = ""
    passed_over: int | None = None
    asked: BatchRequest | None = None

    @property
    def task_id(self) -> str:
        """The id of its image task; empty if none is known."""
        return (self.submission and self.submission.task_id) or ""

    @property
    def is_refunded(self) -> bool:
        """Whether its generation failed, which costs nothing."""
        return isinstance(from_dict(self.error or {}), GptImgTaskFailedError)

    @property
    def left_to_do(self) -> int:
        """How far it is from done: least if mirrored, more if paid for, then if perhaps paid for, most if not."""
        if self.mirrored:
            return 0
        if self.submission is None or self.is_refunded:
            return 3
        return 1 if self.task_id else 2

    @property
    def place(self) -> str:
        """The key of its page in the state store."""
        return page_key(self.page)

    @property
    def name(self) -> str:
        """How a person finds it."""
        return self.asked.name if self.asked else f"a request that is not asked for any more, in {self.place!r}"

    @property
    def request(self) -> ImageRequest:
        """What is asked for."""
        assert self.asked is not None  # noqa: S101 - a record that is not asked for is not worked on
        return self.asked.request

    def standing(self, max_tries: int, try_number: int, on_unknown: str) -> Standing:
        """Return how the request stands.

        :param max_tries: Of the task instance, now; likewise `try_number`.
        :param on_unknown: `fail` or `resubmit`.
        """
        if self.error is not None and self.failed_by == try_number:
            return Standing.FAILED
        decision = decide(self.submission, self.fingerprint, max_tries, on_unknown)
        if decision is Decision.STOP:
            return Standing.UNKNOWN
        if decision is Decision.SUBMIT_UNKNOWN and self.submitted_by == try_number:
            return Standing.UNKNOWN  # it is for the next attempt to submit again
        if decision is not Decision.TAKE_UP:
            return Standing.PENDING
        return Standing.IN_FLIGHT if self.mirrored is None else Standing.MIRRORED

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        fields: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "occurrence": self.occurrence,
            "prompt": self.prompt,
        }
        if self.submission is not None:
            fields |= {name: value for name, value in self.submission.to_json().items() if value is not None}
            fields |= {"submitted_by": self.submitted_by}
        if self.mirrored is not None:
            fields |= {"mirrored": self.mirrored}
        if self.error is not None:
            fields |= {"error": self.error, "failed_by": self.failed_by}
        if self.passed_over is not None:
            fields |= {"passed_over": self.passed_over}
        if self.refusals:
            fields |= {"refusals": self.refusals, "refused_by": self.refused_by}
        return fields

    @classmethod
    def from_json(cls, value: Mapping[str, Any], page: int, delivered_max_tries: int | None) -> Entry:
        """Return the record that `value` holds.

        :param delivered_max_tries: `max_tries` when the batch last succeeded; later submissions were not part of it.
        """
        submission = SubmissionRecord.from_json(value) if "submitted_at" in value else None
        mirrored, passed_over = value.get("mirrored"), value.get("passed_over")
        delivered = -1 if delivered_max_tries is None else delivered_max_tries
        was_asked_for = passed_over is None or passed_over < delivered
        if submission and mirrored and submission.max_tries <= delivered and was_asked_for:
            submission = replace(submission, delivered_max_tries=delivered)
        return cls(
            fingerprint=str(value.get("fingerprint")),
            occurrence=value.get("occurrence", 0),
            page=page,
            submission=submission,
            submitted_by=value.get("submitted_by", 0),
            mirrored=mirrored,
            error=value.get("error"),
            failed_by=value.get("failed_by", 0),
            refusals=value.get("refusals", 0),
            refused_by=value.get("refused_by", 0),
            prompt=str(value.get("prompt", "")),
            passed_over=passed_over,
        )


class Ledger:
    """The records of a batch, and the attempt that keeps them.

    :param context: Airflow's task context. Without a state store (before Airflow 3.3) they last as long as this object.
    :param conn_id: Part of a request's identity.
    """

    def __init__(self, context: Context, conn_id: str) -> None:
        ti: Any = context.get("ti")
        store = context.get("task_state_store")
        self.lasts = store is not None
        self.max_tries = int(getattr(ti, "max_tries", 0) or 0)
        self.try_number = int(getattr(ti, "try_number", 1) or 1)
        self._store: Any = store if store is not None else _Memory()
        self._conn_id = conn_id
        self._pages: list[list[Entry]] = []
        self._announced = 0
        self._with_room = 0
        """The first page that may have room for another record."""
        self._delivered_max_tries: int | None = None
        self._read()

    def enter(self, requests: Sequence[BatchRequest]) -> list[Entry]:
        """Return the record of each request, in their order; new ones are made, and written with the first change."""
        fingerprints = [asked.request.fingerprint(self._conn_id) for asked in requests]
        known = self._known(Counter(fingerprints))
        seen: Counter[str] = Counter()
        entered = []
        for asked, fingerprint in zip(requests, fingerprints, strict=True):
            entry = known[fingerprint].pop(0) if known[fingerprint] else self._new(fingerprint, seen[fingerprint])
            entry.asked = asked
            entry.prompt = _beginning(asked.request.prompt)
            seen[fingerprint] += 1
            entered.append(entry)
        return entered

    def _known(self, wanted: Mapping[str, int]) -> dict[str, list[Entry]]:
        """Return the records of each fingerprint, in order; if fewer are wanted, those that have come furthest."""
        known: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._entries:
            known[entry.fingerprint].append(entry)
        for fingerprint, entries in known.items():
            entries.sort(key=lambda entry: entry.left_to_do)
            del entries[wanted.get(fingerprint, 0) :]
            entries.sort(key=lambda entry: entry.occurrence)
        return known

    @property
    def strays(self) -> list[Entry]:
        """The records of submits whose requests are not asked for any more."""
        return [entry for entry in self._entries if entry.asked is None and entry.submission is not None]

    def standing(self, entry: Entry, on_unknown: str) -> Standing:
        """Return how a request stands in this attempt."""
        return entry.standing(self.max_tries, self.try_number, on_unknown)

    def intend(self, entry: Entry) -> None:
        """Note, before the POST, that a request is submitted; written by the next :meth:`write`."""
        entry.submission = SubmissionRecord(entry.fingerprint, entry.request.credits, time.time(), self.max_tries)
        entry.submitted_by = self.try_number
        entry.mirrored = entry.error = None

    def accept(self, entry: Entry, task_id: str) -> None:
        """Note that an intended submit was accepted; written by the next :meth:`write`."""
        assert entry.submission is not None  # noqa: S101 - as intended
        entry.submission = replace(entry.submission, task_id=task_id)
        entry.refusals = 0

    def refuse(self, entry: Entry) -> int:
        """Note that the API failed at a submit; return how often in this attempt. Written by the next :meth:`write`."""
        entry.refusals = entry.refusals + 1 if entry.refused_by == self.try_number else 1
        entry.refused_by = self.try_number
        return entry.refusals

    def mirror(self, entry: Entry, task: ImageTask, objects: Iterable[MirroredObject]) -> None:
        """Note where the images are now; written by the next :meth:`write`."""
        entry.mirrored = {
            "created_at": task.created_at,
            "updated_at": task.updated_at,
            "objects": [
                {
                    "bucket": mirrored.bucket,
                    "key": mirrored.key,
                    "content_type": mirrored.content_type,
                    "size": mirrored.size,
                    "sha256": mirrored.sha256,
                    "pixels": list(mirrored.pixels) if mirrored.pixels else None,  # a tuple is no JSON to Airflow
                    "source_url": mirrored.source_url,
                    "skipped": mirrored.skipped,
                }
                for mirrored in objects
            ],
        }

    def fail(self, entry: Entry, error: GptImgError) -> None:
        """Note what ended a request in this attempt; written by the next :meth:`write`."""
        fact = error.as_dict()
        entry.error = {**fact, "message": fact["message"][:500]}
        entry.failed_by = self.try_number

    def write(self, entries: Iterable[Entry]) -> None:
        """Write the pages that hold these records."""
        pages = sorted({entry.page for entry in entries})
        if pages and pages[-1] >= self._announced:
            # Not all there are: what is not written, the next attempt would take for empty pages.
            self._announced = pages[-1] + 1
            self._write_header()
        for page in pages:
            self._set(page_key(page), [entry.to_json() for entry in self._pages[page]])

    def deliver(self) -> None:
        """Note that the batch succeeded: from now on, clearing the task means "make new ones"."""
        passed_over = [
            entry
            for entry in self.strays
            if entry.mirrored and entry.submission and entry.submission.delivered_max_tries is None
        ]
        for entry in passed_over:
            entry.passed_over = self.max_tries
        self.write(passed_over)
        self._delivered_max_tries = self.max_tries
        self._write_header()

    def _write_header(self) -> None:
        header: dict[str, Any] = {"version": _VERSION, "pages": self._announced}
        if self._delivered_max_tries is not None:
            header["delivered_max_tries"] = self._delivered_max_tries
        self._set(HEADER_KEY, header)

    @property
    def _entries(self) -> Iterable[Entry]:
        return (entry for page in self._pages for entry in page)

    def _new(self, fingerprint: str, occurrence: int) -> Entry:
        while self._with_room < len(self._pages) and len(self._pages[self._with_room]) >= PAGE_SIZE:
            self._with_room += 1
        if self._with_room == len(self._pages):
            self._pages.append([])
        entry = Entry(fingerprint, occurrence, page=self._with_room)
        self._pages[entry.page].append(entry)
        return entry

    def _read(self) -> None:
        header = self._store.get(HEADER_KEY)
        if header is None:
            return
        if not isinstance(header, Mapping) or not isinstance(header.get("pages"), int):
            raise _unreadable(HEADER_KEY)
        self._delivered_max_tries = header.get("delivered_max_tries")
        self._announced = header["pages"]
        for page in range(self._announced):
            values = self._store.get(page_key(page), [])
            if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
                raise _unreadable(page_key(page))
            self._pages.append([Entry.from_json(value, page, self._delivered_max_tries) for value in values])

    def _set(self, key: str, value: Any) -> None:
        if self.lasts:
            from airflow_provider_gptimg.airflow_compat import NEVER_EXPIRE

            # Kept as long as its DAG run: an expired record would let a retry pay again.
            self._store.set(key, value, retention=NEVER_EXPIRE)


def _beginning(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT_SHOWN else f"{prompt[:_PROMPT_SHOWN]}…"


class _Memory:
    """No state store."""

    def get(self, key: str, default: Any = None) -> Any:
        return default


def _unreadable(key: str) -> GptImgSubmissionUnknownError:
    return GptImgSubmissionUnknownError(
        f"The record {key!r} in the task instance's state is not what this release writes, so what was paid for cannot "
        "be known. Restore it, or delete all records gptimg_batch… (in Airflow's UI under Storage) to submit all anew"
    )
