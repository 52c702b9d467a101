# SPDX-License-Identifier: Apache-2.0
"""A triggerer that is killed in the midst of two hundred waits: the next one goes on with all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import StandaloneAirflow
from airflow_provider_gptimg.sandbox.rest import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

RUNS = 5
"""Rather than one DAG: for each wait that starts in the triggerer, Airflow reads the whole DAG there."""
WAITS = 40
"""A run."""
POLL_INTERVAL = 5.0
TIMEOUT = 300.0
"""Of the wait in vain, in seconds."""


@pytest.fixture
def images(airflow: StandaloneAirflow) -> Iterator[Emulator]:
    """An API whose images are finished when the test says so, behind the connection of the waits."""
    with Emulator(durations=(3600, 3600)) as emulator:
        scheme, host, port = emulator.base_url.replace("//", "").split(":")
        connection = {
            "connection_id": "gptimg_waits",
            "conn_type": "gptimg",
            "host": f"{scheme}://{host}",
            "port": int(port),
            "password": emulator.api_key,
            # All are asked for at once, and then in step with nobody.
            "extra": f'{{"first_poll_after": 0, "poll_interval": {POLL_INTERVAL}}}',
        }
        airflow.api.call("POST", "/connections", connection)
        yield emulator
        airflow.api.call("DELETE", "/connections/gptimg_waits")


def submitted(images: Emulator) -> list[Any]:
    return [task for task in images.tasks if task.charged]


def test_a_restart_loses_and_repeats_nothing(airflow: StandaloneAirflow, images: Emulator):
    # Of its time, much is over when its wait begins, and the rest soon: a deadline that is counted anew shows.
    unending = images.add_task(status="processing", created_at=time.time() - TIMEOUT + 90)
    runs = [airflow.trigger("forty_waits", {"unending": unending}) for _ in range(RUNS)]
    until(lambda: len(submitted(images)) == RUNS * WAITS, 200, "the submits")
    until(lambda: all(task.polls for task in images.tasks), 200, "a first poll of each")
    airflow.kill("triggerer")
    killed_at = time.time()
    airflow.launch("triggerer")
    until(lambda: all(task.poll_times[-1] > killed_at for task in submitted(images)), 200, "a next poll of each")
    for task in submitted(images):
        images.finish(task.task_id)
    assert [run.wait() for run in runs] == ["success"] * RUNS

    for run in runs:
        instances = {ti["task_id"]: ti for ti in run.task_instances()}
        waits = [instances[f"wait_{number}"] for number in range(WAITS)]
        assert {(ti["state"], ti["try_number"]) for ti in waits} == {("success", 1)}
        assert {ti["pid"] for ti in waits} == {None}, "no worker process has started for them"
        assert [run.xcom(f"wait_{number}")["task_id"] for number in range(WAITS)] == run.xcom("submit")
        in_vain = instances["wait_in_vain"]
        assert in_vain["state"] == "skipped"
        assert datetime.fromisoformat(in_vain["end_date"]).timestamp() < killed_at + TIMEOUT

    tasks = submitted(images)
    assert len(images.ledger) == len(tasks) == RUNS * WAITS
    for task in tasks:
        for earlier, later in pairwise(task.poll_times):
            # Only across the restart may two polls be closer: the next triggerer cannot know of the last one's.
            assert later - earlier > POLL_INTERVAL - 0.5 or earlier <= killed_at < later
