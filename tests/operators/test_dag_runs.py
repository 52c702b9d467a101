# SPDX-License-Identifier: Apache-2.0
"""Whole DAGs run by Airflow itself: its database, its task state store, its mapping, its retries."""

from __future__ import annotations

import importlib.util
import itertools
import textwrap
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gptimg.airflow_compat import AIRFLOW

HEADER = """
from datetime import timedelta

import httpx
from airflow_names import DAG, task
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

with DAG({dag_id!r}) as dag:
"""
_numbers = itertools.count(1)


class Run:
    """A DAG run that has ended."""

    def __init__(self, dag: Any, dag_run: Any) -> None:
        self._dag, self._dag_run = dag, dag_run
        self._read()

    def _read(self) -> None:
        instances = self._dag_run.get_task_instances()
        self.states = {(ti.task_id, ti.map_index): str(ti.state) for ti in instances}
        self.tries = {(ti.task_id, ti.map_index): ti.try_number for ti in instances}

    @property
    def succeeded(self) -> bool:
        return set(self.states.values()) == {"success"}

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        """Return what the task pushed; of a mapped task, a list."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        where = {"run_id": self._dag_run.run_id, "dag_ids": self._dag.dag_id, "task_ids": task_id, "key": key}
        with create_session() as session:
            rows = sorted(session.scalars(XComModel.get_many(**where)), key=lambda row: row.map_index)
            values = [XComModel.deserialize_value(row) for row in rows]
            return values if rows[0].map_index >= 0 else values[0]

    def clear(self) -> None:
        """Clear all tasks, as a person does in the UI, and run them once more."""
        from airflow.models.taskinstance import clear_task_instances
        from airflow.sdk.definitions.dag import _run_task
        from airflow.utils.session import create_session

        with create_session() as session:
            clear_task_instances(self._dag_run.get_task_instances(session=session), session)
            session.flush()
            instances = self._dag_run.get_task_instances(session=session)
            if AIRFLOW < (3, 4):  # from which on the clear itself makes the next attempt, otherwise the scheduler does
                for ti in instances:
                    ti.try_number += 1
        for ti in instances:
            _run_task(ti=ti, task=self._dag.task_dict[ti.task_id], run_triggerer=True)
        self._read()


@pytest.fixture
def run_dag(airflow_db, emulator):
    """Run a DAG with these tasks to its end."""
    folder = Path(airflow_db, "dags")
    folder.mkdir(exist_ok=True)

    def run(tasks: str) -> Run:
        dag_id = f"dag_{next(_numbers)}"
        path = folder / f"{dag_id}.py"
        path.write_text(HEADER.format(dag_id=dag_id) + textwrap.indent(tasks.strip(), "    ") + "\n")
        spec = importlib.util.spec_from_file_location(dag_id, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return Run(module.dag, module.dag.test())

    yield run
    for path in folder.glob("*.py"):
        path.unlink()


@pytest.fixture
def outage(emulator) -> str:
    """Let all polls fail, until Airflow tries a task again that has these arguments."""
    emulator.fault("poll", 503, times=None)
    end = f"lambda context: httpx.delete('{emulator.base_url}/_emulator/faults').raise_for_status()"
    return f"retries=3, retry_delay=timedelta(0), on_retry_callback={end}"


def charges(emulator) -> list[int]:
    return [entry.credits for entry in emulator.ledger if entry.kind == "charge"]


def test_from_a_prompt_to_objects_in_s3(run_dag, emulator, s3, deferrable):
    run = run_dag(
        f"""
submit = GptImgSubmitOperator(task_id="submit", prompt="a {{{{ dag.dag_id }}}} cat", n="{{{{ 1 + 1 }}}}")
wait = GptImgTaskSensor(task_id="wait", gptimg_task_id=submit.output, deferrable={deferrable})
mirror = GptImgToS3Operator(
    task_id="mirror", gptimg_task_id=wait.output, s3_bucket="images", s3_key="{{{{ ds }}}}/{{index}}{{ext}}"
)
"""
    )
    assert run.succeeded
    (task,) = emulator.tasks
    assert task.prompt.startswith("a dag_")
    assert run.xcom("submit") == task.task_id
    assert run.xcom("submit", "credits") == 4
    assert run.xcom("wait")["task_id"] == task.task_id
    mirrored = run.xcom("mirror")
    bodies = [s3.get_object(Bucket=one["bucket"], Key=one["key"])["Body"].read() for one in mirrored]
    assert bodies == task.images


def test_mapped_submits_into_one_wait_one_transfer_and_a_transfer_each(run_dag, emulator, s3, deferrable):
    run = run_dag(
        f"""
submit = GptImgSubmitOperator.partial(task_id="submit", n=2).expand(prompt=["a", "b", "c"])
wait = GptImgTaskSensor(task_id="wait", gptimg_task_id=submit.output, deferrable={deferrable})
GptImgToS3Operator(task_id="all", gptimg_task_id=wait.output, s3_bucket="images", deferrable={deferrable})
GptImgToS3Operator.partial(
    task_id="each", s3_key="s3://images/each/{{task_id}}-{{index}}{{ext}}", deferrable={deferrable}
).expand(gptimg_task_id=submit.output)
"""
    )
    assert run.succeeded
    ids = run.xcom("submit")
    assert len(set(ids)) == 3
    assert [emulator.task(task_id).prompt for task_id in ids] == ["a", "b", "c"]
    assert [task["task_id"] for task in run.xcom("wait")] == ids
    assert [one["task_id"] for one in run.xcom("all")] == [task_id for task_id in ids for _ in range(2)]
    assert [[one["task_id"] for one in each] for each in run.xcom("each")] == [[task_id] * 2 for task_id in ids]
    assert s3.list_objects_v2(Bucket="images")["KeyCount"] == 12


def test_a_submit_that_fails_keeps_no_other_images_from_their_place(run_dag, emulator, s3):
    run = run_dag(
        """
submit = GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["a", "", "c"])
mirror = {"gptimg_task_id": submit.output, "s3_bucket": "images"}
GptImgToS3Operator(task_id="all", trigger_rule="all_done", **mirror)
GptImgToS3Operator(task_id="not_started", s3_key="not/{index}{ext}", **mirror)
"""
    )
    paid = run.xcom("submit")
    assert len(emulator.tasks) == 2
    assert [emulator.task(task_id).prompt for task_id in paid] == ["a", "c"]
    assert [one["task_id"] for one in run.xcom("all")] == paid
    assert s3.list_objects_v2(Bucket="images")["KeyCount"] == 2
    assert [run.states["submit", index] for index in range(3)] == ["success", "failed", "success"]
    assert run.states["all", -1] == "success"
    assert run.states["not_started", -1] == "upstream_failed"


def test_the_objects_of_a_mapped_transfer_have_their_row_in_the_key(run_dag, emulator, s3):
    run = run_dag(
        """
submit = GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["a", "b"])
GptImgToS3Operator.partial(
    task_id="mirror", s3_bucket="images", s3_key="rows/{{ ti.map_index }}-{index}{ext}"
).expand(gptimg_task_id=submit.output)
"""
    )
    assert run.succeeded
    keys = [(emulator.task(one["task_id"]).prompt, one["key"]) for each in run.xcom("mirror") for one in each]
    assert keys == [("a", "rows/0-0.png"), ("b", "rows/1-0.png")]


def test_a_sensor_that_would_start_and_end_in_the_triggerer(run_dag, emulator):
    """`dag.test()` can do neither, and it works all the same."""
    run = run_dag(
        """
submit = GptImgSubmitOperator(task_id="submit", prompt="a cat")
wait = GptImgTaskSensor(
    task_id="wait", gptimg_task_id=submit.output, deferrable=True, start_from_trigger=True, end_from_trigger=True
)

@task
def read(finished):
    return finished["credits"]

read(wait.output)

several = GptImgSubmitOperator.partial(task_id="several").expand(prompt=["a", "b"])
GptImgTaskSensor.partial(
    task_id="each", deferrable=True, start_from_trigger=True, end_from_trigger=True
).expand(gptimg_task_id=several.output)
"""
    )
    assert run.succeeded
    assert run.xcom("read") == 2
    assert [task["task_id"] for task in run.xcom("each")] == run.xcom("several")


def test_a_sensor_that_gives_the_worker_back(run_dag, emulator):
    task_id = emulator.add_task(polls=2)
    run = run_dag(
        f"""
GptImgTaskSensor(task_id="wait", gptimg_task_id={task_id!r}, mode="reschedule", poke_interval=0.1)
"""
    )
    assert run.succeeded
    assert run.xcom("wait")["task_id"] == task_id
    assert run.tries["wait", -1] == 1


class TestPaidOnce:
    def test_over_a_time_out_and_a_retry(self, run_dag, emulator, outage, deferrable):
        run = run_dag(
            f"""
GptImgGenerateOperator.partial(
    task_id="generate", deferrable={deferrable}, timeout=3, {outage}
).expand(prompt=["a", "b"])
"""
        )
        assert run.succeeded
        assert charges(emulator) == [2, 2]
        # The attempt that took its image task up again spent nothing.
        assert sorted(run.tries.values()) == [1, 2]
        assert sorted(run.xcom("generate", "credits")) == [0, 2]
        assert {task["task_id"] for task in run.xcom("generate")} == {task.task_id for task in emulator.tasks}

    def test_a_failed_generation_is_submitted_anew(self, run_dag, emulator, deferrable):
        emulator.fault("submit", "fail")
        run = run_dag(
            f"""
GptImgGenerateOperator(
    task_id="generate", prompt="a cat", deferrable={deferrable}, retries=1, retry_delay=timedelta(0)
)
"""
        )
        assert run.succeeded
        assert [entry.kind for entry in emulator.ledger] == ["charge", "refund", "charge"]

    def test_a_cleared_success_makes_new_ones(self, run_dag, emulator):
        run = run_dag('GptImgSubmitOperator(task_id="submit", prompt="a cat", retries=2)')
        first = run.xcom("submit")
        run.clear()
        assert run.succeeded
        assert run.xcom("submit") != first
        assert charges(emulator) == [2, 2]

    def test_a_cleared_failure_goes_on_with_the_old_ones(self, run_dag, emulator, deferrable):
        emulator.fault("poll", 503, times=None)
        run = run_dag(
            f"""
GptImgGenerateOperator(task_id="generate", prompt="a cat", deferrable={deferrable}, timeout=3)
"""
        )
        assert run.states["generate", -1] == "failed"
        emulator.clear_faults()
        run.clear()
        assert run.succeeded
        assert charges(emulator) == [2]
        run.clear()
        assert run.succeeded
        assert charges(emulator) == [2, 2]


class TestVerdicts:
    def test_what_no_attempt_mends_fails_at_once(self, run_dag, emulator):
        emulator.fault("submit", 402)
        run = run_dag('GptImgSubmitOperator(task_id="submit", prompt="a cat", retries=3)')
        assert run.states["submit", -1] == "failed"
        assert run.tries["submit", -1] == 1
        assert len(emulator.calls) == 1

    @pytest.mark.skipif(AIRFLOW < (3, 3), reason="without a retry policy, the task's own delay counts")
    @pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
    def test_a_rate_limit_is_retried_when_the_api_said(self, run_dag, emulator, hasty, mapped):
        """Not after the task's own delay, which would outlast this test."""
        emulator.fault("submit", 429, times=5, retry_after=0.2)
        common = 'task_id="submit", retries=1, retry_delay=timedelta(hours=1)'
        plain = f'GptImgSubmitOperator({common}, prompt="a cat")'
        run = run_dag(f'GptImgSubmitOperator.partial({common}).expand(prompt=["a cat"])' if mapped else plain)
        assert run.succeeded
        assert set(run.tries.values()) == {2}
        assert charges(emulator) == [2]

    def test_a_sensor_skips_with_soft_fail(self, run_dag, emulator, deferrable):
        task_id = emulator.add_task(polls=3, error="no")
        run = run_dag(
            f"""
GptImgTaskSensor(task_id="wait", gptimg_task_id={task_id!r}, soft_fail=True, deferrable={deferrable})
"""
        )
        assert run.states["wait", -1] == "skipped"


class TestDecorator:
    def test_plain(self, run_dag, emulator, deferrable):
        run = run_dag(
            f"""
@task
def animal():
    return "cat"

@task.gptimg(n=2, deferrable={deferrable})
def paint(animal, dag_run):
    return f"a {{animal}} {{{{{{{{ not jinja }}}}}}}} of {{dag_run.run_type.value}}"

@task
def read(finished):
    return finished["credits"]

read(paint(animal()))
"""
        )
        assert run.succeeded
        assert emulator.tasks[0].request == {"prompt": "a cat {{ not jinja }} of manual", "n": 2}
        assert run.xcom("paint")["task_id"] == emulator.tasks[0].task_id
        assert run.xcom("read") == 4

    def test_mapped(self, run_dag, emulator, deferrable):
        run = run_dag(
            f"""
@task.gptimg(deferrable={deferrable}, aspect_ratio="1:1")
def paint(animal, ratio=None):
    return {{"prompt": animal, "aspect_ratio": ratio}} if ratio else animal

paint.override(task_id="each").expand(animal=["cat", "dog"])
paint.override(task_id="kwargs").expand_kwargs([{{"animal": "cow", "ratio": "16:9"}}, {{"animal": "hen"}}])
"""
        )
        assert run.succeeded
        asked = [emulator.task(one["task_id"]).request for name in ("each", "kwargs") for one in run.xcom(name)]
        assert asked == [
            {"prompt": "cat", "n": 1, "aspect_ratio": "1:1"},
            {"prompt": "dog", "n": 1, "aspect_ratio": "1:1"},
            {"prompt": "cow", "n": 1, "aspect_ratio": "16:9"},
            {"prompt": "hen", "n": 1, "aspect_ratio": "1:1"},
        ]

    def test_over_a_time_out_and_a_retry(self, run_dag, emulator, outage, deferrable):
        run = run_dag(
            f"""
@task.gptimg(deferrable={deferrable}, timeout=3, {outage})
def paint():
    return "a cat"

paint()
"""
        )
        assert run.succeeded
        assert run.tries["paint", -1] == 2
        assert charges(emulator) == [2]
