# SPDX-License-Identifier: Apache-2.0
"""Three attempts of a batch of 20, at random and by seed: they freeze, die, are stopped, write late, twice or never.

One attempt runs at a time. At each call of the store, and before each POST, the scheduler may let another one go on,
which takes two seconds of the clock: longer than a look for later attempts holds.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from batch_instance import InTurn, prompts

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.batch import sending
from airflow_provider_gptimg.batch.entries import Standing
from airflow_provider_gptimg.batch.ledger import Ledger
from airflow_provider_gptimg.batch.requests import BatchRequest
from airflow_provider_gptimg.batch.sending import CHUNK, Sender
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRateLimitError, GptImgSubmissionUnknownError
from airflow_provider_gptimg.journal import attempt as journal_attempt, entries as journal_entries
from airflow_provider_gptimg.journal.attempt import Attempt

REQUESTS = [BatchRequest(text, ImageRequest(text)) for text in [*prompts(18), "Twice", "Twice"]]
PROMISED = Counter(asked.request.prompt for asked in REQUESTS)
ATTEMPTS = 3
COURSES = 400


class Died(BaseException):
    """The process was killed."""


class World:
    """A store, an API, a clock, and who may go on."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.values: dict[str, Any] = {}
        self.late: list[Callable[[], None]] = []
        self.charged: list[str] = []
        self.running: list[Worker] = []
        self.latest = 1
        """The latest attempt that has announced itself."""
        self.sent_too_late = 0
        """Submits that were begun after a stop, or after a later attempt had announced itself."""

    def step(self) -> None:
        """Let things happen between two steps of a worker."""
        while self.late and self.chance.random() < 0.2:
            self.late.pop(self.chance.randrange(len(self.late)))()


class Worker:
    """One attempt, in a thread of its own that goes on when it is told to."""

    lasts, forgets, way_to_drop = True, False, "drop it"

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.is_dead = False
        self.attempt = Attempt(self, number, 0, SimpleNamespace(warning=lambda *text: None))  # type: ignore[arg-type]
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def go_on(self) -> None:
        """Let it take one step."""
        self._go.release()
        self._paused.acquire()

    def end(self) -> None:
        """Let its thread end, without any effect."""
        self.is_dead = True
        while not self.is_over:
            self.go_on()

    def _pause(self) -> None:
        if self.is_dead:
            raise Died
        self._paused.release()
        self._go.acquire()
        if self.is_dead:
            raise Died

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._work()
        except (GptImgError, Died):
            pass
        finally:
            self.world.running.remove(self)
            self._paused.release()

    def _work(self) -> None:
        self.attempt.announce()
        self.world.latest = max(self.world.latest, self.attempt.number)
        ledger = Ledger(self, "c", self.attempt.number, 0)  # type: ignore[arg-type]
        entries = ledger.enter(REQUESTS)
        sender = Sender(self, self.attempt, ledger, None, SimpleNamespace(info=lambda *text: None))  # type: ignore[arg-type]
        refusals = 0
        while refusals < 3:
            pending = [entry for entry in entries if ledger.standing(entry, "fail") is Standing.PENDING]
            if not pending:
                return
            outcomes = sender.send(pending[:CHUNK])
            refusals += any(isinstance(outcome, GptImgRateLimitError) for outcome in outcomes.values())
            self.attempt.pause(0.0)

    # The store: like Airflow's, whose writes may be executed late, or twice, over what is there.

    def get(self, key: str) -> Any:
        self._pause()
        value = self.world.values.get(key)
        if self.world.chance.random() < 0.3:
            self._pause()  # frozen with the answer in its hands
        return value

    read = get

    def put(self, key: str, value: Any) -> bool:
        self._pause()
        world, fate = self.world, self.world.chance.random()

        def write() -> None:
            world.values[key] = value

        if fate < 0.02:
            raise GptImgError("The journal cannot be written")
        if fate < 0.04:
            world.late.append(write)
            raise GptImgError("The journal did not answer")
        write()
        if fate < 0.2:
            world.late.append(write)
        return True

    # The hook.

    def _prepare_submit(self, request: ImageRequest, aws_conn_id: None) -> ImageRequest:
        return request

    def _submit_prepared(
        self, request: ImageRequest, *, max_attempts: int, before_send: Callable[[], None]
    ) -> ImageTask:
        self._pause()
        before_send()
        self.world.sent_too_late += self.attempt.is_stopped or self.world.latest > self.attempt.number
        fate = self.world.chance.random()
        if fate < 0.05:
            raise GptImgRateLimitError("Slow down")
        self.world.charged.append(request.prompt)
        task_id = f"task-{len(self.world.charged)}"
        self._pause()
        if fate < 0.08:
            raise GptImgSubmissionUnknownError("The answer was lost")
        return ImageTask(task_id, "processing")


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "ThreadPoolExecutor", InTurn)


def course(seed: int, monkeypatch: pytest.MonkeyPatch) -> World:
    """Let three attempts of a batch go on as the seed has it."""
    world = World(seed)
    clock = SimpleNamespace(time=lambda: world.now, sleep=lambda seconds: None)
    monkeypatch.setattr(journal_attempt, "time", clock)
    monkeypatch.setattr(sending, "time", clock)
    started = [Worker(world, 1)]
    world.running.append(started[0])
    current = started[0]
    patience = world.chance.choice([3, 10, 40])
    while world.running:
        world.step()
        if world.chance.random() < 1 / patience:
            world.now += 2
            current = world.chance.choice(world.running)
        elif current not in world.running:
            current = world.chance.choice(world.running)
        last = started[-1]
        fate = world.chance.random()
        if fate < 0.004:
            last.is_dead = True
        elif fate < 0.008:
            last.attempt.is_stopped = True
        # Airflow starts the next attempt when it has given the last one up, which may be alive.
        if len(started) < ATTEMPTS and (last.is_over or world.chance.random() < 0.02):
            world.now += 2
            started.append(Worker(world, len(started) + 1))
            world.running.append(started[-1])
            current = started[-1]
        current.go_on()
    for write in world.late:
        write()
    return world


def doubles(world: World) -> list[str]:
    """What was paid for more often than was asked for."""
    return [prompt for prompt, times in Counter(world.charged).items() if times > PROMISED[prompt]]


def test_nothing_is_paid_for_twice_and_nothing_is_lost_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    charged = 0
    for seed in range(COURSES):
        world = course(seed, monkeypatch)
        assert not doubles(world), f"seed {seed}"
        assert not world.sent_too_late, f"seed {seed}"
        charged += len(world.charged)
        ledger = Ledger(SimpleNamespace(get=world.values.get, lasts=True, forgets=False), "c", ATTEMPTS + 1, 0)  # type: ignore[arg-type]
        entries = ledger.enter(REQUESTS)
        for prompt, times in Counter(world.charged).items():
            standings = [ledger.standing(entry, "fail") for entry in entries if entry.prompt == prompt]
            known = standings.count(Standing.IN_FLIGHT) + standings.count(Standing.UNKNOWN)
            assert known >= times, f"seed {seed}: {prompt} was paid for and would be submitted again"
    assert charged > COURSES * 10


@pytest.mark.parametrize("rule", ["announce", "look", "look_again", "outcome"])
def test_each_rule_is_needed(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """The courses above find what happens without it."""
    if rule == "outcome":  # as if a lost answer were a refusal
        monkeypatch.setattr(journal_entries.Submitted, "is_unknown", False)
    elif rule == "look":
        monkeypatch.setattr(Attempt, "look", lambda self, **more: None)
        monkeypatch.setattr(Attempt, "look_again", lambda self: None)
    else:
        monkeypatch.setattr(Attempt, rule, lambda self: None)
    worlds = (course(seed, monkeypatch) for seed in range(COURSES))
    assert any(doubles(world) or world.sent_too_late for world in worlds)
