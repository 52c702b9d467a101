# SPDX-License-Identifier: Apache-2.0
"""Money spent is images promised, whatever is killed, lost, cleared or changed, and in whatever order.

Random courses of one task instance run the real submission record against a model of the API and of Airflow. A kill
may strike before and after each thing an attempt does outside of itself: each read and write of the store, each call.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
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

    def submit_prepared(self, request: ImageRequest) -> ImageTask:
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


class PaidOnce(RuleBasedStateMachine):
    """One task instance, its retries, the people who clear it, and its DAG's author."""

    def __init__(self) -> None:
        super().__init__()
        self.api = Api()
        self.store = KillableStore()
        self.prompt = "a cat"
        self.on_unknown = "fail"
        self.state = "queued"
        self.try_number = 0
        self.retries = self.max_tries = 0
        # What allows a further accepted submission: nothing was accepted yet, or one of the reasons of the contract.
        self.allowed = "the first"
        self.accepted = 0

    @initialize(retries=st.integers(0, 2))
    def set_retries(self, retries: int) -> None:
        self.retries = self.max_tries = retries

    @precondition(lambda self: self.state == "queued")
    @rule(
        end=st.sampled_from([Killed, Interrupted]),
        steps_to_live=st.sampled_from([None, None, None, *range(12)]),
        answer=st.sampled_from(["accepted", "accepted", "accepted", "refused", "lost before", "lost after", "down"]),
        generation=st.sampled_from([COMPLETED, COMPLETED, FAILED, PROCESSING]),
        waits=st.booleans(),
    )
    def attempt(
        self, end: type[BaseException], steps_to_live: int | None, answer: str, generation: str, waits: bool
    ) -> None:
        self.try_number += 1
        before, unknown_before = set(self.api.tasks), self.is_unknown
        refunded = {task_id for task_id, task in self.api.tasks.items() if task.status == FAILED}
        self.api.answer = answer
        self.api.fate = self.store.fate = Fate(steps_to_live, end)
        outcome = self.run(generation, waits)
        self.api.fate = self.store.fate = Fate(None)
        self.pay(set(self.api.tasks) - before, unknown_before)
        self.check_nothing_is_silently_lost(outcome, unknown_before)
        if isinstance(outcome, str):
            assert outcome not in refunded, "a failed generation is submitted anew"
            assert self.api.prompts[outcome] == self.prompt, "a changed request is submitted anew"
        self.note(outcome)

    def run(self, generation: str, waits: bool) -> str | BaseException:
        """What an operator does: obtain, wait if it is one that waits, deliver, return the id."""
        request = ImageRequest.check(self.prompt)
        try:
            attempt = submission(self.store, self.max_tries, QUIET)
            accepted = attempt.obtain(self.api, request, self.on_unknown, None)
            task_id = accepted.task.task_id
            if waits:
                self.api.end(task_id, generation)
                status = self.api.get_task(task_id).status
                if status == PROCESSING:
                    raise GptImgTimeoutError("time is up")
                if status == FAILED:
                    raise GptImgTaskFailedError("no luck")
            submission(self.store, self.max_tries, QUIET).deliver()
            return task_id
        except (Killed, Interrupted, GptImgError) as end:
            return end

    @property
    def is_unknown(self) -> bool:
        """Whether the record says that something was sent, and not what came of it."""
        record = self.store.record
        return record is not None and record.task_id is None

    def pay(self, new: set[str], unknown_before: bool) -> None:
        """No submission is accepted that nobody asked for, and one at most in an attempt."""
        assert len(new) <= 1
        if not new:
            return
        if self.accepted:
            latest = f"gpt-image-2-{self.accepted - 1}"
            refunded = self.api.tasks[latest].status == FAILED
            changed = self.api.prompts[latest] != self.prompt
            resubmitted = unknown_before and self.on_unknown == "resubmit"
            assert self.allowed or refunded or changed or resubmitted, "credits were spent twice"
        self.accepted += 1
        self.allowed = ""

    def check_nothing_is_silently_lost(self, outcome: str | BaseException, unknown_before: bool) -> None:
        latest = f"gpt-image-2-{self.accepted - 1}" if self.accepted else None
        record = self.store.record
        if isinstance(outcome, str):
            assert outcome == latest, "a success is the images that were paid for last"
            assert record is not None
            assert record.task_id == latest
        elif latest is not None and self.allowed != "the record was dropped":
            # The latest is known by its id, or the next attempt is told that something is unknown.
            assert record is not None
            assert record.task_id == latest or record.task_id is None
        if unknown_before and self.on_unknown == "fail" and not isinstance(outcome, Killed | Interrupted):
            assert isinstance(outcome, GptImgSubmissionUnknownError), "an unknown outcome is never passed over"

    def note(self, outcome: str | BaseException) -> None:
        """What Airflow makes of it."""
        final = isinstance(outcome, GptImgInsufficientCreditsError) or (
            isinstance(outcome, GptImgSubmissionUnknownError) and self.on_unknown == "fail"
        )
        if isinstance(outcome, str):
            self.state = "success"
        elif not final and self.try_number <= self.max_tries:
            self.state = "queued"
        else:
            self.state = "failed"

    @precondition(lambda self: self.state in ("success", "failed"))
    @rule()
    def clear(self) -> None:
        """A person clears the task: Airflow gives it its retries anew."""
        record = self.store.record
        # A worker that dies between the note of the delivery and Airflow's success has delivered too.
        if record is not None and record.delivered_max_tries is not None:
            self.allowed = "a delivered task was cleared"
        assert self.state == "failed" or self.allowed
        self.max_tries = self.try_number + self.retries
        self.state = "queued"

    @rule(
        prompt=st.sampled_from(["a cat", "a cat", "a dog"]),
        on_unknown=st.sampled_from(["fail", "fail", "resubmit"]),
        ended=st.none() | st.sampled_from([COMPLETED, FAILED]),
    )
    def meanwhile(self, prompt: str, on_unknown: str, ended: str | None) -> None:
        """The author edits the DAG, and generations come to their ends."""
        self.prompt, self.on_unknown = prompt, on_unknown
        for task_id in self.api.tasks if ended else ():
            self.api.end(task_id, ended)

    @precondition(lambda self: self.state == "failed")
    @rule()
    def drop_the_record(self) -> None:
        """A person has looked into the transaction log, and drops the record."""
        self.store.values.pop(RECORD_KEY, None)
        self.allowed = "the record was dropped"

    @invariant()
    def a_record_names_what_was_accepted(self) -> None:
        record = self.store.record
        if record is not None and record.task_id is not None:
            assert record.task_id in self.api.tasks


TestPaidOnce = pytest.mark.timeout(300)(PaidOnce.TestCase)
TestPaidOnce.settings = settings(settings.get_profile("gptimg"), max_examples=300, stateful_step_count=30)
