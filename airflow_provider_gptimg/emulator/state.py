# SPDX-License-Identifier: Apache-2.0
"""State of the emulated service: users, their credits, and the image tasks they pay for. No HTTP here."""

from __future__ import annotations

import copy
import heapq
import random
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.emulator.pictures import CONTENT_TYPES
from airflow_provider_gptimg.emulator.tasks import (
    CREDITS_PER_IMAGE,
    LedgerEntry,
    Picture,
    Task,
    new_pictures,
    new_task_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["InsufficientCreditsError", "State", "UnknownTaskError", "poll_schedule"]

GENERATION_FAILED = {"code": "GENERATION_FAILED", "message": "The image could not be generated."}


class InsufficientCreditsError(Exception):
    """The user's balance is lower than the price; nothing was charged."""


class UnknownTaskError(KeyError):
    """The task does not exist, or belongs to another user."""


def poll_schedule(speed: float) -> dict[str, float]:
    """Return the extra of a connection that polls as many times faster, but leaves Airflow a second to defer a task.

    :raises ValueError: `speed` is not above 0.
    """
    _check_speed(speed)
    return {"first_poll_after": 39.5 / speed, "poll_interval": max(1.0, 5 / speed)}


def _check_speed(speed: float) -> None:
    if not speed > 0:
        raise ValueError(f"speed must be above 0, not {speed!r}")


class State:
    """Users, tasks and the ledger; each method is atomic, from whatever thread it is called.

    A task that ends by the clock does so at its due moment, whether or not anybody asks: every method first
    settles what has fallen due, so no balance is read without the refunds it should hold.
    """

    def __init__(
        self,
        *,
        api_key: str,
        credits: int,
        durations: tuple[float, float],
        speed: float = 1.0,
        fail_rate: float = 0.0,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 <= durations[0] <= durations[1]:
            raise ValueError(f"durations must be (shortest, longest) in seconds, not {durations!r}")
        _check_speed(speed)
        if not 0 <= fail_rate <= 1:
            raise ValueError(f"fail_rate must be from 0 to 1, not {fail_rate!r}")
        self._start = (api_key, credits)
        self._durations = durations
        self._speed = speed
        self._fail_rate = fail_rate
        self._seed = seed
        self._clock = clock
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Forget all that happened; reset the key, the balance and the random numbers."""
        with self._lock:
            api_key, credits = self._start
            self._random = random.Random(self._seed)  # noqa: S311 -- nothing here is secret
            self._users_by_key = {api_key: "default"}
            self._balances = {"default": credits}
            self._tasks: dict[str, Task] = {}
            self._pictures: dict[str, tuple[Task, Picture]] = {}
            self._ledger: list[LedgerEntry] = []
            self._due: list[tuple[float, int, Task]] = []
            self._sequence = count()

    def add_key(self, key: str, credits: int, user: str) -> None:
        """Give the user another key; a user not known so far starts with `credits`."""
        with self._lock:
            self._users_by_key[key] = user
            self._balances.setdefault(user, credits)

    def revoke_key(self, key: str) -> None:
        """Make the key unknown from now on; raise `KeyError` when it is already."""
        with self._lock:
            del self._users_by_key[key]

    def user_of(self, key: str) -> str | None:
        """Return whose key it is, or None."""
        return self._users_by_key.get(key)

    def balance(self, user: str) -> int:
        """Return the user's credits; raise `KeyError` for an unknown user."""
        with self._lock:
            self._settle()
            return self._balances[user]

    def set_balance(self, credits: int, user: str) -> None:
        """Set a known user's credits, without a ledger entry."""
        with self._lock:
            self._settle()
            if user not in self._balances:
                raise KeyError(user)
            self._balances[user] = credits

    @property
    def ledger(self) -> list[LedgerEntry]:
        """All charges and refunds, in order."""
        with self._lock:
            self._settle()
            return list(self._ledger)

    def submit(
        self,
        user: str,
        *,
        prompt: str,
        n: int = 1,
        request: Mapping[str, Any] | None = None,
        aspect_ratio: str | None = None,
        with_references: bool = False,
        fails: bool = False,
        error: str | dict[str, Any] | None = None,
    ) -> Task:
        """Accept a task and charge for it, both or neither; raise `InsufficientCreditsError`.

        With `fails`, or by chance of the fail rate, it will end as failed, with `error`.
        """
        price = CREDITS_PER_IMAGE * n
        with self._lock:
            now = self._settle()
            if self._balances[user] < price:
                raise InsufficientCreditsError(f"{price} credits are needed, the balance is {self._balances[user]}.")
            # Both are drawn for each task, so that one more forced failure does not shift all that follow.
            duration = self._random.uniform(*self._durations) / self._speed
            fails = (self._random.random() < self._fail_rate) or fails
            task_id = new_task_id(self._random)
            task = Task(
                task_id=task_id,
                user=user,
                prompt=prompt,
                n=n,
                request=dict(request or {}),
                type="image-to-image" if with_references else "text-to-image",
                created_at=now,
                pictures=new_pictures(self._random, task_id, prompt, n, aspect_ratio=aspect_ratio),
                outcome="failed" if fails else "completed",
                error=error,
            )
            self._keep(task)
            self._balances[user] -= price
            task.charged = price
            self._ledger.append(LedgerEntry(user, "charge", price, task.task_id, now))
            self._finish_at(now + duration, task)
            return copy.copy(task)

    def add_task(
        self,
        *,
        user: str,
        prompt: str,
        n: int,
        status: str,
        duration: float | None,
        polls: int | None,
        error: str | dict[str, Any] | None,
        created_at: float | None,
        formats: Sequence[str],
        image_bytes: bytes | Sequence[bytes] | None,
        content_type: str | None,
        image_urls: Sequence[str] | None,
    ) -> Task:
        """Make a task that nobody submitted and nobody paid for; see `Emulator.add_task`."""
        if not status:
            raise ValueError("status must be some text, not empty")
        if duration is not None and polls is not None:
            raise ValueError("a task ends either after a duration or at a poll, not both")
        if polls is not None and polls < 1:
            raise ValueError(f"polls must be 1 or more, not {polls!r}")
        if not formats or not set(formats) <= CONTENT_TYPES.keys():
            raise ValueError(f"formats must be some of {', '.join(CONTENT_TYPES)}, not {formats!r}")
        timed = duration is not None or polls is not None
        outcome: str | None = "failed" if error else status
        if outcome == "processing":
            outcome = "completed" if timed else None
        contents = [image_bytes] if isinstance(image_bytes, bytes) else image_bytes
        if image_urls is not None:
            n = len(image_urls)
        elif contents is not None and not isinstance(image_bytes, bytes):
            n = len(contents)
        with self._lock:
            now = self._settle()
            if user not in self._balances:
                raise KeyError(user)
            task_id = new_task_id(self._random)
            task = Task(
                task_id=task_id,
                user=user,
                prompt=prompt,
                n=n,
                request={"prompt": prompt, "n": n},
                type="text-to-image",
                created_at=now if created_at is None else created_at,
                pictures=new_pictures(
                    self._random,
                    task_id,
                    prompt,
                    n,
                    formats=formats,
                    contents=contents,
                    content_type=content_type,
                ),
                image_urls=tuple(image_urls) if image_urls is not None else None,
                outcome=outcome,
                error=error,
                due_poll=polls,
            )
            self._keep(task)
            if duration is not None:
                self._finish_at(now + duration / self._speed, task)
            elif polls is None and status != "processing":
                self._end(task, max(now, task.created_at))
            return copy.copy(task)

    def finish(self, task_id: str, status: str, error: str | dict[str, Any] | None) -> None:
        """End a processing task now; raise `ValueError` when it has ended already."""
        if status == "processing":
            raise ValueError("status must be an end, not 'processing'")
        with self._lock:
            now = self._settle()
            task = self._known(task_id)
            if task.status != "processing":
                raise ValueError(f"{task_id} is {task.status} already")
            task.outcome = status
            task.error = error or task.error
            self._end(task, now)

    def poll(self, user: str, task_id: str) -> Task:
        """Return the user's task and count the visit; raise `UnknownTaskError` for anybody else's."""
        with self._lock:
            now = self._settle()
            task = self._known(task_id)
            if task.user != user:
                raise UnknownTaskError(task_id)
            task.polls += 1
            task.poll_times.append(now)
            if task.status == "processing" and task.polls == task.due_poll:
                self._end(task, now)
            return copy.copy(task)

    def task(self, task_id: str) -> Task:
        """Return a snapshot of any user's task; raise `UnknownTaskError`."""
        with self._lock:
            self._settle()
            return _snapshot(self._known(task_id))

    @property
    def tasks(self) -> list[Task]:
        """Snapshots of all tasks, oldest first."""
        with self._lock:
            self._settle()
            return [_snapshot(task) for task in self._tasks.values()]

    def picture(self, name: str) -> Picture | None:
        """Return the image with that file name, once its task is completed."""
        with self._lock:
            self._settle()
            task, picture = self._pictures.get(name, (None, None))
            return picture if task and task.status == "completed" else None

    def _known(self, task_id: str) -> Task:
        try:
            return self._tasks[task_id]
        except KeyError:
            raise UnknownTaskError(task_id) from None

    def _keep(self, task: Task) -> None:
        self._tasks[task.task_id] = task
        self._pictures.update((picture.name, (task, picture)) for picture in task.pictures)

    def _finish_at(self, moment: float, task: Task) -> None:
        heapq.heappush(self._due, (moment, next(self._sequence), task))

    def _settle(self) -> float:
        """End the tasks that have fallen due, in the order and at the moments they did; return the time."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            moment, _, task = heapq.heappop(self._due)
            if task.status == "processing":
                self._end(task, moment)
        return now

    def _end(self, task: Task, moment: float) -> None:
        assert task.outcome is not None  # noqa: S101 -- a task without one is never due
        task.status = task.outcome
        task.finished_at = moment
        if task.status == "completed":
            task.error = None
        if task.status != "failed":
            return
        task.error = task.error or dict(GENERATION_FAILED)
        if task.charged:
            task.refunded = task.charged
            self._balances[task.user] += task.refunded
            self._ledger.append(LedgerEntry(task.user, "refund", task.refunded, task.task_id, moment))


def _snapshot(task: Task) -> Task:
    snapshot = copy.copy(task)
    snapshot.poll_times = list(task.poll_times)
    return snapshot
