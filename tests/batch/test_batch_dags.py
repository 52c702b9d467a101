# SPDX-License-Identifier: Apache-2.0
"""Batches in whole DAGs that Airflow itself runs: its XComs, its state store, its deferral, its retries."""

from __future__ import annotations

import importlib.util
import itertools
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select

HEADER = """
from datetime import timedelta

from airflow_names import DAG, task
from airflow_provider_gptimg.airflow_compat import Asset
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator

with DAG({dag_id!r}) as dag:
"""
_numbers = itertools.count(1)


class Run:
    """A DAG run that has ended."""

    def __init__(self, dag_run: Any) -> None:
        self.run_id = dag_run.run_id
        self.dag_id = dag_run.dag_id
        self.instances = {ti.task_id: ti for ti in dag_run.get_task_instances()}

    @property
    def states(self) -> dict[str, str]:
        return {task_id: str(ti.state) for task_id, ti in self.instances.items()}

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        where = {"run_id": self.run_id, "dag_ids": self.dag_id, "task_ids": task_id, "key": key}
        with create_session() as session:
            row = session.scalars(XComModel.get_many(**where)).first()
            return row and XComModel.deserialize_value(row)

    def state(self, task_id: str) -> dict[str, Any]:
        state = TaskStateStoreModel
        with create_session() as session:
            rows = session.scalars(select(state).where(state.run_id == self.run_id, state.task_id == task_id))
            return {row.key: json.loads(row.value) for row in rows}


@pytest.fixture
def run_dag(airflow_db: str, emulator: Any, s3: Any) -> Iterator[Callable[[str], Run]]:
    """Run a DAG with these tasks to its end."""
    folder = Path(airflow_db, "dags")
    folder.mkdir(exist_ok=True)

    def run(tasks: str) -> Run:
        dag_id = f"batch_{next(_numbers)}"
        path = folder / f"{dag_id}.py"
        path.write_text(HEADER.format(dag_id=dag_id) + textwrap.indent(tasks.strip(), "    ") + "\n")
        spec = importlib.util.spec_from_file_location(dag_id, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return Run(module.dag.test())

    yield run
    for path in folder.glob("batch_*.py"):
        path.unlink()


def prompts_of(emulator: Any) -> list[str]:
    return sorted(task.prompt for task in emulator.tasks)


def test_a_list_in_the_dag_is_rendered_and_one_from_a_task_is_not(run_dag: Any, emulator: Any) -> None:
    run = run_dag(
        """
@task
def prompts():
    return ["Not {{ rendered }}", {"prompt": "Two", "n": 2}]

literal = GptImgBatchToS3Operator(
    task_id="literal",
    requests=["Made by {{ dag.dag_id }}", {"prompt": "{{ task.task_id }}", "n": "{{ 1 + 1 }}"}],
    max_credits="{{ 3 * 2 }}",
    s3_bucket="images",
    deferrable=True,
)
given = GptImgBatchToS3Operator(task_id="given", requests=prompts(), s3_bucket="images", deferrable=True)
literal >> given
"""
    )
    assert set(run.states.values()) == {"success"}
    assert prompts_of(emulator) == [f"Made by {run.dag_id}", "Not {{ rendered }}", "Two", "literal"]
    assert run.xcom("literal")["credits"] == run.xcom("given")["credits"] == 6
    state = run.state("given")
    assert state.pop("gptimg:1.batch.delivered")["max_tries"] == 0, "clearing it makes new images"
    assert all(key.startswith("gptimg:1.batch.0") for key in state)


def test_decorated(run_dag: Any, emulator: Any) -> None:
    """The function is called once an attempt, though the task is executed in several legs."""
    run = run_dag(
        """
@task.gptimg_batch(s3_bucket="images", max_in_flight=3, deferrable=True)
def pictures(dishes):
    import random
    for dish in dishes:
        yield {"prompt": f"{dish} {{{{ x }}}} {random.random()}", "aspect_ratio": "4:3"}

@task
def count(summary):
    return summary["images"]

count(pictures(["Ramen"] * 10))
"""
    )
    assert set(run.states.values()) == {"success"}
    assert run.xcom("count") == 10
    assert len(emulator.tasks) == 10
    assert all("{{ x }}" in prompt for prompt in prompts_of(emulator))


def test_decorated_over_an_object_in_s3(run_dag: Any, emulator: Any, s3: Any) -> None:
    s3.put_object(Bucket="images", Key="requests.csv", Body=b"prompt,n\nRamen,2\nTacos,\n")
    run = run_dag(
        """
@task.gptimg_batch(s3_bucket="images")
def pictures():
    return "s3://images/requests.csv"

pictures()
"""
    )
    assert run.xcom("pictures")["images"] == 3


def test_airflow_retries_only_what_is_missing(run_dag: Any, emulator: Any) -> None:
    emulator.fault("submit", "fail", times=2)
    run = run_dag(
        """
GptImgBatchToS3Operator(
    task_id="batch",
    requests=[f"Picture {i}" for i in range(12)],
    s3_bucket="images",
    deferrable=True,
    retries=2,
    retry_delay=timedelta(0),
    outlets=[Asset("pictures")],
    manifest_key="manifest.jsonl",
)
"""
    )
    assert run.states == {"batch": "success"}
    assert run.instances["batch"].try_number == 2
    assert run.xcom("batch")["taken_up"] == 10
    assert run.xcom("batch", "credits") == 4
    assert len(emulator.tasks) == 14
    assert event_extra("pictures")["images"] == 12
    assert event_extra("pictures")["manifest"] == "s3://images/manifest.jsonl"


def event_extra(asset: str) -> dict[str, Any]:
    from airflow.models.asset import AssetEvent, AssetModel

    with create_session() as session:
        asset_id = session.scalars(select(AssetModel.id).where(AssetModel.name == asset)).one()
        event = session.scalars(select(AssetEvent).where(AssetEvent.asset_id == asset_id)).one()
        return dict(event.extra)
