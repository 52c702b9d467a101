# SPDX-License-Identifier: Apache-2.0
"""The ledger of a batch: reads the facts of all attempts, and writes down those of this one."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.batch.entries import Book, Entry, Standing
from airflow_provider_gptimg.batch.facts import Fact, FactLog, Get, delivery_key, unreadable
from airflow_provider_gptimg.batch.first_release import read_pages
from airflow_provider_gptimg.exceptions import GptImgError, GptImgTaskFailedError
from airflow_provider_gptimg.journal.entries import REUSED, Submitted

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.api.tasks import ImageTask
    from airflow_provider_gptimg.batch.requests import BatchRequest
    from airflow_provider_gptimg.journal.attempt import Attempt
    from airflow_provider_gptimg.journal.reuse import Bought
    from airflow_provider_gptimg.journal.stores import Store
    from airflow_provider_gptimg.mirroring.mirror import MirroredObject

__all__ = ["Ledger", "read_entries"]

_PROMPT_SHOWN = 150
"""Characters of a prompt that are kept for people to know a request by."""
_FAILED_ALIKE = 16
"""Requests that one fact names as failed."""


def read_entries(get: Get, attempts: int, first_release: Get | None = None, max_tries: int = -1) -> list[Entry]:
    """Return the requests of a batch, for people to look at.

    :param get: Returns a value of the journal by key; None if there is none.
    :param attempts: Number of the last attempt.
    :param first_release: The same for the values that release 0.1 wrote.
    :raises GptImgSubmissionUnknownError: A value cannot be read.
    """
    return list(_read(get, attempts, first_release, max_tries)[0].entries.values())


def _read(get: Get, attempts: int, first_release: Get | None, max_tries: int) -> tuple[Book, list[FactLog]]:
    book, logs = Book(max_tries), []
    if first_release:
        facts, delivered = read_pages(first_release)
        for attempt, fact in facts:
            book.take(attempt, fact)
        if delivered:
            book.deliver(delivered)
    for attempt in range(1, attempts + 1):
        logs.append(FactLog(get, attempt))
        try:
            for fact in logs[-1].facts:
                book.take(attempt, fact)
            if attempt < attempts and (delivered := get(delivery_key(attempt))):
                book.deliver(delivered)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise unreadable(f"{attempt}.batch") from None
    return book, logs


class Ledger:
    """The entries of a batch, and the attempt that writes them down.

    :param store: Where the journal lives.
    :param conn_id: Part of a request's identity.
    :param try_number: Of this attempt; likewise `max_tries`.
    :param first_release: Returns a value that release 0.1 wrote, by key; None: there cannot be any.
    :raises GptImgSubmissionUnknownError: A value cannot be read.
    """

    def __init__(
        self, store: Store, conn_id: str, try_number: int, max_tries: int, first_release: Get | None = None
    ) -> None:
        self.try_number = try_number
        self.max_tries = max_tries
        self._store = store
        self._conn_id = conn_id
        self._book, self._logs = _read(store.get, try_number, first_release, max_tries)
        self._sent = sum("sent" in fact for fact in self._logs[-1].facts)
        self._unwritten: list[Fact] = []

    @classmethod
    def of(cls, attempt: Attempt, conn_id: str, context: Context) -> Ledger:
        """Return the ledger that an attempt of the batch reads and writes."""
        state: Any = context.get("task_state_store") if attempt.store.lasts else None
        return cls(attempt.store, conn_id, attempt.number, attempt.max_tries, state and state.get)

    @property
    def lasts(self) -> bool:
        """True if another process can read it."""
        return self._store.lasts

    def enter(self, requests: Sequence[BatchRequest]) -> list[Entry]:
        """Return the entry of each request, in their order; new ones are written with their submission."""
        fingerprints = [asked.request.fingerprint(self._conn_id) for asked in requests]
        known = self._known(Counter(fingerprints))
        occurrences: Counter[str] = Counter()
        entered = []
        for asked, fingerprint in zip(requests, fingerprints, strict=True):
            if known[fingerprint]:
                entry = known[fingerprint].pop(0)
            else:
                while (fingerprint, occurrences[fingerprint]) in self._book.entries:
                    occurrences[fingerprint] += 1
                entry = self._book.entry(fingerprint, occurrences[fingerprint])
            entry.asked = asked
            entry.prompt = _beginning(asked.request.prompt)
            entered.append(entry)
        return entered

    def _known(self, wanted: Mapping[str, int]) -> dict[str, list[Entry]]:
        """Return the entries of each fingerprint, in order; if fewer are wanted, those that have come furthest."""
        known: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._book.entries.values():
            known[entry.fingerprint].append(entry)
        for fingerprint, entries in known.items():
            entries.sort(key=lambda entry: entry.left_to_do)
            del entries[wanted.get(fingerprint, 0) :]
            entries.sort(key=lambda entry: entry.occurrence)
        return known

    @property
    def strays(self) -> list[Entry]:
        """Submitted requests that are not asked for any more."""
        return [entry for entry in self._book.entries.values() if entry.asked is None and entry.current is not None]

    @property
    def charged(self) -> int:
        """Credits that this attempt was charged, before refunds."""
        sent = (sent for entry in self._book.entries.values() for sent in entry.submissions if sent.task_id)
        return sum(sent.credits for sent in sent if sent.attempt == self.try_number)

    @property
    def lost(self) -> int:
        """Submits of this attempt whose outcome nobody knows."""
        sent = (sent for entry in self._book.entries.values() for sent in entry.submissions if sent.is_unknown)
        return sum(sent.attempt == self.try_number for sent in sent)

    def standing(self, entry: Entry, on_unknown: str) -> Standing:
        """Return what this attempt has to do for a request."""
        return entry.standing(self.try_number, on_unknown)

    def intend(self, entries: Iterable[Entry]) -> dict[Entry, int]:
        """Write down, before their POSTs, that requests are submitted; return the number of each POST."""
        numbers = {}
        for entry in entries:
            self._sent += 1
            numbers[entry] = self._sent
            sent = Submitted(
                f"{self.try_number}.{self._sent}",
                entry.fingerprint,
                entry.request.credits,
                time.time(),
                self.max_tries,
                tuple(unknown.name for unknown in entry.plan.unknown),
                conn_id=self._conn_id,
            )
            self._note({"sent": self._sent, "occurrence": entry.occurrence, "prompt": entry.prompt, **sent.intent()})
        try:
            self.write()
        except BaseException:
            # The write may be executed yet.
            for number in numbers.values():
                self.refuse(number, "not sent")
            with suppress(Exception):
                self.write()
            raise
        return numbers

    def reuse(self, entry: Entry, bought: Bought) -> None:
        """Note that a request needs no POST, since another task has paid for the same one."""
        saved = Submitted(
            REUSED, entry.fingerprint, entry.request.credits, time.time(), self.max_tries, conn_id=self._conn_id
        )
        self._note(
            {
                REUSED: bought.as_dict(),
                "task_id": bought.task_id,
                "submitted_at": bought.at,
                "occurrence": entry.occurrence,
                "prompt": entry.prompt,
                **saved.intent(),
            }
        )

    def accept(self, number: int, task_id: str) -> None:
        """Note that a POST was accepted."""
        self._note({"outcome": number, "task_id": task_id})

    def refuse(self, number: int, why: str, *, api_failed: bool = False) -> None:
        """Note that a POST certainly was not accepted, or was not sent.

        :param api_failed: It counts among the times that the API failed at this request's submit.
        """
        self._note({"outcome": number, "refused": why, **({"api_failed": True} if api_failed else {})})

    def mirror(self, entry: Entry, task: ImageTask, objects: Iterable[MirroredObject]) -> None:
        """Note where the images are now."""
        facts = [
            {
                "bucket": mirrored.bucket,
                "key": mirrored.key,
                "content_type": mirrored.content_type,
                "size": mirrored.size,
                "sha256": mirrored.sha256,
                "pixels": list(mirrored.pixels) if mirrored.pixels else None,  # Airflow's JSON has no tuples
                "source_url": mirrored.source_url,
                "skipped": mirrored.skipped,
                "c2pa": mirrored.c2pa,
            }
            for mirrored in objects
        ]
        of_task = {"model": task.model, "created_at": task.created_at, "updated_at": task.updated_at}
        known = {**of_task, "objects": facts}
        self._note({"task_id": entry.task_id, "objects": known})

    def lose(self, entry: Entry) -> None:
        """Note that the images are not in S3 any more."""
        self._note({"task_id": entry.task_id, "objects": None})

    def refund(self, entry: Entry) -> None:
        """Note that the generation failed, which costs nothing."""
        self._note({"refunded": entry.task_id})

    def fail(self, entries: Sequence[Entry], error: GptImgError) -> None:
        """Note the error that ended requests in this attempt, or kept them from being submitted."""
        fact = error.as_dict()
        failed = {**fact, "message": fact["message"][:500], "last_status": getattr(error, "last_status", None)}
        for start in range(0, len(entries), _FAILED_ALIKE):
            some = entries[start : start + _FAILED_ALIKE]
            requests = [[entry.fingerprint, entry.occurrence, entry.prompt] for entry in some]
            self._note({"failed": failed, "requests": requests})
        if isinstance(error, GptImgTaskFailedError):
            for entry in filter(lambda entry: entry.task_id, entries):
                self.refund(entry)

    def write(self) -> None:
        """Write all notes down."""
        if self._unwritten:
            facts, self._unwritten = self._unwritten, []
            self._logs[-1].append(self._store, facts)

    def deliver(self) -> None:
        """Note that Airflow has recorded the batch as a success: from now on, clearing it means "make new ones"."""
        passed_over = [entry.task_id for entry in self.strays if entry.objects is not None]
        note = {"max_tries": self.max_tries, "passed_over": passed_over}
        if self._store.forgets and not any(self._is_owed(entry) for entry in self._book.entries.values()):
            for log in reversed(self._logs):  # the latest first: what is left, should this end, is still in order
                for key in (*reversed(log.keys), delivery_key(log.attempt), f"{log.attempt}.begun"):
                    self._store.delete(key)
        else:
            self._store.put(delivery_key(self.try_number), note)

    def _is_owed(self, entry: Entry) -> bool:
        """Return whether something is paid for, or may be, that this batch did not deliver."""
        return entry.current is not None and (entry.asked is None or entry.objects is None)

    def _note(self, fact: Fact) -> None:
        self._book.take(self.try_number, fact)
        self._unwritten.append(fact)


def _beginning(prompt: str) -> str:
    return prompt if len(prompt) <= _PROMPT_SHOWN else f"{prompt[:_PROMPT_SHOWN]}…"
