# SPDX-License-Identifier: Apache-2.0
"""Credits charged are images promised, over every interleaving of two attempts and many random ones of three."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from journal_world import World, modelled

from airflow_provider_gptimg.journal import attempt as attempt_module
from airflow_provider_gptimg.journal.attempt import Attempt

KINDS = ("state store", "Variables")


RARELY = {"die": 0.03, "fail": 0.03, "retry": 0.1}
"""Weights of what would end most courses before they come to something."""


class Broken(AssertionError):
    """What must hold does not: carries the course that led to it."""


def check(world: World, course: list[str]) -> None:
    """Check what holds at each moment."""
    if world.on_unknown == "fail" and world.charged > world.promised:
        raise Broken(f"charged {world.charged} times for {world.promised}: {course}")
    if undone := [name for name, entry in world.acknowledged.items() if world.entries.get(name) != entry]:
        raise Broken(f"a late write undid {undone}: {course}")
    if world.posts_after_stop:
        raise Broken(f"sent after a stop: {course}")
    if world.charged > world.delivered and all(actor.is_over for actor in world.actors) and not world.late:
        known = sum(".intent" in name for name in world.entries)
        if known < world.charged - world.delivered:
            raise Broken(f"nobody knows of what was charged: {course}")


def explore(make: Callable[[], World]) -> int:
    """Take every course, and return how many states there are."""
    holder: list[World] = []
    seen: set[Any] = set()
    todo: list[list[str]] = [[]]
    with modelled(lambda: holder[-1]):
        while todo:
            course = todo.pop()
            holder[:] = [World.__new__(World)]
            world = holder[0]
            make_into(world, make)
            for choice in course:
                world.choose(choice)
            while world.key not in seen:
                seen.add(world.key)
                check(world, course)
                first, *others = [*world.choices(), ""]
                todo += [[*course, other] for other in others if other]
                if not first:
                    break
                course = [*course, first]
                world.choose(first)
    return len(seen)


def make_into(world: World, make: Any) -> None:
    """Initialise a world that `modelled` knows already."""
    kind, options = make()
    world.__init__(kind, **options)  # type: ignore[misc]


def wander(make: Any, courses: int, seed: int) -> int:
    """Take random courses to their ends; return how many charged something."""
    holder: list[World] = []
    charged = 0
    with modelled(lambda: holder[-1]):
        for number in range(courses):
            chance = random.Random(f"{seed}.{number}")
            holder[:] = [World.__new__(World)]
            world = holder[0]
            make_into(world, make)
            course: list[str] = []
            while choices := list(world.choices()):
                weights = [RARELY.get(choice.split()[0], 1.0) for choice in choices]
                course.append(chance.choices(choices, weights)[0])
                world.choose(course[-1])
                check(world, course)
            charged += world.charged > 0
    return charged


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "waits"),
    [
        ("state store", False),
        ("state store", True),
        pytest.param("Variables", False, marks=pytest.mark.system),  # half a minute: its store is read name by name
    ],
)
def test_every_interleaving_of_two_attempts(kind, waits):
    assert explore(lambda: (kind, {"waits": waits})) > 1000


@pytest.mark.parametrize("kind", KINDS)
def test_random_interleavings_of_three_attempts_with_refusals_losses_and_late_writes(kind):
    assert wander(lambda: (kind, {"attempts": 3, "faults": True}), 3000, seed=1) > 1000


def no_announcement(patch):
    """A replaced attempt POSTs late (4)."""
    patch.setattr(Attempt, "announce", lambda self: None)


def no_look(patch):
    """As release 0.1 did it: a replaced attempt POSTs late (4)."""
    patch.setattr(Attempt, "_next", "none")


def a_refusal_deletes_the_intent(patch):
    """As release 0.1 did it, under one key for all attempts."""

    def settle(self, submission, *, task_id=None, refused=None):
        if refused is None:
            return kept(self, submission, task_id=task_id)
        self.store.delete(f"{submission.name}.intent")
        return submission

    kept = Attempt.settle
    patch.setattr(Attempt, "settle", settle)
    one_key_for_all_attempts(patch)


def one_key_for_all_attempts(patch):
    """As release 0.1 did it."""
    made = Attempt.__init__

    def make(self, *given, **more):
        made(self, *given, **more)
        read, put, delete = self.store.read, self.store.put, self.store.delete
        same = lambda name: name if name.endswith(".begun") else "1.1" + name[name.rindex(".") :]  # noqa: E731
        self.store.read = lambda name: read(same(name)) if name.startswith("1.1.") else None
        self.store.put = lambda name, entry: put(same(name), entry)
        self.store.delete = lambda name: delete(same(name))

    patch.setattr(Attempt, "__init__", make)


def one_record_for_intent_and_outcome(patch):
    """As release 0.1 did it: a late write of the intent rolls the outcome back (3)."""
    made = Attempt.__init__

    def make(self, *given, **more):
        made(self, *given, **more)
        read, put = self.store.read, self.store.put
        record = lambda name: name.replace(".outcome", ".intent")  # noqa: E731
        self.store.read = lambda name: read(record(name))
        self.store.put = lambda name, entry: put(record(name), entry)

    patch.setattr(Attempt, "__init__", make)


def a_callback_proves_the_delivery(patch):
    """As release 0.1 did it: clearing a failed task pays again (1)."""
    patch.setattr(Attempt, "once_recorded", lambda self, note: attempt_module.once_ended_well(self._ti, note))


def a_stop_is_ignored(patch):
    """As release 0.1 did it: paying goes on after a stop (2)."""
    patch.setattr(Attempt, "_check_stop", lambda self: None)


@pytest.mark.parametrize(
    "left_out",
    [
        no_announcement,
        no_look,
        one_key_for_all_attempts,
        a_refusal_deletes_the_intent,
        a_callback_proves_the_delivery,
        a_stop_is_ignored,
    ],
)
def test_what_is_left_out_of_the_protocol_is_found(monkeypatch, left_out):
    """The harness is worth something: without any one of these, a course pays twice, after a stop, or for nothing."""
    left_out(monkeypatch)
    with pytest.raises(Broken) as found:
        explore(lambda: ("state store", {}))
    print(left_out.__name__, found.value)


def test_a_record_that_is_overwritten_is_found(monkeypatch):
    one_record_for_intent_and_outcome(monkeypatch)
    with pytest.raises(Broken, match="a late write undid"):
        wander(lambda: ("state store", {"faults": True}), 3000, seed=1)
