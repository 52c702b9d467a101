# SPDX-License-Identifier: Apache-2.0
"""Reuse never raises what is charged: several task instances ask for the same at once, die, and images are deleted.

The real code runs in greenlets that stop before each thing they do outside of themselves, as in `journal_world`. A
scheduler chooses by chance who goes on, who dies, when Airflow starts a task instance again, when time passes and
when the API forgets an image task.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest
from hypothesis import given, settings, strategies as st
from journal_world import QUIET, REQUEST

from airflow_provider_gptimg.api.tasks import COMPLETED, Image, ImageTask
from airflow_provider_gptimg.exceptions import GptImgError, GptImgSubmissionUnknownError, GptImgTaskNotFoundError
from airflow_provider_gptimg.journal import attempt as attempt_module, reuse as reuse_module, submission as module
from airflow_provider_gptimg.journal.attempt import Attempt
from airflow_provider_gptimg.journal.stores import S3Store
from airflow_provider_gptimg.journal.submission import Submission


class Bucket(S3Store):
    """A folder in an S3 that all task instances share."""

    def __init__(self, world: World, folder: str, writer: str) -> None:
        self.world, self.folder, self.writer = world, folder, writer

    def beside(self, folder: str) -> Bucket:
        return Bucket(self.world, f"{folder}/", self.writer)

    def get_signed(self, name: str) -> Any:
        return self.world.do("get", self.folder + name)

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        return bool(self.world.do("put", self.folder + name, {**entry, "writer": {"task_id": self.writer}}))

    def times(self, start: str = "", up_to: str = "") -> dict[str, float]:
        return dict.fromkeys(self.world.do("list", self.folder), 0.0)


class Actor(greenlet.greenlet):
    """One attempt of a task instance."""

    def __init__(self, world: World, name: str, number: int, max_tries: int) -> None:
        super().__init__(lambda: world.live(self))
        self.world, self.name, self.number, self.max_tries = world, name, number, max_tries
        self.pending: tuple[Any, ...] = ()
        self.state = "running"
        self.note: Any = None

    @property
    def is_over(self) -> bool:
        return self.state == "died" or bool(self.dead)


class World:
    """Task instances that ask for the same, an S3, and the API.

    :param reuse: As of the operator.
    :param conditions: Whether the S3 heeds conditions.
    """

    def __init__(self, names: str, *, reuse: bool, on_unknown: str = "fail", conditions: bool = True) -> None:
        self.reuse, self.on_unknown, self.conditions = reuse, on_unknown, conditions
        self.scheduler = greenlet.getcurrent()
        self.objects: dict[str, Any] = {}
        self.made: dict[str, str] = {}
        self.known: set[str] = set()
        self.clock = 1000.0
        self.promised = dict.fromkeys(names, 1)
        self.actors: dict[str, Actor] = {}
        self.disturbed = False
        for name in names:
            self.begin(name, max_tries=0)

    def begin(self, name: str, *, max_tries: int) -> None:
        number = self.actors[name].number + 1 if name in self.actors else 1
        self.actors[name] = actor = Actor(self, name, number, max_tries)
        actor.switch()

    def charged(self, name: str | None = None) -> int:
        return sum(name in (None, payer) for payer in self.made.values())

    # What the scheduler may choose.

    def choices(self) -> Iterator[tuple[str, str]]:
        for name, actor in self.actors.items():
            if not actor.is_over:
                yield "go", name
                yield "die", name
            elif actor.number < 4:
                yield ("clear" if actor.state in ("success", "failed") else "retry"), name
        yield "time", ""
        for task_id in self.known:
            yield "forget", task_id

    def choose(self, what: str, name: str) -> None:
        if what == "go":
            self.actors[name].switch()
            return
        self.disturbed = True
        if what == "die":
            self.actors[name].state = "died"
        elif what == "time":
            self.clock += 40.0
        elif what == "forget":
            self.known.discard(name)
        else:
            actor = self.actors[name]
            self.promised[name] += what == "clear" and actor.state == "success"
            self.begin(name, max_tries=actor.max_tries + (what == "clear"))

    # What an attempt does.

    def do(self, *what: Any) -> Any:
        actor: Any = greenlet.getcurrent()
        actor.pending = what
        self.scheduler.switch()
        return self.perform(actor, *what)

    def perform(self, actor: Actor, kind: str, *details: Any) -> Any:
        if kind == "get":
            return self.objects.get(details[0])
        if kind == "list":
            return [name.removeprefix(details[0]) for name in self.objects if name.startswith(details[0])]
        if kind == "put":
            name, entry = details
            entry = json.loads(json.dumps(entry))
            if self.conditions and name in self.objects:
                return self.objects[name] == entry
            self.objects[name] = entry
            return True
        if kind == "post":
            task_id = f"gpt-image-2-{len(self.made) + 1}"
            self.made[task_id] = actor.name
            self.known.add(task_id)
            return task_id
        if kind == "poll":
            return details[0] in self.known
        return None

    def live(self, actor: Actor) -> None:
        attempt = Attempt(Bucket(self, f"{actor.name}/", actor.name), actor.number, actor.max_tries, QUIET, ti=actor)
        submission = Submission(attempt, QUIET)
        try:
            accepted = submission.obtain(self.hook(), REQUEST, self.on_unknown, None, reuse=self.reuse)
            if not self.do("poll", accepted.task.task_id):
                raise GptImgTaskNotFoundError("gone")
            submission.deliver(accepted.name, accepted.task.task_id)
            actor.state = "success"
            if actor.note is not None:
                actor.note()
        except GptImgError as error:
            final = isinstance(error, GptImgSubmissionUnknownError | GptImgTaskNotFoundError)
            actor.state = "failed" if final else "up_for_retry"

    def hook(self) -> Any:
        def _submit_prepared(request: Any, pause: Any, before_connect: Any, before_send: Any) -> ImageTask:
            before_connect()
            before_send()
            return ImageTask(self.do("post"), COMPLETED, images=(Image("https://a.example/1"),))

        def get_task(task_id: str) -> ImageTask:
            if not self.do("poll", task_id):
                raise GptImgTaskNotFoundError("gone")
            return ImageTask(task_id, COMPLETED, images=(Image("https://a.example/1"),))

        return SimpleNamespace(
            gptimg_conn_id="gptimg_default",
            _prepare_submit=lambda request, aws_conn_id: request,
            _submit_prepared=_submit_prepared,
            get_task=get_task,
        )


@contextmanager
def modelled() -> Iterator[list[World]]:
    """Put the last of these worlds in the place of Airflow and of the clock."""
    worlds: list[World] = []

    def sleep(seconds: float) -> None:
        worlds[-1].do("sleep")
        worlds[-1].clock += seconds

    clock = SimpleNamespace(time=lambda: worlds[-1].clock, sleep=sleep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt_module, "is_run_by_airflow", lambda ti: True)
        patch.setattr(attempt_module, "recorded_state", lambda ti: ti.state)
        patch.setattr(attempt_module, "once_ended_well", lambda ti, note: setattr(ti, "note", note))
        for each in (attempt_module, module, reuse_module):
            patch.setattr(each, "time", clock)
        patch.setattr(attempt_module, "_SLICE", 10.0)
        patch.setattr(module, "count", lambda *given, **more: None)
        patch.setattr(module, "ends_wait", lambda error, now, submitted_at: True)
        yield worlds


def make(worlds: list[World], names: str, **options: Any) -> World:
    worlds.append(World.__new__(World))
    worlds[-1].__init__(names, **options)  # type: ignore[misc]
    return worlds[-1]


RARELY = {"die": 0.1, "time": 0.1, "forget": 0.05, "clear": 0.3, "retry": 0.5}


def wander(seed: str, steps: int, calm: bool = False, **options: Any) -> World:
    """Take one random course.

    :param calm: Nobody dies, nothing is forgotten, no time passes but what is slept.
    """
    chance = random.Random(seed)
    with modelled() as worlds:
        world = make(worlds, "abc", **options)
        for _ in range(steps):
            choices = [choice for choice in world.choices() if not calm or choice[0] == "go"]
            if not choices:
                break
            weights = [RARELY.get(what, 1.0) for what, _ in choices]
            world.choose(*chance.choices(choices, weights)[0])
            if world.on_unknown == "fail":
                for name in world.promised:
                    assert world.charged(name) <= world.promised[name], (seed, name)
        return world


@pytest.mark.parametrize("conditions", [True, False], ids=["conditions", "no conditions"])
def test_no_task_instance_is_charged_more_than_its_own_journal_allows(conditions):
    courses = [wander(f"{number}", 400, reuse=True, conditions=conditions) for number in range(200)]
    assert sum(world.charged() > 1 for world in courses) > 20, "deaths and deletions let others pay"
    reused = sum("reused" in name for world in courses for name in world.objects)
    assert reused > 100


def test_where_nobody_dies_one_pays():
    for number in range(100):
        world = wander(f"{number}", 5000, calm=True, reuse=True)
        assert [actor.state for actor in world.actors.values()] == ["success"] * 3
        assert world.charged() == 1


def test_without_conditions_each_pays_once_at_the_most():
    charged = {wander(f"{number}", 5000, calm=True, reuse=True, conditions=False).charged() for number in range(100)}
    assert max(charged) <= 3
    assert 1 in charged


STEPS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["", "", "before post", "after post", "forget"]),
    ),
    max_size=12,
)


@given(steps=STEPS)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_same_course_costs_no_more_with_reuse_than_without(steps):
    """Task instances run one after another, and die at the same points of their way.

    Under `resubmit`: under `fail`, a task that died stays failed without reuse, and so costs nothing any more.
    """
    with modelled() as worlds:
        assert charged_over(worlds, steps, True) <= charged_over(worlds, steps, False)


def charged_over(worlds: list[World], steps: Any, reuse: bool) -> int:
    world = make(worlds, "", reuse=reuse, on_unknown="resubmit")
    for name, what in steps:
        if what == "forget":
            world.known.clear()
            continue
        actor = world.actors.get(name)
        cleared = actor is not None and actor.state in ("success", "failed")
        world.promised.setdefault(name, 1)
        world.begin(name, max_tries=0 if actor is None else actor.max_tries + cleared)
        actor = world.actors[name]
        while not actor.is_over:
            is_post = actor.pending[0] == "post"
            if is_post and what == "before post":
                actor.state = "died"
                break
            actor.switch()
            if is_post and what == "after post" and not actor.is_over:
                actor.state = "died"
        world.clock += 100.0  # so that nobody waits for a lease of the dead
    return world.charged()
