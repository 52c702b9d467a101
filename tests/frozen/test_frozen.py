# SPDX-License-Identifier: Apache-2.0
"""What earlier releases left half-way goes on with this code, and pays nothing again.

`freeze.py` wrote the states with the code that was released; this release's own is among them.
"""

from __future__ import annotations

import asyncio
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow_names import TaskDeferred
from frozen_tasks import IDS, TASKS, Instance, State
from journals import use_variables

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.airflow_compat import STATE_OUTLASTS_CLEARS

RELEASES = {path.stem: json.loads(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.json"))}
AGO = 60.0
"""Seconds since the task deferred, or its worker died."""


@pytest.fixture(params=RELEASES)
def release(request) -> Any:
    return RELEASES[request.param]


@pytest.fixture(autouse=True)
def _journal(monkeypatch) -> None:
    """Keep the journal in Variables where Airflow's state store is not the place, as a task does there."""
    if not STATE_OUTLASTS_CLEARS:
        use_variables(monkeypatch)


def needs_the_journal(release: Any) -> None:
    if release["version"] != "0.1.0" and not STATE_OUTLASTS_CLEARS:
        pytest.skip("it was frozen on Airflow 3.3, whose journal is in the state store")


@pytest.fixture
def thaw(release, emulator, connect):
    """Return a function that gives a task's frozen state, as if it had been left a minute ago."""
    connect(emulator, poll_interval=0.1)  # a trigger that is late spreads its first polls over it
    given = [emulator.add_task(prompt) for prompt in ("A lighthouse", "A pier")]

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        is_moment = isinstance(value, float) and abs(value - release["at"]) < 86400
        return value - release["at"] + time.time() - AGO if is_moment else value

    def thaw(name: str) -> Any:
        text = json.dumps(moved(release["tasks"][name]))
        for stands_in, task_id in zip(IDS, given, strict=True):
            text = text.replace(stands_in, task_id)
        return json.loads(text)

    return thaw


def parsed(name: str, emulator: Any) -> Any:
    operator = TASKS[name]()
    if getattr(operator, "gptimg_task_id", None) == IDS:
        operator.gptimg_task_id = [task.task_id for task in emulator.tasks]
    return operator


async def fire(path: str, kwargs: dict[str, Any]) -> Any:
    module, _, name = path.rpartition(".")
    (event,) = [event async for event in getattr(import_module(module), name)(**kwargs).run()]
    return event.payload


def resume(name: str, frozen: dict[str, Any], emulator: Any) -> Any:
    """Fire the frozen trigger and resume the task with its event, until that returns."""
    trigger, method, kwargs = frozen["trigger"], frozen["method"], frozen["kwargs"]
    context = Instance(name, State(frozen["state"])).context
    while True:
        event = asyncio.run(fire(*trigger))
        try:
            return parsed(name, emulator).resume_execution(method, {**kwargs, "event": event}, context)
        except TaskDeferred as deferred:
            trigger = json.loads(json.dumps(deferred.trigger.serialize()))
            method, kwargs = deferred.method_name, json.loads(json.dumps(deferred.kwargs or {}))


def check(name: str, result: Any, emulator: Any) -> None:
    ids = [task.task_id for task in emulator.tasks]
    if name == "submit":
        assert result == ids[0]
    elif name == "generate":
        assert result["task_id"] == ids[0]
    elif name == "batch":
        assert result["mirrored"] == 2
    else:
        assert [entry["task_id"] for entry in result] == ids
    assert emulator.ledger == []
    assert not [call for call in emulator.calls if call.method == "POST"]


def test_this_release_is_frozen():
    assert __version__ in RELEASES, "freeze it: `python tests/frozen/freeze.py`"


@pytest.mark.parametrize("name", [name for name in TASKS if name != "submit"])
def test_a_task_that_waits_goes_on(release, thaw, emulator, s3, name):
    if name == "batch":
        needs_the_journal(release)
    check(name, resume(name, thaw(name), emulator), emulator)


@pytest.mark.parametrize("name", ["submit", "generate", "batch"])
def test_a_task_whose_worker_died_takes_up_what_is_paid_for(release, thaw, emulator, s3, name):
    needs_the_journal(release)
    operator = parsed(name, emulator)
    operator.deferrable = False
    context = Instance(name, State(thaw(name)["state"]), try_number=2).context
    check(name, operator.execute(context), emulator)
