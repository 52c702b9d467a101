# SPDX-License-Identifier: Apache-2.0
"""The example DAGs parse anywhere, and do what they say when Airflow runs them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import S3Server

FOLDER = Path(__file__).parents[1] / "example_dags"
BUCKET = "bucket-of-the-examples"

RUN_EACH = f"""
import sys
from airflow.__main__ import main

for dag_id in sys.argv[1:]:
    sys.argv = ["airflow", "dags", "test", dag_id, "--conf", '{{"bucket": "{BUCKET}"}}']
    main()
"""

# For each DAG: the prompts of its submits with their number of images, and where the images go.
EXAMPLES = {
    "example_gptimg_to_s3": (
        {"A lighthouse at dawn, in watercolour": 2},
        r"gptimg/{task_id}/{index}\.png",
    ),
    "example_gptimg_campaign": (
        {
            "A farmers' market in October, gouache": 1,
            "Apples on a doorstep, gouache": 1,
            "A village under the first snow, linocut": 1,
            "Skates by the door, linocut": 1,
        },
        r"campaigns/(harvest|first_snow)/\d{{4}}-\d\d-\d\d/{task_id}-{index}\.png",
    ),
    "example_gptimg_edit": (
        {"The chair of the first picture in the room of the second": 1},
        r"edits/{task_id}/{index}\.png",
    ),
    "example_gptimg_batch": (
        {
            f"{product}, {view}, product photo": 1
            for product in ("A teapot", "A stool", "A lantern", "A kite", "A clock", "A canoe")
            for view in ("from the front", "in use")
        },
        r"catalogue/{task_id}-{index}\.png",
    ),
}


@dataclass(frozen=True)
class Made:
    tasks: list[Any]
    ledger: list[Any]
    objects: dict[str, bytes]


def test_all_examples_are_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXAMPLES)


def test_they_parse_with_no_connection_and_no_network(monkeypatch):
    from airflow.dag_processing.dagbag import DagBag

    def refuse(*args):
        raise AssertionError("a DAG file must not connect to anything when it is parsed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    bag = DagBag(FOLDER)
    assert bag.import_errors == {}
    assert set(bag.dags) == set(EXAMPLES)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_the_docs_quote_is_marked_from_start_to_end(path):
    marks = re.findall(r"# \[(START|END) (\w+)\]", path.read_text())
    assert marks
    assert [mark for mark, _ in marks] == ["START", "END"] * (len(marks) // 2)
    assert [name for _, name in marks[::2]] == [name for _, name in marks[1::2]]


@pytest.fixture(scope="module")
def made(airflow_db: str) -> Made:
    """What comes of all examples, each run by `airflow dags test`, in one process since Airflow's imports take long."""
    # Slow enough for every wait to defer.
    with (
        Emulator(durations=(2, 2), extra={"poll_interval": 0.2, "first_poll_after": 0}) as emulator,
        S3Server(BUCKET) as server,
    ):
        env = os.environ | {
            "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
            "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
            "AIRFLOW_CONN_AWS_DEFAULT": server.connection_json,
        }
        command = [sys.executable, "-c", RUN_EACH, *EXAMPLES]
        ended = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ended.returncode == 0, ended.stdout[-8000:]
        s3 = server.client()
        keys = [found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
        objects = {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
        return Made(emulator.tasks, emulator.ledger, objects)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("dag_id", EXAMPLES)
def test_airflow_runs_them_from_the_prompt_to_the_objects(dag_id, made):
    prompts, key_pattern = EXAMPLES[dag_id]
    tasks = [task for task in made.tasks if task.prompt in prompts]
    assert {task.prompt: task.n for task in tasks} == prompts
    for task in tasks:
        assert [entry.credits for entry in made.ledger if entry.task_id == task.task_id] == [2 * task.n]
        for index, image in enumerate(task.images):
            pattern = key_pattern.format(task_id=task.task_id, index=index)
            assert [made.objects[key] for key in made.objects if re.fullmatch(pattern, key)] == [image]


def test_they_make_no_other_objects(made):
    manifests = [key for key in made.objects if key.endswith(".jsonl")]
    assert len(manifests) == 1
    assert len(made.objects) - len(manifests) == sum(task.n for task in made.tasks)
