# SPDX-License-Identifier: Apache-2.0
"""A submission is paid for once, wherever its processes are killed: every point, in every mode, on a real Airflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from kill_airflow import kill_task, killable_airflow
from kill_gate import Gate
from kill_report import TASK, Evidence, delivered, failed_for_unknown_outcome, record_of, table

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox.rest import DagRun, until
from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

LIMIT = 240.0
"""Seconds that a condition may take on a busy machine."""
FINAL = ("success", "failed")

SUBMIT, GENERATE, DEFERRABLE = "submit", "generate", "generate_deferrable"
ALL_MODES = (SUBMIT, GENERATE, DEFERRABLE)

SUBMITTED, STOPPED, TOOK_UP, NONE = "submitted", "stopped", "took up the paid task", "there was none"


@dataclass(frozen=True)
class Cell:
    """One kill point in one mode, with an API and a ledger of its own."""

    point: Point
    mode: str

    @property
    def name(self) -> str:
        return f"{self.point.name}, {self.mode}"


@dataclass
class Scene:
    """A run that is to be killed at one point."""

    name: str
    emulator: Emulator
    gate: Gate
    airflow: StandaloneAirflow
    connection: str
    run: DagRun = field(init=False)

    @property
    def conf(self) -> dict[str, str]:
        return {"name": self.name, "connection": self.connection, "prompt": "a cat"}


Script = Callable[[Scene], Iterator[None]]


def call(name: str, where: str) -> Script:
    """Stop at a call to Airflow: see `Gate.hold`."""

    def script(scene: Scene) -> Iterator[None]:
        hold = scene.gate.hold(scene.name, name, where)
        yield
        assert hold.reached.wait(LIMIT), f"{scene.name}: was not reached"
        yield
        if where == "request":
            hold.drop()
        else:
            hold.let_go()

    return script


def post(fault: str) -> Script:
    """Stop in the POST: `hang_before` it is accepted, or `hang_after`."""

    def script(scene: Scene) -> Iterator[None]:
        scene.emulator.fault("submit", fault)
        yield
        until(lambda: scene.emulator.waiting(fault), LIMIT, f"{scene.name}: the POST", pause=0.05)
        yield

    return script


def refused(scene: Scene) -> Iterator[None]:
    """Stop in the pause that a rate limit asks for."""
    scene.emulator.fault("submit", 429, retry_after=50)
    yield
    until(
        lambda: [call.status for call in scene.emulator.calls] == [429] and record_of(scene.run) == "none",
        LIMIT,
        f"{scene.name}: the pause",
    )
    yield


def wait(scene: Scene) -> Iterator[None]:
    """Stop when the image task has been asked for by whoever waits for it; it ends after the kill."""
    yield
    # The first poll is the one made before waiting.
    tasks = until(lambda: [task for task in scene.emulator.tasks if task.polls > 1], LIMIT, f"{scene.name}: a poll")
    yield
    scene.emulator.finish(tasks[0].task_id)


@dataclass(frozen=True)
class Point:
    """Where a process is killed, and what is to come of it.

    :param found: What is to be seen from outside at that moment: that it is this point, and no other.
    :param state: The final one.
    :param second: What the next attempt does.
    :param victim: `task`; `machine`: its supervisor too; `triggerer`.
    """

    name: str
    script: Script
    found: Evidence
    state: str
    posts: int
    credits: int
    second: str
    victim: str = "task"
    modes: tuple[str, ...] = ALL_MODES


POINTS = [
    Point(
        "before the intent",
        call("read the journal", "answer"),
        Evidence(posts=0, answers=0, charges=(), record="none", result=False),
        "success",
        posts=1,
        credits=2,
        second=SUBMITTED,
    ),
    Point(
        "after the intent, before the POST",
        call("write the intent", "answer"),
        Evidence(posts=0, answers=0, charges=(), record="intent", result=False),
        "failed",
        posts=0,
        credits=0,
        second=STOPPED,
    ),
    Point(
        "after the look for a later attempt, before the POST",
        call("look for a later attempt", "answer"),
        Evidence(posts=0, answers=0, charges=(), record="intent", result=False),
        "failed",
        posts=0,
        credits=0,
        second=STOPPED,
    ),
    Point(
        "while it pauses after HTTP 429",
        refused,
        Evidence(posts=1, answers=1, charges=(), record="none", result=False),
        "success",
        posts=2,
        credits=2,
        second=SUBMITTED,
        modes=(SUBMIT, GENERATE),
    ),
    Point(
        "in the POST, before it was accepted",
        post("hang_before"),
        Evidence(posts=1, answers=0, charges=(), record="intent", result=False),
        "failed",
        posts=1,
        credits=0,
        second=STOPPED,
    ),
    Point(
        "in the POST, accepted, before the answer",
        post("hang_after"),
        Evidence(posts=1, answers=0, charges=(2,), record="intent", result=False),
        "failed",
        posts=1,
        credits=2,
        second=STOPPED,
    ),
    Point(
        "after the answer, before the record",
        call("write the task id", "request"),
        Evidence(posts=1, answers=1, charges=(2,), record="intent", result=False),
        "failed",
        posts=1,
        credits=2,
        second=STOPPED,
        victim="machine",
    ),
    Point(
        "after the record",
        call("write the task id", "answer"),
        Evidence(posts=1, answers=1, charges=(2,), record="task id", result=False),
        "success",
        posts=1,
        credits=2,
        second=TOOK_UP,
    ),
    Point(
        "while waiting on a worker",
        wait,
        Evidence(posts=1, answers=1, charges=(2,), record="task id", result=False),
        "success",
        posts=1,
        credits=2,
        second=TOOK_UP,
        victim="machine",
        modes=(GENERATE,),
    ),
    Point(
        "while deferred",
        wait,
        Evidence(posts=1, answers=1, charges=(2,), record="task id", result=False),
        "success",
        posts=1,
        credits=2,
        second=NONE,
        victim="triggerer",
        modes=(DEFERRABLE,),
    ),
    Point(
        "after completion, before the XCom",
        call("push the result", "request"),
        Evidence(posts=1, answers=1, charges=(2,), record="task id", result=False),
        "success",
        posts=1,
        credits=2,
        second=TOOK_UP,
        victim="machine",
    ),
    Point(
        "after the XCom, before the success",
        call("push the result", "answer"),
        Evidence(posts=1, answers=1, charges=(2,), record="task id", result=True),
        "success",
        posts=1,
        credits=2,
        second=TOOK_UP,
    ),
    Point(
        "after the success, before it is noted",
        call("note the delivery", "request"),
        Evidence(posts=1, answers=1, charges=(2,), record="task id", result=True),
        "success",
        posts=1,
        credits=2,
        second=NONE,
        victim="machine",
    ),
]
CELLS = [Cell(point, mode) for point in POINTS for mode in point.modes]


@dataclass(frozen=True)
class Outcome:
    """What was seen when the process was killed, and what in the end."""

    found: Evidence
    end: Evidence
    state: str
    attempts: int
    unknown: bool
    delivered: str | None
    charged: tuple[str, ...]

    @property
    def second(self) -> str:
        """What the attempt after the killed one did."""
        if self.attempts == 1:
            return NONE
        if self.end.posts > self.found.posts:
            return SUBMITTED
        return STOPPED if self.unknown else TOOK_UP if self.state == "success" else "failed"

    @property
    def charged_twice(self) -> bool:
        return len(self.charged) > 1

    @property
    def lost(self) -> bool:
        """Whether images that were paid for, or a success without images, went by without a word."""
        if self.state == "success":
            return self.delivered is None or self.delivered not in self.charged
        return bool(self.charged) and not (self.unknown or self.end.record in ("task id", "delivered"))


@pytest.fixture(scope="module")
def scenes() -> Iterator[Callable[[str], Scene]]:
    """An Airflow, with an API for each cell and for each other test of this module; returns what belongs to a name."""
    names = {cell.name: 3600 if cell.point.script is wait else 3 for cell in CELLS}
    names |= {"a failure": 3600, "a late failure": 0, "a success": 0, "an unknown outcome": 0}
    names |= {"a stop in a pause": 0, "a success that is refused": 0}
    # Long enough for Airflow to defer a task in peace.
    schedule = {"first_poll_after": 3, "poll_interval": 1}
    with ExitStack() as stack:
        emulators = {
            name: stack.enter_context(Emulator(durations=(seconds, seconds), extra=schedule))
            for name, seconds in names.items()
        }
        connections = {name: f"gptimg_{number}" for number, name in enumerate(names)}
        gate = stack.enter_context(Gate())
        airflow = stack.enter_context(
            killable_airflow(
                gate, {connections[name]: emulators[name].connection_json for name in names}, parallelism=12
            )
        )
        yield lambda name: Scene(name, emulators[name], gate, airflow, connections[name])


@pytest.fixture(scope="module")
def matrix(scenes: Callable[[str], Scene]) -> dict[Cell, Future[Outcome]]:
    """What became of each cell; all of them run at once."""
    stage = {cell: scenes(cell.name) for cell in CELLS}
    steps = {cell: cell.point.script(scene) for cell, scene in stage.items()}
    for cell, scene in stage.items():
        next(steps[cell])
        scene.run = queue(scene, cell.mode)
    for mode in ALL_MODES:
        unpause(scene.airflow, mode)
    with ThreadPoolExecutor(len(CELLS)) as pool:
        kills = {cell: pool.submit(kill, scene, steps[cell], cell.point.victim) for cell, scene in stage.items()}
    # One looks after the other, so that the API server has time for the workers.
    with ThreadPoolExecutor(1) as pool:
        return {cell: pool.submit(end, scene, kills[cell]) for cell, scene in stage.items()}


def queue(scene: Scene, mode: str) -> DagRun:
    """Make a run that does not start before its DAG is unpaused: no worker is to write while runs are made."""
    dag = f"/dags/kill_{mode}"
    until(lambda: scene.airflow.api.call("GET", dag), LIMIT, f"{dag} to be found")
    body = {"logical_date": None, "conf": scene.conf}
    return DagRun(
        scene.airflow.api, f"kill_{mode}", scene.airflow.api.call("POST", f"{dag}/dagRuns", body)["dag_run_id"]
    )


def unpause(airflow: StandaloneAirflow, mode: str) -> None:
    airflow.api.call("PATCH", f"/dags/kill_{mode}", {"is_paused": False})


def kill(scene: Scene, steps: Iterator[None], victim: str) -> Evidence:
    """Kill a run where its script stops it, and return what could be seen at that moment."""
    next(steps)
    if victim == "triggerer":
        scene.run.wait_for(TASK, "deferred", timeout=LIMIT)
    found = Evidence.now(scene.run, scene.emulator)
    if victim == "triggerer":
        scene.airflow.kill("triggerer")
    else:
        process, supervisor = scene.airflow.task_processes(scene.run, TASK)
        assert kill_task(process, supervisor, with_supervisor=victim == "machine"), f"{scene.name}: ended by itself"
    next(steps, None)
    if victim == "triggerer":
        scene.airflow.launch("triggerer", timeout=LIMIT)
    return found


def end(scene: Scene, found: Future[Evidence]) -> Outcome:
    """Wait for the end of a run, and return all that is to be known of it."""
    seen = found.result()
    ti = scene.run.wait_for(TASK, *FINAL, timeout=LIMIT)
    return Outcome(
        found=seen,
        end=Evidence.now(scene.run, scene.emulator),
        state=ti["state"],
        attempts=ti["try_number"],
        unknown=failed_for_unknown_outcome(scene.run),
        delivered=delivered(scene.run, scene.emulator),
        charged=tuple(entry.task_id for entry in scene.emulator.ledger if entry.kind == "charge"),
    )


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_killed_task_is_paid_for_once(matrix: dict[Cell, Future[Outcome]], cell: Cell) -> None:
    outcome, point = matrix[cell].result(), cell.point
    assert outcome.found == point.found, "this was another point"
    assert (outcome.state, outcome.second) == (point.state, point.second)
    assert (outcome.end.posts, outcome.end.credits) == (point.posts, point.credits)
    assert not outcome.charged_twice
    assert not outcome.lost


def test_nothing_is_charged_twice_and_nothing_is_lost(
    matrix: dict[Cell, Future[Outcome]], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {cell: matrix[cell].result() for cell in CELLS if not matrix[cell].exception()}
    twice = sum(outcome.charged_twice for outcome in outcomes.values())
    lost = sum(outcome.lost for outcome in outcomes.values())
    head = ("killed", "mode", "victim", "POSTs", "credits", "end", "attempts", "the next attempt")
    rows = [
        (
            cell.point.name,
            cell.mode,
            cell.point.victim,
            str(outcome.end.posts),
            str(outcome.end.credits),
            outcome.state,
            str(outcome.attempts),
            outcome.second,
        )
        for cell, outcome in outcomes.items()
    ]
    report = f"{table([head, *rows])}\n{len(outcomes)} kills: charged twice {twice}, silently lost {lost}"
    with capsys.disabled():
        print(f"\n{report}")
    assert (len(outcomes), twice, lost) == (len(CELLS), 0, 0), report


def start(scene: Scene, mode: str) -> DagRun:
    return scene.airflow.trigger(f"kill_{mode}", scene.conf, LIMIT)


def cleared(run: DagRun) -> str:
    """Clear the task as a person does, and return the state it then ends in."""
    attempts = run.task_instance(TASK)["try_number"]
    run.clear(TASK)
    until(lambda: run.task_instance(TASK)["try_number"] > attempts, LIMIT, "the next attempt")
    # Cleared again before its run ends too, a task is never scheduled: the scheduler ends the run over it.
    run.wait(LIMIT)
    state: str = run.task_instance(TASK)["state"]
    return state


def test_clearing_a_failure_picks_up_what_is_paid_for(scenes: Callable[[str], Scene]) -> None:
    scene = scenes("a failure")
    steps = wait(scene)
    next(steps)
    scene.run = start(scene, "generate_once")
    kill(scene, steps, "task")
    assert scene.run.wait(LIMIT) == "failed"
    assert delivered(scene.run, scene.emulator) is None

    assert cleared(scene.run) == "success"
    [charge] = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == charge.task_id


def test_clearing_a_failure_at_the_very_end_picks_up_what_is_paid_for(scenes: Callable[[str], Scene]) -> None:
    scene = scenes("a late failure")
    steps = call("push the result", "answer")(scene)
    next(steps)
    scene.run = start(scene, "generate_once")
    kill(scene, steps, "task")
    assert scene.run.wait(LIMIT) == "failed"

    assert cleared(scene.run) == "success"
    [charge] = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == charge.task_id


def test_clearing_a_success_makes_new_images(scenes: Callable[[str], Scene]) -> None:
    scene = scenes("a success")
    scene.run = start(scene, GENERATE)
    assert scene.run.wait(LIMIT) == "success"
    [first] = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == first.task_id
    # Noted after the success, by the process that ends then.
    until(lambda: record_of(scene.run) == "delivered", LIMIT, "the note of the delivery")

    assert cleared(scene.run) == "success"
    _, second = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == second.task_id


def test_after_an_unknown_outcome_only_a_person_goes_on(scenes: Callable[[str], Scene]) -> None:
    scene = scenes("an unknown outcome")
    steps = post("hang_after")(scene)
    next(steps)
    scene.run = start(scene, SUBMIT)
    kill(scene, steps, "task")
    assert scene.run.wait(LIMIT) == "failed"

    assert cleared(scene.run) == "failed"
    assert failed_for_unknown_outcome(scene.run)
    assert len(scene.emulator.ledger) == 1

    for key in scene.run.state_store(TASK):
        scene.airflow.api.call("DELETE", f"{scene.run.path}/taskInstances/{TASK}/state-store/{key}")
    assert cleared(scene.run) == "success"
    _, second = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == second.task_id


def mark_failed(run: DagRun) -> None:
    """Mark the running task failed, as a person does in the UI; `execute` runs on for some seconds."""
    run.api.call("PATCH", f"{run.path}/taskInstances/{TASK}", {"new_state": "failed"})


def test_a_task_that_is_marked_failed_in_a_pause_sends_nothing_more(scenes: Callable[[str], Scene]) -> None:
    scene = scenes("a stop in a pause")
    # Longer than the mark takes to reach the task, and shorter than Airflow lets a stopped task run on.
    scene.emulator.fault("submit", 429, retry_after=4)
    scene.run = start(scene, SUBMIT)
    until(lambda: scene.emulator.calls, LIMIT, "the first POST", pause=0.05)
    mark_failed(scene.run)
    until(lambda: "The task is stopped" in scene.run.log(TASK), LIMIT, "the stop")
    until(lambda: "nothing more is sent" in scene.run.log(TASK), LIMIT, "the end of the pause")
    assert scene.emulator.ledger == []

    assert cleared(scene.run) == "success"
    [charge] = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == charge.task_id


def test_a_success_that_airflow_refuses_is_no_delivery(scenes: Callable[[str], Scene]) -> None:
    """Its task was marked failed before it ended well: its callbacks run all the same."""
    scene = scenes("a success that is refused")
    hold = scene.gate.hold(scene.name, "write the task id", "answer")
    scene.run = start(scene, SUBMIT)
    assert hold.reached.wait(LIMIT)
    process, _ = scene.airflow.task_processes(scene.run, TASK)
    mark_failed(scene.run)
    hold.let_go()
    until(lambda: not process.is_running(), LIMIT, "its end")
    assert record_of(scene.run) == "task id"

    assert cleared(scene.run) == "success"
    [charge] = scene.emulator.ledger
    assert delivered(scene.run, scene.emulator) == charge.task_id
