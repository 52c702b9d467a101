# SPDX-License-Identifier: Apache-2.0
"""The same DAG on every supported Airflow: `make test` runs it on the newest, `make matrix` on all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from airflow_provider_gptimg import get_provider_info
from airflow_provider_gptimg.airflow_compat import AIRFLOW, DagBag

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "example_dags"
INFO = get_provider_info()


def named(kind: str) -> set[type]:
    """Return the public classes of the modules that the provider's metadata names under `kind`."""
    modules = [name for entry in INFO[kind] for name in entry.get("python-modules") or [entry["python-module"]]]
    return {getattr(module, name) for module in map(import_module, modules) for name in module.__all__}


@pytest.mark.skipif(AIRFLOW < (3, 0), reason="the examples are written with airflow.sdk")
def test_the_examples_can_be_imported():
    assert DagBag(EXAMPLES).import_errors == {}


def test_each_class_that_is_named_can_be_imported():
    assert all(isinstance(found, type) for kind in ("hooks", "triggers") for found in named(kind))
    paths = [*INFO["extra-links"], *(entry["hook-class-name"] for entry in INFO["connection-types"])]
    paths += [entry["class-name"] for entry in INFO["task-decorators"]]
    for path in paths:
        module, _, name = path.rpartition(".")
        assert callable(getattr(import_module(module), name)), path
    for group in ("apache_airflow_provider", "airflow.plugins"):
        assert [entry.load() for entry in entry_points(group=group) if "gptimg" in entry.value]


def test_the_dag_forgets_no_class(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    from dag_of_all_classes import dag

    classes = {getattr(task, "operator_class", None) or type(task) for task in dag.tasks}
    assert named("operators") | named("sensors") | named("transfers") <= classes
    decorators = {cls.custom_operator_name for cls in classes if hasattr(cls, "custom_operator_name")}
    assert decorators == {f"@task.{entry['name']}" for entry in INFO["task-decorators"]}


@pytest.mark.timeout(400)
def test_a_dag_of_all_classes_runs(airflow_db, emulator, s3, connect, monkeypatch):
    connect(emulator, poll_interval=0.3, first_poll_after=0.3)
    dags = Path(airflow_db) / "dags"
    dags.mkdir(exist_ok=True)
    shutil.copy(HERE / "dag_of_all_classes.py", dags / "gptimg_compat.py")
    monkeypatch.syspath_prepend(str(dags))
    try:
        import gptimg_compat

        run = gptimg_compat.dag.test()
        assert {(ti.task_id, ti.map_index): str(ti.state) for ti in run.get_task_instances()} == {
            ("submit", 0): "success",
            ("submit", 1): "success",
            ("wait", -1): "success",
            ("mirror", -1): "success",
            ("generate", -1): "success",
            ("batch", -1): "success",
            ("picture", -1): "success",
            ("posters", -1): "success",
            ("cards", -1): "success",
        }
        if AIRFLOW < (3, 0):  # which asks for links when somebody looks, as here
            generated = next(ti for ti in run.get_task_instances() if ti.task_id == "generate")
            task = gptimg_compat.dag.get_task("generate")
            assert task.get_extra_links(generated, "First image").startswith(emulator.base_url)
            assert "tab=xcom" in task.get_extra_links(generated, "Images")
    finally:
        (dags / "gptimg_compat.py").unlink()
        sys.modules.pop("gptimg_compat", None)

    assert sum(entry.credits for entry in emulator.ledger) == 2 + 2 + 2 + (2 + 4) + 4 + 2 + 2
    assert {task.request["prompt"] for task in emulator.tasks} == {"a", "b", "c", "d", "e", "f", "g", "{{ kept }}"}
    stored = [
        s3.get_object(Bucket="images", Key=entry["Key"])["Body"].read()
        for entry in s3.list_objects_v2(Bucket="images")["Contents"]
    ]
    mapped = [image for task in emulator.tasks if task.prompt in "abdefg" for image in task.images]
    assert sorted(stored) == sorted(mapped)


def test_the_cost_of_a_dag_is_told(airflow_db, tmp_path):
    shutil.copy(HERE / "dag_of_all_classes.py", tmp_path)
    settings = {"AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, "-m", "airflow_provider_gptimg.cost", "gptimg_compat"]
    told = subprocess.run(command, env=os.environ | settings, check=True, capture_output=True, text=True).stdout
    rows = dict(
        line.split(maxsplit=1) for line in told.splitlines() if line.startswith(("submit", "generate", "batch"))
    )
    assert {task: row.split() for task, row in rows.items()} == {
        "submit": ["2", "4"],
        "generate": ["1", "2"],
        "batch": ["3", "6"],
    }
