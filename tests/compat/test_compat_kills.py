# SPDX-License-Identifier: Apache-2.0
"""A task whose process is killed, at any point, pays once: the kill matrix's short form, on a running Airflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from running_airflow import RunningAirflow

from airflow_provider_gptimg.airflow_compat import AIRFLOW
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import S3Server
from airflow_provider_gptimg.sandbox.rest import until

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif((3, 3) <= AIRFLOW < (3, 4), reason="make system kills at more points, on Airflow 3.3"),
]
HERE = Path(__file__).parent
LIMIT = 240.0
"""Seconds that a condition may take on a busy machine."""
RETRIES_KILLED = AIRFLOW != (3, 0)
"""Airflow 3.0 mostly fails a task whose process was killed, whatever `retries` says: here, a person clears it then."""
AGAIN, SAME, UNKNOWN = "submits again", "takes up what is paid for", "asks a person"
"""What a clear comes to."""


@dataclass(frozen=True)
class Kill:
    """Where the process of a task is killed in its first attempt, and what is to come of it.

    :param kind: Of the task; with `_once` it is not retried.
    :param state: After all attempts.
    :param charged: Image tasks by then.
    :param attempts: Of the killed task by then.
    :param clear: What a person's clear comes to then; None: nobody clears it.
    """

    kind: str
    point: str
    state: str
    charged: int
    attempts: int = 2
    clear: str | None = None
    task: str = "images"

    @property
    def name(self) -> str:
        return f"{self.kind} {self.point}"

    @property
    def requests(self) -> int:
        return 3 if self.kind.startswith("batch") else 1


KILLS = [
    Kill("submit", "before the intent", "success", charged=1, clear=AGAIN),
    Kill("submit", "after the intent", "failed", charged=0),
    Kill("submit", "in the POST", "failed", charged=1, clear=UNKNOWN),
    Kill("submit", "before the outcome", "failed", charged=1),
    Kill("submit", "after the outcome", "success", charged=1),
    Kill("submit", "when it has returned", "success", charged=1),
    # Nobody noted the delivery, so that a clear has to take it for undelivered.
    Kill("submit", "after the success", "success", charged=1, attempts=1, clear=SAME),
    Kill("generate", "in the POST", "failed", charged=1),
    Kill("generate", "while it waits", "success", charged=1),
    Kill("generate_once", "while it waits", "failed", charged=1, attempts=1, clear=SAME),
    Kill("deferred", "after the outcome", "success", charged=1, clear=AGAIN),
    Kill("deferred", "when it resumes", "success", charged=1),
    Kill("batch", "before the intent", "success", charged=3, clear=AGAIN),
    Kill("batch", "after the intent", "failed", charged=0),
    Kill("batch", "in the POST", "failed", charged=3, clear=UNKNOWN),
    Kill("batch", "before the outcome", "failed", charged=3),
    Kill("batch", "after the outcome", "success", charged=3),
    Kill("batch_once", "while it waits", "failed", charged=3, attempts=1, clear=SAME),
    Kill("batch", "before the images' PUT", "success", charged=3),
    Kill("batch", "when it has returned", "success", charged=3),
    Kill("chain", "while it waits", "success", charged=1),
    Kill("chain", "before the images' PUT", "success", charged=1, task="mirror"),
]


@dataclass
class Ended:
    """What was seen of a killed task.

    :param sent: Prompts that were charged: after all attempts, and after the clear.
    """

    states: list[str] = field(default_factory=list)
    sent: list[list[str]] = field(default_factory=list)
    attempts: int = 0
    log: str = ""


def see(kill: Kill, emulator: Emulator, run: Any) -> Ended:
    """Kill a task, let Airflow go on, and clear it."""
    if kill.point == "in the POST":
        until(lambda: emulator.waiting("hang_after"), LIMIT, f"{kill.name}: the POST", pause=0.1)
        # The others of a batch are accepted.
        until(lambda: len(emulator.tasks) == kill.requests, LIMIT, f"{kill.name}: the other POSTs", pause=0.1)
        psutil.Process(run.task_instance(kill.task)["pid"]).kill()
    elif kill.point == "while it waits":
        until(lambda: _is_waited_for(emulator, kill.requests), LIMIT, f"{kill.name}: the wait", pause=0.1)
        psutil.Process(run.task_instance(kill.task)["pid"]).kill()
        for task in emulator.tasks:
            emulator.finish(task.task_id)
    ended = Ended()
    if not RETRIES_KILLED and run.wait(LIMIT) and run.task_instance(kill.task)["try_number"] < kill.attempts:
        clear(kill, run)
    note(kill, ended, run, emulator)
    if kill.clear:
        clear(kill, run)
        note(kill, ended, run, emulator)
    return ended


def clear(kill: Kill, run: Any) -> None:
    before = run.task_instance(kill.task)["try_number"]
    for task in ("images", "mirror") if kill.kind == "chain" and kill.task == "images" else (kill.task,):
        run.clear(task)
    until(lambda: run.task_instance(kill.task)["try_number"] > before, LIMIT, f"{kill.name}: the clear")


def _is_waited_for(emulator: Emulator, requests: int) -> bool:
    # The first poll is the one made before waiting.
    return len(emulator.tasks) == requests and all(task.polls > 1 for task in emulator.tasks)


def note(kill: Kill, ended: Ended, run: Any, emulator: Emulator) -> None:
    ended.states.append(run.wait(LIMIT))
    # The process notes its delivery after Airflow has the success.
    until(lambda: not psutil.pid_exists(run.task_instance(kill.task)["pid"] or 0), LIMIT, "the process to end")
    ended.sent.append(sorted(task.prompt for task in emulator.tasks))
    ended.attempts = run.task_instance(kill.task)["try_number"]
    ended.log = run.log(kill.task)


@pytest.fixture(scope="module")
def seen(airflow_db: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kill, Future[Ended]]]:
    """What became of each killed task; all run at once, each with an API of its own."""
    dags = tmp_path_factory.mktemp("dags")
    shutil.copy(HERE / "kill_dags.py", dags)
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server("images"))
        emulators, env = {}, {"AIRFLOW__CORE__PARALLELISM": "6", "AIRFLOW_CONN_AWS_DEFAULT": s3.connection_json}
        for number, kill in enumerate(KILLS):
            seconds = 3600 if kill.point == "while it waits" else 3 if kill.kind == "deferred" else 0
            schedule = {"first_poll_after": 1, "poll_interval": 0.5}
            emulators[kill] = stack.enter_context(Emulator(durations=(seconds, seconds), extra=schedule))
            if kill.point == "in the POST":
                emulators[kill].fault("submit", "hang_after")
            env[f"AIRFLOW_CONN_GPTIMG_{number}"] = emulators[kill].connection_json
        airflow = stack.enter_context(RunningAirflow(dags, env))
        runs = {
            kill: airflow.queue(f"kill_{kill.kind}", {"connection": f"gptimg_{number}", "point": kill.point})
            for number, kill in enumerate(KILLS)
        }
        for dag_id in {f"kill_{kill.kind}" for kill in KILLS}:
            airflow.unpause(dag_id)
        pool = stack.enter_context(ThreadPoolExecutor(len(KILLS)))
        yield {kill: pool.submit(see, kill, emulators[kill], run) for kill, run in runs.items()}


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.name)
def test_a_killed_task_pays_once(seen: dict[Kill, Future[Ended]], kill: Kill) -> None:
    ended = seen[kill].result()
    assert (ended.states[0], len(ended.sent[0])) == (kill.state, kill.charged), ended.log
    attempts = ended.attempts - bool(kill.clear)
    # Before 3.3 Airflow may find a killed task twice, and then fails the next attempt, too: seen on 2.11, 3.0 and 3.2.
    assert attempts == kill.attempts or (AIRFLOW < (3, 3) and attempts > kill.attempts), ended.log
    if kill.clear:
        more = kill.requests if kill.clear == AGAIN else 0
        assert (ended.states[1], len(ended.sent[1])) == (
            "failed" if kill.clear == UNKNOWN else "success",
            kill.charged + more,
        ), ended.log
    is_unknown = kill.state == "failed" and kill.clear in (None, UNKNOWN)
    assert ("GptImgSubmissionUnknownError" in ended.log) is is_unknown
