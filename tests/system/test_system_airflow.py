# SPDX-License-Identifier: Apache-2.0
"""The running Airflow that system tests stand on: it can be watched, killed in parts, and brought back."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import StandaloneAirflow
from airflow_provider_gptimg.sandbox.rest import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_a_wait_outlives_its_triggerer(airflow: StandaloneAirflow, emulator: Emulator, clock: Any):
    clock.stop()
    run = airflow.trigger("example_gptimg_to_s3")
    run.wait_for("mirror", "deferred")
    task_id = run.xcom("submit")
    until(lambda: emulator.task(task_id).polls > 1, 120, "a poll by the triggerer")
    airflow.kill("triggerer")
    assert not [process for process in airflow.processes() if "triggerer" in " ".join(process.cmdline())]
    airflow.launch("triggerer")
    clock.go()
    assert run.wait() == "success"
    assert run.task_instance("mirror")["try_number"] == 1
    assert len(emulator.ledger) == 1


def test_a_killed_task_is_retried_and_a_cleared_one_starts_over(
    airflow: StandaloneAirflow, emulator: Emulator, clock: Any
):
    clock.stop()
    run = airflow.trigger("retried_generate")
    until(lambda: emulator.tasks, 120, "the submit")
    until(lambda: "gptimg:1.1.outcome" in run.state_store("generate"), 120, "its record")
    process, supervisor = airflow.task_processes(run, "generate")
    assert "LocalExecutor" in " ".join(supervisor.cmdline())
    process.kill()
    clock.go()
    assert run.wait() == "success"
    ti = run.task_instance("generate")
    assert (ti["state"], ti["try_number"]) == ("success", 2)
    assert "Submitting: no earlier submission" in run.log("generate", try_number=1)
    assert "no new submission" in run.log("generate")
    assert [task.charged for task in emulator.tasks] == [2]

    clock.stop()
    run.clear("generate")
    run.wait_for("generate", "running")
    clock.go()
    assert run.wait() == "success"
    assert run.task_instance("generate")["try_number"] == 3
    first, second = emulator.tasks
    assert run.xcom("generate")["task_id"] == second.task_id != first.task_id


def test_an_airflow_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    airflow = StandaloneAirflow(
        tmp_path, {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////no/such/folder/airflow.db"}
    )
    with pytest.raises(RuntimeError, match="unable to open database file"), airflow:
        pass
    assert airflow.processes() == []
    assert not airflow.home.exists()
