# SPDX-License-Identifier: Apache-2.0
"""The image tasks of a batch that are waited for: when each is polled, and when it is out of time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.batch.entries import Entry
from airflow_provider_gptimg.hooks.poller import Poller
from airflow_provider_gptimg.polling import Wait

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["InFlight", "Limits"]

_LOOK_AGAIN = 120.0
"""Seconds after which a wait for all looks at what there is: one image task that hangs must not keep the others."""


@dataclass(frozen=True)
class Limits:
    """Limits of a batch, from the operator's arguments.

    :param max_in_flight: Image tasks under way at a time.
    :param on_unknown: `fail` or `resubmit`, for requests that do not say so themselves.
    :param timeout: Seconds from an image task's submission to its completion.
    :param aws_conn_id: AWS connection that presigns `s3://` references.
    :param ends_at: When the attempt ends, in Unix seconds; None: Airflow sees to that.
    """

    max_in_flight: int
    on_unknown: str
    timeout: float
    aws_conn_id: str | None
    poll_interval: float | timedelta | None = None
    first_poll_after: float | timedelta | None = None
    ends_at: float | None = None


class InFlight(dict[str, Entry]):
    """Requests by the image task that is waited for. What a wait yields is not in flight any more.

    :param started_at: When the attempt began, in Unix seconds.
    """

    def __init__(self, hook: GptImgHook, limits: Limits, started_at: float) -> None:
        super().__init__()
        self._hook = hook
        self._limits = limits
        self._started_at = started_at
        self._poller = Poller(hook)
        self._wait = Wait(
            hook.settings.schedule(limits.poll_interval, limits.first_poll_after),
            final_failure_codes=hook.settings.final_failure_codes,
        )

    def add(self, entry: Entry, at: float | None = None) -> None:
        """Wait for a request's image task.

        :param at: When to poll it first, in Unix seconds; None: when most of the time is over that generations take.
        """
        self[entry.task_id] = entry
        self._wait.submissions[entry.task_id] = _submitted_at(entry)
        first = _submitted_at(entry) + self._wait.schedule.next_poll_in(0.0) if at is None else at
        self._wait.add([entry.task_id], first)

    def look(self) -> Iterator[tuple[Entry, Any]]:
        """Poll once what was submitted before and may be finished by now.

        :raises GptImgAuthError: The key was rejected.
        """
        now, ripe = time.time(), []
        for task_id, entry in self.items():
            self._wait.submissions[task_id] = _submitted_at(entry)
            first = _submitted_at(entry) + self._wait.schedule.first_poll_after
            if first <= now:
                ripe.append(task_id)
            else:
                self._wait.add([task_id], first)
        self._poller.poll(self._wait, ripe)
        yield from self._ended()

    def hold(self, until: float | None) -> Iterator[tuple[Entry, Any]]:
        """Wait on this worker until some image tasks are final, or time is up.

        :param until: Unix seconds; None: no limit.
        :raises GptImgAuthError: The key was rejected.
        """
        # A few at a time when many are under way, since each round writes to the journal.
        self._poller.hold(self._wait, until=until, enough=max(1, len(self) // 8))
        yield from self._ended()

    def expire(self) -> Iterator[tuple[Entry, Any]]:
        """Poll once more what is out of time, and wait no longer for it."""
        now = time.time()
        expired = [task_id for task_id, entry in self.items() if self._deadline(entry) <= now]
        if not expired:
            return
        self._wait.forget(expired)
        self._poller.poll(self._wait, expired)
        yield from self._ended()
        late = [task_id for task_id in expired if task_id in self]
        self._wait.forget(late)
        for task_id in late:
            yield self.pop(task_id), self._wait.outcome(task_id)

    @property
    def next_deadline(self) -> float | None:
        """When the first of them is out of time, in Unix seconds."""
        return min(map(self._deadline, self.values()), default=None)

    def trigger_arguments(self, until: float | None, *, is_room_wanted: bool) -> dict[str, Any]:
        """Return the arguments of the trigger that waits for the same tasks.

        :param until: As :meth:`hold`.
        :param is_room_wanted: Requests are left: half of those under way make room for as many.
        """
        planned = self._wait.planned
        return {
            "gptimg_task_id": list(planned),
            "gptimg_conn_id": self._hook.gptimg_conn_id,
            "poll_interval": self._limits.poll_interval,
            "first_poll_after": self._limits.first_poll_after,
            "deadline": min(filter(None, (until, max(planned.values()) + _LOOK_AGAIN))),
            "first_poll_at": list(planned.values()),
            "wake_after": max(1, len(planned) // 2) if is_room_wanted else None,
        }

    def _ended(self) -> Iterator[tuple[Entry, Any]]:
        for task_id in list(self._wait.outcomes):
            outcome = self._wait.outcome(task_id)
            del self._wait.outcomes[task_id]
            if (entry := self.pop(task_id, None)) is not None:
                yield entry, outcome

    def _deadline(self, entry: Entry) -> float:
        """Return when an image task is out of time. If that was before this attempt, it gets all of it again."""
        deadline = _submitted_at(entry) + self._limits.timeout
        if deadline <= self._started_at:
            deadline = self._started_at + self._limits.timeout
        return deadline if self._limits.ends_at is None else min(deadline, self._limits.ends_at)


def _submitted_at(entry: Entry) -> float:
    return entry.current.at if entry.current else 0.0
