# SPDX-License-Identifier: Apache-2.0
"""The requests of a batch, with all that attempts did about each, so that none is paid for twice.

A request is identified by its fingerprint and its index among identical requests: a list in another order is the same
batch. Attempts write facts (an intent before a POST, its outcome after it, objects in S3); replayed, they are entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.batch.facts import Fact
from airflow_provider_gptimg.exceptions import GptImgContentPolicyError, GptImgTaskFailedError
from airflow_provider_gptimg.journal.entries import REUSED, Decision, Plan, Submitted, decide

if TYPE_CHECKING:
    from airflow_provider_gptimg.batch.requests import BatchRequest

__all__ = ["Book", "Entry", "Standing"]


class Standing(Enum):
    """The state of a request in this attempt."""

    PENDING = "to be submitted"
    IN_FLIGHT = "submitted"
    MIRRORED = "mirrored"
    FAILED = "failed in this attempt"
    UNKNOWN = "submitted, and nobody knows the outcome"


@dataclass(eq=False)
class Entry:
    """One request of a batch.

    :param occurrence: Its index among identical requests.
    :param prompt: How its prompt begins; empty where that was not kept.
    :param submissions: In the order of attempts and POSTs.
    :param mirrored: By image task: when the API made its images, and facts of their objects in S3, in order.
    :param refunded: Image tasks whose generation failed.
    :param asked: The request; None: it is not asked for any more.
    :param error: What ended it in attempt `failed_by`, as :meth:`GptImgError.as_dict`. Another attempt forgets it,
        unless what the request asks for was refused.
    :param refusals: Times that the API failed at its submit in attempt `refused_by`.
    :param max_tries: Of the task instance, now: a higher one than at a delivery says that a person cleared it since.
    """

    fingerprint: str
    occurrence: int
    prompt: str = ""
    submissions: list[Submitted] = field(default_factory=list)
    mirrored: dict[str, dict[str, Any]] = field(default_factory=dict)
    refunded: set[str] = field(default_factory=set)
    asked: BatchRequest | None = None
    error: dict[str, Any] | None = None
    failed_by: int = 0
    refusals: int = 0
    refused_by: int = 0
    max_tries: int = 0

    @property
    def plan(self) -> Plan:
        """The submissions that are paid for, and those that may be. What was refunded is not paid for."""
        known = [replace(sent, delivered=-1) if sent.task_id in self.refunded else sent for sent in self.submissions]
        return decide(known, self.fingerprint, self.max_tries, "fail")

    @property
    def current(self) -> Submitted | None:
        """The submission that counts: one that is paid for, else one that may be; None: none does."""
        plan = self.plan
        in_s3 = [sent for sent in plan.paid if sent.task_id in self.mirrored]
        return next(iter([*in_s3, *plan.paid, *reversed(plan.unknown)]), None)

    @property
    def task_id(self) -> str:
        """The id of its image task; empty if none counts."""
        current = self.current
        return (current and current.task_id) or ""

    @property
    def objects(self) -> dict[str, Any] | None:
        """Facts of its images in S3; None: they are not there."""
        return self.mirrored.get(self.task_id)

    @property
    def left_to_do(self) -> int:
        """Sort key: 0 mirrored, 1 paid for, 2 outcome unknown, 3 not submitted."""
        current = self.current
        if current is None:
            return 3
        if not current.task_id:
            return 2
        return 0 if current.task_id in self.mirrored else 1

    @property
    def name(self) -> str:
        """Its place in the list, for people."""
        return self.asked.name if self.asked else f"a request that is not asked for any more ({self.prompt!r:.80})"

    @property
    def request(self) -> ImageRequest:
        """The request itself."""
        assert self.asked is not None  # noqa: S101 - a request that is not asked for is not worked on
        return self.asked.request

    @property
    def _is_refused(self) -> bool:
        """True if what it asks for was refused, and no person has cleared the task since."""
        is_policy = (self.error or {}).get("type") == GptImgContentPolicyError.__name__
        return is_policy and bool(self.submissions) and self.submissions[-1].max_tries >= self.max_tries

    def may_be_sent_again(self, error: GptImgTaskFailedError, attempt: int) -> bool:
        """Return whether an attempt may submit the request again, whose generation failed."""
        sent = self.current
        if sent is None:
            return True
        if isinstance(error, GptImgContentPolicyError):  # refused for good, unless a person cleared the task since
            return sent.max_tries < self.max_tries
        return sent.attempt < attempt

    def standing(self, attempt: int, on_unknown: str) -> Standing:
        """Return what an attempt has to do for the request.

        :param on_unknown: `fail` or `resubmit`.
        """
        if self.error is not None and (self.failed_by == attempt or self._is_refused):
            return Standing.FAILED
        plan = self.plan
        if plan.decision is Decision.TAKE_UP:
            return Standing.IN_FLIGHT if self.objects is None else Standing.MIRRORED
        # What this attempt has lost, only the next one submits again.
        if plan.unknown and (on_unknown != "resubmit" or any(sent.attempt == attempt for sent in plan.unknown)):
            return Standing.UNKNOWN
        return Standing.PENDING


class Book:
    """Entries, as the facts of all attempts make them."""

    def __init__(self, max_tries: int) -> None:
        self.entries: dict[tuple[str, int], Entry] = {}
        self._max_tries = max_tries
        self._by_submission: dict[str, Entry] = {}
        self._by_task: dict[str, Entry] = {}

    def entry(self, fingerprint: str, occurrence: int, prompt: str = "") -> Entry:
        """Return a request's entry, a new one if there is none."""
        entry = self.entries.setdefault(
            (fingerprint, occurrence), Entry(fingerprint, occurrence, max_tries=self._max_tries)
        )
        entry.prompt = prompt or entry.prompt
        return entry

    def take(self, attempt: int, fact: Fact) -> None:
        """Take in what an attempt wrote down."""
        if REUSED in fact:
            sent = Submitted.read(f"{attempt}.{REUSED}.{fact['task_id']}", fact, fact)
            entry = self.entry(sent.fingerprint, fact.get("occurrence", 0), fact.get("prompt", ""))
            entry.submissions.append(replace(sent, credits=0, at=fact["submitted_at"]))
            entry.error = None
            self._by_task[fact["task_id"]] = entry
        elif "sent" in fact:
            sent = Submitted.read(f"{attempt}.{fact['sent']}", fact)
            entry = self.entry(sent.fingerprint, fact.get("occurrence", 0), fact.get("prompt", ""))
            entry.submissions.append(sent)
            entry.error = None
            self._by_submission[sent.name] = entry
        elif "outcome" in fact:
            name = f"{attempt}.{fact['outcome']}"
            entry = self._by_submission[name]
            entry.submissions = [
                Submitted.read(name, sent.intent(), fact) if sent.name == name else sent for sent in entry.submissions
            ]
            if task_id := fact.get("task_id"):
                self._by_task[task_id] = entry
            elif fact.get("api_failed"):
                entry.refusals = entry.refusals + 1 if entry.refused_by == attempt else 1
                entry.refused_by = attempt
        elif "objects" in fact:
            # Of an image task that was delivered and deleted, a late write may still bring news.
            if (found := self._by_task.get(fact["task_id"])) is not None:
                found.mirrored.pop(fact["task_id"], None)
                if fact["objects"] is not None:
                    found.mirrored[fact["task_id"]] = fact["objects"]
        elif "refunded" in fact:
            if (found := self._by_task.get(fact["refunded"])) is not None:
                found.refunded.add(fact["refunded"])
        else:
            for fingerprint, occurrence, prompt in fact["requests"]:
                entry = self.entry(fingerprint, occurrence, prompt)
                entry.error, entry.failed_by = fact["failed"], attempt

    def deliver(self, note: Mapping[str, Any]) -> None:
        """Take in that an attempt ended as a success: it delivered what was in S3 then, and asked for."""
        passed_over = set(note["passed_over"])
        for entry in self.entries.values():
            entry.submissions = [
                replace(sent, delivered=note["max_tries"])
                if sent.task_id in entry.mirrored and sent.task_id not in passed_over
                else sent
                for sent in entry.submissions
            ]
