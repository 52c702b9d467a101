# SPDX-License-Identifier: Apache-2.0
"""Reuse: an index in the journal in S3 that says what was bought for each request, and who is buying right now.

A request's folder has an entry for each image task that was accepted for it, and leases. A task that wants to reuse and
finds nothing takes a lease before it pays. If several ask at once, one pays, and the others wait for its image task.
The index never decides whether a task instance may submit: only the journal does.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.journal.attempt import Attempt
from airflow_provider_gptimg.journal.stores import S3Store

__all__ = ["LEASE", "PAUSE", "Bought", "Found", "Lease", "LeaseOverError", "Purchases", "Reuse"]

REQUESTS = "requests"
"""Folder of the index."""
LEASE = 60.0
"""Seconds that a task has for its submit before another one that asks for the same may pay."""
_LONGEST_WAIT = 3 * LEASE
PAUSE = 1.0
"""Seconds between two looks at who is buying."""
_TRIED = 5
"""Image tasks of a request, the latest first, that are looked at."""

_PAID = re.compile(r"paid\.([0-9]{15})\.(.+)")
_LEASE = re.compile(r"lease\.([0-9]{1,9})")

There = TypeVar("There")


class LeaseOverError(Exception):
    """The submit took too long: another task may have paid for the same request."""


@dataclass(frozen=True)
class Bought:
    """An image task that some task has paid for.

    :param at: When it was submitted, in Unix seconds.
    :param created_at: When the API accepted it, as the API wrote it.
    :param by: The task instance that paid: `dag_id`, `run_id`, `task_id` and `map_index`.
    """

    task_id: str
    at: float
    created_at: str | None
    by: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return it as `reused_from`."""
        return {
            "task_id": self.task_id,
            "submitted_at": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds"),
            "dag_id": self.by.get("dag_id"),
            "run_id": self.by.get("run_id"),
            "airflow_task_id": self.by.get("task_id"),
            "map_index": self.by.get("map_index"),
        }


@dataclass(frozen=True)
class Found(Generic[There]):
    """A purchase whose images are still there.

    :param there: What `look` returned for it, see :meth:`Purchases.find`.
    """

    bought: Bought
    there: There


@dataclass(frozen=True)
class Reuse:
    """The arguments `reuse` and `generation` of an operator, checked.

    :param max_age: Seconds since the submission; None: any age.
    """

    is_wanted: bool
    max_age: float | None
    generation: str

    @classmethod
    def check(cls, reuse: Any, generation: Any, attempt: Attempt) -> Reuse:
        """Return what the arguments say.

        :raises GptImgRequestError: One of them is wrong, or the journal is not in S3, where tasks share it.
        """
        max_age = reuse.total_seconds() if isinstance(reuse, timedelta) else None
        if not (reuse is None or isinstance(reuse, bool | timedelta)) or (max_age is not None and max_age <= 0):
            raise GptImgRequestError(
                f"reuse={reuse!r:.80} is neither True nor False nor a timedelta above 0, such as timedelta(days=30)"
            )
        if not (generation is None or isinstance(generation, str | int)) or isinstance(generation, bool):
            raise GptImgRequestError(f"generation={generation!r:.80} is not a text, such as '2026-12'")
        if reuse and not isinstance(attempt.store, S3Store):
            raise GptImgRequestError(
                f"reuse={reuse!r:.80} needs a journal that all tasks share. Set [gptimg] journal in Airflow's "
                "configuration to a place in S3, for example AIRFLOW__GPTIMG__JOURNAL=s3://my-bucket/gptimg-journal. "
                "Nothing was sent"
            )
        return cls(bool(reuse), max_age, "" if generation is None else str(generation).strip())

    def purchases(self, attempt: Attempt, request: ImageRequest, occurrence: int = 0) -> Purchases | None:
        """Return what is known of a request's purchases; None: tasks do not share a journal.

        :param occurrence: Its index among identical requests of a batch. Each of them gets its own images.
        """
        store = attempt.store
        if not isinstance(store, S3Store):
            return None
        key = json.dumps([request.fingerprint(""), self.generation, occurrence])
        return Purchases(store.beside(f"{REQUESTS}/{_hash(key)}"), key, self.max_age)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class Lease:
    """The right to pay for a request."""

    def __init__(self, store: S3Store, name: str, until: float) -> None:
        self._store = store
        self._name = name
        self._until = until

    @property
    def is_over(self) -> bool:
        """True if another task may pay."""
        return time.time() >= self._until

    def check(self) -> None:
        """Check, right before a submit, that no other task may pay.

        :raises LeaseOverError: One may.
        """
        if self.is_over:
            raise LeaseOverError

    def release(self) -> None:
        """Let other tasks continue at once. If that fails, they continue when the lease is over."""
        try:
            self._store.put(f"{self._name}.over", {})
        except Exception:
            return


class Purchases:
    """The purchases that tasks made for one request.

    :param store: The request's folder in the index.
    :param key: Identifies the request. The index does not hold it, so only who knows the request can make an entry.
    :param max_age: Seconds since the submission; None: any age.
    """

    def __init__(self, store: S3Store, key: str, max_age: float | None) -> None:
        self._store = store
        self._key = key
        self._max_age = max_age
        self._waits_since: dict[str, float] = {}

    def publish(self, task_id: str, at: float, created_at: str | None, log: Any) -> None:
        """Let others know of an image task that was accepted. It never fails: others would pay themselves."""
        try:
            name = f"paid.{at * 1000:015.0f}.{task_id}"
            self._store.put(name, {"at": at, "created_at": created_at, "proof": self._proof(name)})
        except Exception as error:
            log.warning("Image task %s cannot be reused by other tasks: %s", task_id, error)

    def find(self, look: Callable[[Bought], There | None]) -> Found[There] | Lease | None:
        """Return what may be reused, or else a lease to pay; None: another task is about to pay.

        :param look: Returns what there is of an image task's images; None: they are not there.
        :raises GptImgError: The journal cannot be read or written, or `look` fails.
        """
        names = self._store.list()
        if (found := self._find_in(names, look)) is not None:
            return found
        last = max((int(lease[1]) for lease in map(_LEASE.fullmatch, names) if lease), default=0)
        is_open = bool(last) and f"lease.{last}.over" not in names
        if is_open and not self._is_over(f"lease.{last}"):
            return None
        until = time.time() + LEASE
        name = f"lease.{last + 1}"
        if not self._store.put(name, {"until": until}):
            return None
        lease = Lease(self._store, name, until)
        if is_open and (found := self._find_in(self._store.list(), look)) is not None:
            lease.release()  # whoever had the last one has bought something just now
            return found
        return lease

    def obtain(
        self, look: Callable[[Bought], There | None], pause: Callable[[float], None], log: Any
    ) -> Found[There] | Lease | None:
        """Find as :meth:`find` does, and wait while another task is about to pay; None: that took too long, so pay.

        :param pause: Waits for a number of seconds.
        """
        waited = 0.0
        while (found := self.find(look)) is None and waited < _LONGEST_WAIT:
            if not waited:
                log.info("Another task submits the same request right now: waiting up to %.0f s for it", LEASE)
            pause(PAUSE)
            waited += PAUSE
        return found

    def _find_in(self, names: set[str], look: Callable[[Bought], There | None]) -> Found[There] | None:
        for name in sorted(filter(_PAID.fullmatch, names), reverse=True)[:_TRIED]:
            _, moment, task_id = name.split(".", 2)
            at = int(moment) / 1000
            if self._max_age is not None and time.time() - at > self._max_age:
                return None
            entry = self._store.get_signed(name) or {}
            if entry.get("proof") != self._proof(name):
                continue
            writer, created_at = entry.get("writer"), entry.get("created_at")
            bought = Bought(
                task_id,
                at,
                created_at if isinstance(created_at, str) else None,
                writer if isinstance(writer, Mapping) else {},
            )
            if (there := look(bought)) is not None:
                return Found(bought, there)
        return None

    def _proof(self, name: str) -> str:
        return _hash(f"{name} {self._key}")

    def _is_over(self, lease: str) -> bool:
        """Return whether a lease is over by its own word, or has been seen for as long as a lease lasts."""
        now = time.time()
        if now - self._waits_since.setdefault(lease, now) >= LEASE:
            return True
        until = (self._store.get(lease) or {}).get("until")
        return not isinstance(until, int | float) or now >= until
