# SPDX-License-Identifier: Apache-2.0
"""When to ask for an image task next; pure, so that trigger and worker wait by the same rules."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_gptimg.api.tasks import FAILED, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgTaskFailedError,
    GptImgTimeoutError,
)

__all__ = ["DEFAULT_TIMEOUT", "Progress", "Schedule", "Wait", "check_timeout"]

DEFAULT_TIMEOUT = 600.0
DEFAULT_POLL_INTERVAL = 5.0
DEFAULT_FIRST_POLL_AFTER = 39.5
LOG_EVERY = 30.0
TYPICAL = "45–60 s"

_LONGEST_PAUSE = 60.0

Uniform = Callable[[float, float], float]


def check_timeout(timeout: Any) -> float:
    """Return `timeout` if it is a number of seconds.

    :raises GptImgRequestError: It is something else, such as a `timedelta`.
    """
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 <= timeout < float("inf"):
        raise GptImgRequestError(f"timeout={timeout!r:.120} is not a number of seconds of at least 0")
    return timeout


@dataclass(frozen=True)
class Schedule:
    """First poll after most of the time a generation takes, then one each interval.

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

    def next_try_in(self, failures: int, retry_after: float | None = None, uniform: Uniform = random.uniform) -> float:
        """Return the seconds to wait after so many polls in a row that failed; at least what the API asks for."""
        longest = max(_LONGEST_PAUSE, self.poll_interval)
        doubled = min(self.poll_interval * 2.0 ** min(failures - 1, 6), longest)
        return max(doubled, retry_after or 0.0) * uniform(1.0, 1.2)


@dataclass
class Progress:
    """What the log of a waiting task tells a person: each change of status, and a sign of life each 30 s.

    :param log: Takes one line.
    """

    log: Callable[[str], None]
    _statuses: dict[str, str] = field(default_factory=dict)
    _logged_at: float = float("-inf")

    def tell(self, task_id: str, outcome: ImageTask | GptImgError, now: float, submitted_at: float | None) -> None:
        """Log what is worth a line.

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
    """A wait for image tasks: which one to ask for next, when, and what became of each.

    It holds no timer and no coroutine a task: whoever waits asks when a task is due, and tells what came of it.

    :param deadline: When to give up, in Unix seconds; None: never.
    :param submitted_at: When the tasks were submitted, in Unix seconds; None: as each task's own age says.
    """

    schedule: Schedule
    deadline: float | None = None
    submitted_at: float | None = None
    progress: Progress | None = None
    uniform: Uniform = random.uniform
    outcomes: dict[str, ImageTask | GptImgError] = field(default_factory=dict)
    last_error: GptImgError | None = None
    _queue: list[tuple[float, str]] = field(default_factory=list)
    _submissions: dict[str, float] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)

    def add(self, task_ids: Iterable[str], at: float, spread: float = 0.0) -> None:
        """Plan the first poll of each task at `at`, in Unix seconds, spread at random over `spread` seconds."""
        for task_id in task_ids:
            heapq.heappush(self._queue, (at + (self.uniform(0.0, spread) if spread else 0.0), task_id))

    @property
    def waiting(self) -> list[str]:
        """The tasks that are planned to be asked for."""
        return [task_id for _, task_id in self._queue]

    @property
    def planned(self) -> dict[str, float]:
        """When each waiting task is to be asked for, in Unix seconds."""
        return {task_id: at for at, task_id in self._queue}

    def forget(self, task_ids: Iterable[str]) -> None:
        """Ask no more for these."""
        forgotten = set(task_ids)
        self._queue = [planned for planned in self._queue if planned[1] not in forgotten]
        heapq.heapify(self._queue)

    @property
    def next_at(self) -> float | None:
        """When the next poll is due, in Unix seconds; None if none is planned."""
        return self._queue[0][0] if self._queue else None

    def expired(self, now: float) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and now >= self.deadline

    def take_due(self, now: float) -> str | None:
        """Return a task to ask for now, of which the caller then must tell; None if none is due."""
        if self._queue and self._queue[0][0] <= now:
            return heapq.heappop(self._queue)[1]
        return None

    def take_all(self) -> list[str]:
        """Return all waiting tasks, of which the caller then must tell: when time is up, each is asked once more."""
        waiting, self._queue = self.waiting, []
        return waiting

    def tell(self, task_id: str, outcome: ImageTask | GptImgError, now: float) -> None:
        """Take in what came of a poll.

        :raises GptImgAuthError: The key was rejected, so no other task can be asked for either.
        """
        submitted_at = self._submission(task_id, outcome, now)
        if self.progress:
            self.progress.tell(task_id, outcome, now, submitted_at)
        if isinstance(outcome, GptImgAuthError):
            self.add([task_id], now)
            raise outcome
        if isinstance(outcome, (GptImgRateLimitError, GptImgServerError, GptImgProtocolError)):
            # A wait outlives an outage: its deadline bounds it, not a number of failures.
            self.last_error = outcome
            failures = self._failures[task_id] = self._failures.get(task_id, 0) + 1
            pause = self.schedule.next_try_in(failures, getattr(outcome, "retry_after", None), self.uniform)
        elif isinstance(outcome, GptImgError) or outcome.is_final:
            self.outcomes[task_id] = outcome
            self._submissions.pop(task_id, None)
            return
        else:
            self._failures.pop(task_id, None)
            age = now - submitted_at if submitted_at is not None else 0.0
            pause = self.schedule.next_poll_in(age, self.uniform)
        self.add([task_id], now + pause)

    def _submission(self, task_id: str, outcome: ImageTask | GptImgError, now: float) -> float | None:
        if self.submitted_at is None and isinstance(outcome, ImageTask):
            # A task that does not say its age is counted from when it was first seen.
            known = self._submissions.get(task_id, now)
            self._submissions[task_id] = now - outcome.age if outcome.age is not None else known
        return self.submission_of(task_id)

    def submission_of(self, task_id: str) -> float | None:
        """Return when a waiting task was submitted, in Unix seconds; None where that is not known."""
        return self._submissions.get(task_id, self.submitted_at)

    def count_from_submission(self, timeout: float, since: float) -> None:
        """Set the deadline `timeout` seconds after the submission of the youngest waiting task.

        If that was before `since`, when this attempt began, an earlier attempt has used it up: then `timeout`
        counts from `since`.
        """
        known = [at for at in (self.submission_of(task_id) for task_id in self.waiting) if at is not None]
        deadline = max(known, default=since) + timeout
        self.deadline = deadline if deadline > since else since + timeout

    def outcome(self, task_id: str) -> ImageTask | GptImgError:
        """Return the completed task, or the error that stands for what became of it."""
        outcome = self.outcomes.get(task_id)
        if outcome is None:
            last = f" The last poll failed: {self.last_error}." if self.last_error else ""
            return GptImgTimeoutError(
                f"Image task {task_id} did not finish within its timeout.{last} It goes on and is paid for; another "
                "attempt waits on for the same one"
            )
        if isinstance(outcome, ImageTask) and outcome.status == FAILED:
            return GptImgTaskFailedError(
                f"Image task {task_id} failed: {(outcome.error or '').rstrip('.')}. Its credits were refunded",
                code=outcome.error_code,
            )
        return outcome
