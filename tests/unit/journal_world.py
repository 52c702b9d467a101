# SPDX-License-Identifier: Apache-2.0
"""A world in which the real journal runs: attempts that a scheduler moves step by step, a store, the API and Airflow.

An attempt is a greenlet that stops before each thing it does outside of itself: each access to the store, each POST,
each question to Airflow. At each step the scheduler chooses which attempt goes on, which one dies, whether Airflow
starts the next attempt, and whether a person marks the task failed or clears it. A freeze is an attempt that does not
go on while others do: its clock jumps.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import COMPLETED, Image, ImageTask
from airflow_provider_gptimg.exceptions import GptImgError, GptImgSubmissionUnknownError
from airflow_provider_gptimg.journal import attempt as attempt_module, stores, submission as submission_module
from airflow_provider_gptimg.journal.attempt import Attempt
from airflow_provider_gptimg.journal.stores import StateStore, Store, VariableStore
from airflow_provider_gptimg.journal.submission import Submission

# The lines of some hundred courses would fill the report of a failure.
QUIET = logging.Logger("quiet", logging.CRITICAL)
REQUEST = ImageRequest.check("a cat")


class Lost(Exception):
    """A write was not acknowledged."""


class Actor:
    """One attempt: what it did last, and what it is about to do."""

    def __init__(self, world: World, number: int, max_tries: int) -> None:
        self.world, self.number, self.max_tries = world, number, max_tries
        self.seen: list[Any] = []
        self.pending: tuple[Any, ...] | None = None
        self.is_over = False
        self.is_sending = False
        self.clock = 0.0
        self.submission: Submission | None = None
        self.note: Callable[[], None] | None = None
        self._greenlet = greenlet.greenlet(self._live)

    def start(self) -> None:
        self._switch(None)

    def go(self, how: str) -> None:
        """Do what is pending, in one of the ways that it can go, and go on to the next thing."""
        assert self.pending
        self._switch((how, self.pending))

    def do(self, *what: Any) -> Any:
        """Do something outside of the attempt, when the scheduler lets it."""
        if self.is_over:
            raise greenlet.GreenletExit
        self.pending = what
        how, (kind, *details) = self.world.scheduler.switch()
        try:
            result = self.world.perform(self, how, kind, *details)
        except Exception as error:
            self.seen.append(type(error).__name__)
            raise
        self.seen.append(json.dumps(result, sort_keys=True))
        return result

    def _switch(self, value: Any) -> None:
        self.world.running = self
        self._greenlet.switch(value)
        self.world.running = None

    def _live(self, _: Any) -> None:
        try:
            self.world.live(self)
        except GptImgError as error:
            self.seen.append(type(error).__name__)
            if self.world.is_current(self):
                final = isinstance(error, GptImgSubmissionUnknownError)
                self.world.state = "failed" if final else "up_for_retry"
        self.pending, self.is_over = None, True


class World:
    """One task instance of Airflow, its journal, and the API.

    :param kind: Of the store: `state store` or `Variables`.
    :param on_unknown: `fail` or `resubmit`.
    :param attempts: How many there may be.
    :param waits: Whether the operator waits, in a process of its own.
    :param faults: Whether the API refuses and loses, and writes are not acknowledged or executed again, late.
    """

    def __init__(
        self, kind: str, *, on_unknown: str = "fail", attempts: int = 2, waits: bool = False, faults: bool = False
    ) -> None:
        self.kind, self.on_unknown, self.attempts, self.waits, self.faults = kind, on_unknown, attempts, waits, faults
        self.scheduler = greenlet.getcurrent()
        self.running: Actor | None = None
        self.last: Actor | None = None
        self.entries: dict[str, Any] = {}
        self.late: list[tuple[str, Any]] = []
        self.acknowledged: dict[str, Any] = {}
        """What attempts know to be written, and have not deleted."""
        self.actors: list[Actor] = []
        self.state = "running"
        self.promised, self.charged, self.delivered = 1, 0, 0
        self.max_tries = 0
        self.refusals = self.losses = 0
        self.resubmits = False
        self.posts_after_stop = 0
        self.begin()

    def begin(self) -> None:
        """Let Airflow start the next attempt."""
        self.state = "running"
        actor = Actor(self, len(self.actors) + 1, self.max_tries)
        self.actors.append(actor)
        actor.start()

    def is_current(self, actor: Actor) -> bool:
        """Whether Airflow would accept what this attempt reports."""
        return actor is self.actors[-1] and self.state == "running"

    # What the scheduler may choose.

    def choices(self) -> Iterator[str]:
        for actor in self.actors:
            if actor.is_over:
                continue
            yield f"go {actor.number} ok"
            yield f"die {actor.number}"
            kind = actor.pending[0] if actor.pending else ""
            if self.faults and kind == "post":
                if self.refusals < 2:
                    yield f"go {actor.number} refused"
                if self.losses < 2:
                    yield f"go {actor.number} lost"
            if self.faults and kind == "put" and self.losses < 2:
                yield f"go {actor.number} unacknowledged"
                yield f"go {actor.number} repeated"
        if self.late:
            yield "late"
        if len(self.actors) < self.attempts:
            if self.state in ("running", "up_for_retry"):
                yield "retry"
            if self.state in ("failed", "success"):
                yield "clear"
        if self.state == "running":
            yield "fail"

    def choose(self, choice: str) -> None:
        what, *details = choice.split()
        if what in ("go", "die"):
            actor = self.actors[int(details[0]) - 1]
            if what == "die":
                actor.is_over, actor.pending = True, None
                return
            if self.last is not actor:
                actor.clock += 10.0  # it was frozen
            self.last = actor
            actor.go(details[1])
        elif what == "late":
            name, entry = self.late.pop(0)
            self.entries[name] = entry
        elif what == "retry":
            self.begin()
        elif what == "clear":
            self.promised += self.state == "success"
            self.max_tries += 1
            self.begin()
        elif what == "fail":  # a person marks it failed, and the worker is told
            self.state = "failed"
            actor = self.actors[-1]
            if not actor.is_over and actor.submission is not None:
                actor.submission.stop()
                # Between its last look and the first byte nothing can be done any more.
                actor.is_sending = actor.pending is not None and actor.pending[0] == "post"

    @property
    def key(self) -> Any:
        """All that the future depends on."""
        return (
            json.dumps(self.entries, sort_keys=True),
            tuple(
                (tuple(a.seen), str(a.pending), a.is_over, a is self.last, a.is_sending, self._is_stopped(a))
                for a in self.actors
            ),
            self.state,
            (self.charged, self.promised, self.delivered, self.posts_after_stop, self.refusals, self.losses),
            str(self.late),
        )

    @staticmethod
    def _is_stopped(actor: Actor) -> bool:
        return actor.submission is not None and actor.submission._attempt.is_stopped

    # What an attempt does.

    def live(self, actor: Actor) -> None:
        """Run an operator, and report its success as Airflow's runner does: callbacks run even if that is refused."""
        submission = actor.submission = self.submission(actor)
        accepted = submission.obtain(self.hook(actor), REQUEST, self.on_unknown, None)  # type: ignore[arg-type]
        if self.waits:
            actor.do("poll", accepted.task.task_id)
            submission = actor.submission = self.submission(actor)
        submission.deliver(accepted.name, accepted.task.task_id)
        actor.do("end", accepted.task.task_id)
        if actor.note is not None:
            actor.note()

    def submission(self, actor: Actor) -> Submission:
        store: Store = StateStore(State(actor)) if self.kind == "state store" else VariableStore("owner", "")
        return Submission(Attempt(store, actor.number, actor.max_tries, QUIET, ti=actor), QUIET)

    def hook(self, actor: Actor) -> Any:
        def _submit_prepared(
            request: Any,
            pause: Callable[[float], None],
            before_connect: Callable[[], None],
            before_send: Callable[[], None],
        ) -> ImageTask:
            while True:
                before_connect()
                before_send()
                answer = actor.do("post")
                if answer == "refused":
                    pause(0.0)
                elif answer == "lost":
                    raise GptImgSubmissionUnknownError("lost")
                else:
                    return ImageTask(answer, COMPLETED, images=(Image("https://a.example/1"),))

        def get_task(task_id: str) -> ImageTask:
            actor.do("poll", task_id)
            return ImageTask(task_id, COMPLETED, images=(Image("https://a.example/1"),))

        return SimpleNamespace(
            gptimg_conn_id="gptimg_default",
            _prepare_submit=lambda request, aws_conn_id: request,
            _submit_prepared=_submit_prepared,
            get_task=get_task,
        )

    def perform(self, actor: Actor, how: str, kind: str, *details: Any) -> Any:
        if kind == "get":
            return self.entries.get(details[0])
        if kind == "put":
            if how == "unacknowledged":
                self.losses += 1
                self.late.append((details[0], details[1]))
                raise Lost
            if how == "repeated":
                self.losses += 1
                self.late.append((details[0], details[1]))
            self.entries[details[0]] = self.acknowledged[details[0]] = details[1]
            return None
        if kind == "delete":
            self.entries.pop(details[0], None)
            self.acknowledged.pop(details[0], None)
            return None
        if kind == "ask":
            return self.state
        if kind == "end":
            if self.is_current(actor):
                self.state = "success"
                self.delivered += 1
            return None
        if kind == "post":
            self.posts_after_stop += self._is_stopped(actor) and not actor.is_sending
            actor.is_sending = False
            if how == "refused":
                self.refusals += 1
                return "refused"
            self.charged += 1
            if how == "lost":
                self.losses += 1
                return "lost"
            return f"gpt-image-2-{self.charged}"
        return None


class State:
    """`context["task_state_store"]`, as one attempt sees it."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def get(self, key: str) -> Any:
        return self._actor.do("get", key)

    def set(self, key: str, value: Any, **options: Any) -> None:
        self._actor.do("put", key, value)

    def delete(self, key: str) -> None:
        self._actor.do("delete", key)


@contextmanager
def modelled(current: Callable[[], World]) -> Iterator[None]:
    """Put the world in the place of Airflow, its Variables and the clock."""

    def actor() -> Actor:
        found = current().running
        assert found is not None
        return found

    def now() -> float:
        return actor().clock

    variables = SimpleNamespace(
        set=lambda key, value, description: actor().do("put", key, value), delete=lambda key: actor().do("delete", key)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt_module, "is_run_by_airflow", lambda ti: True)
        patch.setattr(attempt_module, "recorded_state", lambda ti: ti.do("ask"))
        patch.setattr(attempt_module, "once_ended_well", lambda ti, note: setattr(ti, "note", note))
        patch.setattr(attempt_module, "time", SimpleNamespace(time=now, sleep=lambda seconds: None))
        patch.setattr(submission_module, "time", SimpleNamespace(time=lambda: 1000.0 + actor().number))
        patch.setattr(submission_module, "count", lambda *given, **more: None)
        patch.setattr(stores, "read_variable", lambda key: actor().do("get", key))
        patch.setattr("airflow_provider_gptimg.airflow_compat.Variable", variables, raising=False)
        yield
