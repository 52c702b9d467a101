# SPDX-License-Identifier: Apache-2.0
"""Money spent is images promised, whatever is killed, lost, cleared or changed, and in whatever order.

Random courses of one task instance run the real submission record against a model of the API and of Airflow. A kill
may strike before and after each thing an attempt does outside of itself: each read and write of the store, each call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings, strategies as st
from state_store import StateStore, submission

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import COMPLETED, FAILED, PROCESSING, Image, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRateLimitError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.submission import RECORD_KEY

# The lines of some hundred courses would fill the report of a failure.
QUIET = logging.Logger("quiet", logging.CRITICAL)


class Killed(BaseException):
    """SIGKILL: no line of the attempt runs after it."""


class Interrupted(BaseException):
    """Airflow's `execution_timeout`, or a person's SIGTERM: the attempt is unwound, and its last lines may run."""


class Fate:
    """Ends the process at the n-th step, before or after which something happens outside of it; None: never."""

    def __init__(self, steps_to_live: int | None, end: type[BaseException] = Killed) -> None:
        self.steps_to_live = steps_to_live
        self.end = end

    def step(self) -> None:
        if self.steps_to_live is None:
            return
        if self.steps_to_live <= 0:
            if self.end is Interrupted:
                self.steps_to_live = None
            raise self.end
        self.steps_to_live -= 1


class KillableStore(StateStore):
    """The store as a process sees it that may die at each of its accesses."""

    fate = Fate(None)

    def get(self, key: str, default: Any = None) -> Any:
        self.fate.step()
        return super().get(key, default)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.fate.step()
        super().set(key, value, retention=retention)
        self.fate.step()

    def delete(self, key: str) -> None:
        self.fate.step()
        super().delete(key)
        self.fate.step()


class Api:
    """The API and the hook on it: a ledger of accepted submissions. Stands where `GptImgHook` does."""

    gptimg_conn_id = "gptimg_default"
    refusals = (GptImgInsufficientCreditsError, GptImgRateLimitError, GptImgServerError)

    def __init__(self) -> None:
        self.tasks: dict[str, ImageTask] = {}
        self.prompts: dict[str, str] = {}
        self.answer = "accepted"
        self.fate = Fate(None)

    def prepare_submit(self, request: ImageRequest, aws_conn_id: str | None) -> ImageRequest:
        return request

    def submit_prepared(self, request: ImageRequest, pause: Callable[[float], None]) -> ImageTask:
        self.fate.step()
        if self.answer == "refused once":
            pause(0)
            self.fate.step()
        if self.answer == "refused":
            raise self.refusals[len(self.tasks) % len(self.refusals)]("refused")
        if self.answer == "lost before":
            raise GptImgSubmissionUnknownError("lost")
        task = ImageTask(f"gpt-image-2-{len(self.tasks)}", PROCESSING)
        self.tasks[task.task_id] = task
        self.prompts[task.task_id] = request.prompt
        self.fate.step()
        if self.answer == "lost after":
            raise GptImgSubmissionUnknownError("lost")
        return task

    def get_task(self, task_id: str) -> ImageTask:
        self.fate.step()
        if self.answer == "down":
            raise GptImgServerError("down")
        return self.tasks[task_id]

    def end(self, task_id: str, status: str) -> None:
        if self.tasks[task_id].status == PROCESSING:
            self.tasks[task_id] = ImageTask(task_id, status, images=(Image("https://a.example/1"),))


@dataclass(frozen=True)
class Event:
    """What the author and a person do before an attempt, and what happens in it."""

    prompt: str
    on_unknown: str
    ended: str | None
    drops_record: bool
    answer: str
    generation: str
    waits: bool
    steps_to_live: int | None
    end: type[BaseException]


def often(*values: Any) -> st.SearchStrategy[Any]:
    """Choose among values of which the first comes as often as all others together."""
    return st.sampled_from([values[0]] * (len(values) - 1) + list(values[1:]))


events = st.builds(
    Event,
    prompt=often("a cat", "a dog"),
    on_unknown=often("fail", "resubmit"),
    ended=often(None, COMPLETED, FAILED),
    drops_record=st.booleans(),
    answer=often("accepted", "refused once", "refused", "lost before", "lost after", "down"),
    generation=often(COMPLETED, FAILED, PROCESSING),
    waits=st.booleans(),
    steps_to_live=often(None, *range(12)),
    end=st.sampled_from([Killed, Interrupted]),
)


class Course:
    """One task instance: its attempts, the people who clear it, and what it costs.

    A delivery is noted after the success, by a process that may die before it has.
    """

    def __init__(self, retries: int) -> None:
        self.api = Api()
        self.store = KillableStore()
        self.retries = self.max_tries = retries
        self.try_number = 0
        self.state = "queued"
        self.allowed = "the first"  # why a further submission of the same request may be accepted

    def go_on(self, event: Event) -> None:
        self.prompt, self.on_unknown = event.prompt, event.on_unknown
        for task_id in self.api.tasks if event.ended else ():
            self.api.end(task_id, event.ended)
        if self.state != "queued":
            self.clear(event)
        self.attempt(event)

    def clear(self, event: Event) -> None:
        """A person clears the task, for which Airflow gives it its retries anew."""
        record = self.store.record
        if self.state == "failed" and event.drops_record:
            self.store.values.pop(RECORD_KEY, None)
            self.allowed = "a person dropped the record"
        elif record is not None and record.delivered_max_tries is not None:
            self.allowed = "a person cleared what was delivered"
        self.max_tries = self.try_number + self.retries

    def attempt(self, event: Event) -> None:
        self.try_number += 1
        paid, was_unknown = list(self.api.tasks), self.is_unknown
        refunded = {task_id for task_id, task in self.api.tasks.items() if task.status == FAILED}
        self.api.answer = event.answer
        self.api.fate = self.store.fate = fate = Fate(event.steps_to_live, event.end)
        outcome = self.run(event)
        self.api.fate = self.store.fate = Fate(None)

        if len(self.api.tasks) > len(paid):
            self.check_spending(paid, was_unknown)
        self.check_nothing_is_lost(outcome)
        if isinstance(outcome, str):
            assert outcome not in refunded, "a failed generation is submitted anew"
            assert self.api.prompts[outcome] == self.prompt, "a changed request is submitted anew"
        if was_unknown and self.on_unknown == "fail" and not isinstance(outcome, Killed | Interrupted):
            assert isinstance(outcome, GptImgSubmissionUnknownError), "an unknown outcome is never passed over"
        self.state = self.verdict(outcome)
        if self.state == "success":
            self.api.fate = self.store.fate = fate
            with suppress(Killed, Interrupted):
                submission(self.store, self.max_tries, QUIET).deliver()
            self.api.fate = self.store.fate = Fate(None)

    def run(self, event: Event) -> str | BaseException:
        """What an operator does: obtain, wait if it is one that waits, return the id."""
        try:
            attempt = submission(self.store, self.max_tries, QUIET)
            accepted = attempt.obtain(self.api, ImageRequest.check(self.prompt), self.on_unknown, None)
            task_id = accepted.task.task_id
            if event.waits:
                self.api.end(task_id, event.generation)
                status = self.api.get_task(task_id).status
                if status == PROCESSING:
                    raise GptImgTimeoutError("time is up")
                if status == FAILED:
                    raise GptImgTaskFailedError("no luck")
            return task_id
        except (Killed, Interrupted, GptImgError) as end:
            return end

    @property
    def is_unknown(self) -> bool:
        """Whether the record says that something was sent, and not what came of it."""
        record = self.store.record
        return record is not None and record.task_id is None

    def check_spending(self, paid: list[str], was_unknown: bool) -> None:
        """A submission was accepted: one, and for a reason."""
        assert len(self.api.tasks) == len(paid) + 1
        refunded = bool(paid) and self.api.tasks[paid[-1]].status == FAILED
        changed = bool(paid) and self.api.prompts[paid[-1]] != self.prompt
        resubmitted = was_unknown and self.on_unknown == "resubmit"
        assert self.allowed or refunded or changed or resubmitted, "credits were spent twice"
        self.allowed = ""

    def check_nothing_is_lost(self, outcome: str | BaseException) -> None:
        """What was paid for last is known by its id, or it is known that something is unknown."""
        latest = list(self.api.tasks)[-1:]
        record = self.store.record
        if isinstance(outcome, str):
            assert [outcome] == latest
            assert record is not None
            assert record.task_id == outcome
        if latest and not self.allowed:
            assert record is not None
            assert record.task_id in (latest[0], None)

    def verdict(self, outcome: str | BaseException) -> str:
        """What Airflow makes of it."""
        if isinstance(outcome, str):
            return "success"
        unknown = isinstance(outcome, GptImgSubmissionUnknownError) and self.on_unknown == "fail"
        final = unknown or isinstance(outcome, GptImgInsufficientCreditsError)
        return "queued" if not final and self.try_number <= self.max_tries else "failed"


@settings(max_examples=600)
@given(st.integers(0, 2), st.lists(events, min_size=2, max_size=8))
def test_money_spent_is_images_promised(retries, course):
    task_instance = Course(retries)
    for event in course:
        task_instance.go_on(event)
