# SPDX-License-Identifier: Apache-2.0
"""Plan the polls of image tasks; pure, so that trigger and worker wait by the same rules."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from airflow_provider_gptimg.api.refusals import DEFAULT_FINAL_FAILURE_CODES, failure_of
from airflow_provider_gptimg.api.tasks import FAILED, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRequestError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "PAID_FOR",
    "Progress",
    "Schedule",
    "Wait",
    "check_timeout",
    "ends_wait",
    "may_have_ended",
]

DEFAULT_TIMEOUT = 600.0
DEFAULT_POLL_INTERVAL = 5.0
DEFAULT_FIRST_POLL_AFTER = 39.5
LOG_EVERY = 30.0
TYPICAL = "45–60 s"
PAID_FOR = (
    "The API has no call to cancel an image task: what was submitted is paid for and continues. Clear the Airflow task "
    "to pick its images up"
)

_LONGEST_PAUSE = 60.0
_STEP = 0.1
_PHASE = random.uniform(0.0, _STEP)  # noqa: S311 - several triggerers begin at different moments
NEW_FOR = 60.0
"""Seconds after its submission in which the API may not know a task yet: it may answer from a replica that lags."""
UNSEEN_FOR = 15.0
"""Seconds after the first 404 of a wait in which the API may not know a task, if nobody knows when it was submitted."""

_FINAL = (GptImgAuthError, GptImgInsufficientCreditsError, GptImgRequestError)
_UNDER_WAY = {
    *("processing", "pending", "queued", "running", "in_progress", "submitted", "created", "starting", "started"),
    *("waiting", "generating"),
}

Uniform = Callable[[float, float], float]


def check_timeout(timeout: Any, name: str = "timeout") -> float:
    """Return `timeout` in seconds; it may be a `timedelta`.

    :param name: Of the argument, for the error.
    :raises GptImgRequestError: It is neither a `timedelta` nor a number of seconds.
    """
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 <= timeout < float("inf"):
        raise GptImgRequestError(f"{name}={timeout!r:.120} is not a number of seconds of at least 0")
    return timeout


def may_have_ended(status: str | None) -> bool:
    """Return whether a status that the API does not document may be an end, e.g. `canceled` or `succeeded`."""
    return status is not None and status.lower().replace("-", "_") not in _UNDER_WAY


def ends_wait(
    error: GptImgError, now: float, *, submitted_at: float | None = None, unseen_since: float | None = None
) -> bool:
    """Return whether a poll's error ends the wait: the API itself said it, and no other poll would change it.

    :param now: Unix seconds.
    :param submitted_at: When the task was submitted, in Unix seconds; None: unknown.
    :param unseen_since: When a poll of this wait met the first 404, in Unix seconds; None: now.
    """
    if isinstance(error, GptImgTaskNotFoundError):
        if submitted_at is not None:
            return now >= submitted_at + NEW_FOR
        return now >= (now if unseen_since is None else unseen_since) + UNSEEN_FOR
    return isinstance(error, _FINAL)


@dataclass(frozen=True)
class Schedule:
    """Poll first after most of the time that a generation takes, then once each interval.

    The vendor says that a generation takes 45–60 s typically, and asks for polls 5–10 s apart. Learning the
    first poll from the moments at which ends were seen would make each next one later; so it is fixed.

    :param poll_interval: Seconds from the end of a poll to the next one.
    :param first_poll_after: Seconds from submission to the first poll. Up to 5 % are added at random, so that
        mapped tasks do not poll in step. A task that was asked for before, as each one is at first, is left alone
        for `poll_interval` in any case.
    """

    poll_interval: float = DEFAULT_POLL_INTERVAL
    first_poll_after: float = DEFAULT_FIRST_POLL_AFTER

    def next_poll_in(self, age: float, uniform: Uniform = random.uniform) -> float:
        """Return the seconds to wait after an answer that says "not finished".

        :param age: Seconds since the task's submission.
        """
        if age >= self.first_poll_after:
            return self.poll_interval
        spread = uniform(0.0, 0.05 * self.first_poll_after)
        return max(self.first_poll_after + spread - age, self.poll_interval)

    def in_step(self, due: float, phase: float = _PHASE) -> float:
        """Return the first moment from `due` on, at most 0.1 s later, at which this triggerer begins polls.

        Thousands of waits share an event loop: to wake it for twenty polls costs little more than to wake it for one.

        :param due: Unix seconds.
        :param phase: Seconds from a full tenth of a second to the moment.
        """
        step = min(_STEP, self.poll_interval / 50)
        return max(due, math.ceil((due - phase) / step) * step + phase)

    def next_try_in(self, failures: int, retry_after: float | None = None, uniform: Uniform = random.uniform) -> float:
        """Return the seconds to wait after so many polls in a row that failed; at least what the API asks for."""
        longest = max(_LONGEST_PAUSE, self.poll_interval)
        doubled = min(self.poll_interval * 2.0 ** min(max(failures - 1, 0), 6), longest)
        return max(doubled, retry_after or 0.0) * uniform(1.0, 1.2)


@dataclass
class Progress:
    """Log lines of a waiting task: each change of status, and a sign of life each 30 s.

    :param log: Takes one line.
    """

    log: Callable[[str], None]
    _statuses: dict[str, str] = field(default_factory=dict)
    _logged_at: float = float("-inf")

    def log_poll(self, task_id: str, outcome: ImageTask | GptImgError, now: float, submitted_at: float | None) -> None:
        """Log the outcome of a poll if it is news, or if half a minute has passed.

        :param now: Unix seconds.
        :param submitted_at: Unix seconds; None where unknown.
        """
        if isinstance(outcome, GptImgError):
            status, line = type(outcome).__name__, f"Image task {task_id}: {outcome}"
        elif outcome.is_final or submitted_at is None:
            status, line = outcome.status, f"Image task {task_id}: {outcome.status}"
        else:
            age = max(0.0, now - submitted_at)
            status, line = (
                outcome.status,
                f"Image task {task_id}: {outcome.status}, {age:.0f} s of a typical {TYPICAL}",
            )
        if self._statuses.get(task_id) == status and now - self._logged_at < LOG_EVERY:
            return
        self._statuses[task_id] = status
        self._logged_at = now
        self.log(line)


@dataclass
class Wait:
    """A wait for image tasks: which one to poll next, when, and how each ended.

    It holds no timer and no coroutine a task: whoever waits polls when a task is due, and records the outcome.

    :param deadline: When to give up, in Unix seconds; None: never.
    :param submitted_at: When the tasks were submitted, in Unix seconds; None: as each task's own age says.
    :param limit: What sets the deadline, for the text of a time-out.
    :param final_failure_codes: Patterns of the codes of failures that another attempt would meet again.
    :param outcomes: The end of each task that has one.
    :param submissions: When each task was submitted, in Unix seconds, where that is known.
    """

    schedule: Schedule
    deadline: float | None = None
    submitted_at: float | None = None
    progress: Progress | None = None
    limit: str = "timeout"
    final_failure_codes: Sequence[str] = DEFAULT_FINAL_FAILURE_CODES
    uniform: Uniform = random.uniform
    outcomes: dict[str, ImageTask | GptImgError] = field(default_factory=dict)
    submissions: dict[str, float] = field(default_factory=dict)
    _queue: list[tuple[float, str]] = field(default_factory=list)
    _failures: dict[str, int] = field(default_factory=dict)
    _first_seen: dict[str, float] = field(default_factory=dict)
    _unseen_since: dict[str, float] = field(default_factory=dict)
    _last_status: dict[str, str] = field(default_factory=dict)
    _last_error: dict[str, str] = field(default_factory=dict)

    def add(self, task_ids: Iterable[str], at: float, spread: float = 0.0) -> None:
        """Plan the first poll of each task at `at`, in Unix seconds, spread at random over `spread` seconds."""
        for task_id in task_ids:
            heapq.heappush(self._queue, (at + (self.uniform(0.0, spread) if spread else 0.0), task_id))

    @property
    def waiting(self) -> list[str]:
        """The tasks that will be polled."""
        return [task_id for _, task_id in self._queue]

    @property
    def planned(self) -> dict[str, float]:
        """Time of each waiting task's next poll, in Unix seconds."""
        return {task_id: at for at, task_id in self._queue}

    def forget(self, task_ids: Iterable[str]) -> None:
        """Stop polling these."""
        forgotten = set(task_ids)
        self._queue = [planned for planned in self._queue if planned[1] not in forgotten]
        heapq.heapify(self._queue)

    @property
    def next_at(self) -> float | None:
        """When the next poll is due, in Unix seconds; None if none is planned."""
        return self._queue[0][0] if self._queue else None

    def expired(self, now: float) -> bool:
        """True if the time is up."""
        return self.deadline is not None and now >= self.deadline

    def pop_due(self, now: float) -> str | None:
        """Return a task to poll now, whose outcome the caller then records; None if none is due."""
        if self._queue and self._queue[0][0] <= now:
            return heapq.heappop(self._queue)[1]
        return None

    def pop_all(self) -> list[str]:
        """Return all waiting tasks, whose outcomes the caller then records."""
        waiting, self._queue = self.waiting, []
        return waiting

    def record(self, task_id: str, outcome: ImageTask | GptImgError, now: float) -> None:
        """Record the outcome of a poll, and plan the next one.

        :raises GptImgAuthError: The key was rejected, so no other task can be asked for either.
        """
        self._note(task_id, outcome, now)
        if self.progress:
            self.progress.log_poll(task_id, outcome, now, self.submission_of(task_id))
        if isinstance(outcome, GptImgAuthError):
            self.add([task_id], now)
            raise outcome
        if isinstance(outcome, GptImgError):
            if not self._is_final(task_id, outcome, now):
                # A wait outlives an outage: its deadline bounds it, not a number of failures.
                failures = self._failures.get(task_id, 0)
                if not isinstance(outcome, GptImgTaskNotFoundError):
                    failures += 1
                    self._failures[task_id] = failures
                pause = self.schedule.next_try_in(failures, getattr(outcome, "retry_after", None), self.uniform)
                if isinstance(outcome, GptImgTaskNotFoundError):
                    pause = min(pause, UNSEEN_FOR)  # whatever the interval: a worker may be held until this is certain
                self.add([task_id], now + pause)
                return
        elif not outcome.is_final:
            self._failures.pop(task_id, None)
            since = self.submission_of(task_id)
            pause = self.schedule.next_poll_in(0.0 if since is None else now - since, self.uniform)
            self.add([task_id], now + pause)
            return
        self.outcomes[task_id] = outcome
        self.submissions.pop(task_id, None)
        self._unseen_since.pop(task_id, None)

    @contextmanager
    def ended_by_rejection(self, task_ids: Iterable[str]) -> Iterator[None]:
        """If the key is rejected inside, make that the outcome of all tasks that have none, instead of raising it."""
        try:
            yield
        except GptImgAuthError as error:
            self.pop_all()
            for task_id in task_ids:
                self.outcomes.setdefault(task_id, error)

    def _note(self, task_id: str, outcome: ImageTask | GptImgError, now: float) -> None:
        if isinstance(outcome, GptImgTaskNotFoundError):
            self._unseen_since.setdefault(task_id, now)
        if isinstance(outcome, GptImgError):
            self._last_error[task_id] = str(outcome)  # the error itself would hold on to its frames
            return
        self._unseen_since.pop(task_id, None)
        self._last_status[task_id] = outcome.status
        self._first_seen.setdefault(task_id, now)
        if self.submitted_at is None and outcome.age is not None:
            self.submissions[task_id] = now - outcome.age

    def _is_final(self, task_id: str, error: GptImgError, now: float) -> bool:
        submitted_at = self.submissions.get(task_id, self.submitted_at)
        return ends_wait(error, now, submitted_at=submitted_at, unseen_since=self._unseen_since.get(task_id))

    @property
    def is_unsure(self) -> bool:
        """True if a task was not found that may be new: nobody knows when it was submitted."""
        return any(self.submissions.get(task_id, self.submitted_at) is None for task_id in self._unseen_since)

    def submission_of(self, task_id: str) -> float | None:
        """Return when a waiting task was submitted, else first seen, in Unix seconds; None if not known."""
        known = self.submissions.get(task_id, self.submitted_at)
        return self._first_seen.get(task_id) if known is None else known

    def count_from_submission(self, timeout: float, since: float) -> None:
        """Set the deadline `timeout` seconds after the submission of the youngest waiting task.

        If that was before `since`, when this attempt began, an earlier attempt has used it up: then `timeout`
        counts from `since`.
        """
        known = [at for at in (self.submission_of(task_id) for task_id in self.waiting) if at is not None]
        deadline = max(known, default=since) + timeout
        self.deadline = deadline if deadline > since else since + timeout

    def outcome(self, task_id: str) -> ImageTask | GptImgError:
        """Return the completed task, or the error that says what became of it."""
        outcome = self.outcomes.get(task_id)
        if outcome is None:
            return self._timeout(task_id)
        if isinstance(outcome, ImageTask) and outcome.status == FAILED:
            return failure_of(outcome, self.final_failure_codes)
        return outcome

    def _timeout(self, task_id: str) -> GptImgTimeoutError:
        status, error = self._last_status.get(task_id), self._last_error.get(task_id)
        timeout = GptImgTimeoutError(f"Image task {task_id} did not finish within its {self.limit}", last_status=status)
        if status is not None:
            timeout.add_hint(f"Its last status was {status!r}")
        if error is not None:
            timeout.add_hint(f"The last poll that failed: {error}")
        if may_have_ended(status):
            timeout.add_hint(
                "The API does not document this status. If it is an end, another attempt waits in vain: ask the "
                "vendor about the task; to submit again, delete what is recorded of it and clear the task that "
                "submitted it"
            )
        else:
            timeout.add_hint("The task continues and is paid for; another attempt waits for the same one")
        return timeout
