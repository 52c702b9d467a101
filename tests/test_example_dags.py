# SPDX-License-Identifier: Apache-2.0
"""The example DAGs parse anywhere, and do what they say when Airflow runs them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_gptimg.emulator import Emulator

FOLDER = Path(__file__).parents[1] / "example_dags"
BUCKET = "gptimg-demo"

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
}


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


@pytest.mark.parametrize("dag_id", EXAMPLES)
def test_airflow_runs_them_from_the_prompt_to_the_objects(dag_id, airflow_db, s3, monkeypatch):
    prompts, key_pattern = EXAMPLES[dag_id]
    s3.create_bucket(Bucket=BUCKET)
    # Slow enough for every wait to defer.
    with Emulator(durations=(2, 2), extra={"poll_interval": 0.2, "first_poll_after": 0}) as emulator:
        env = os.environ | {
            "AIRFLOW__CORE__DAGS_FOLDER": str(FOLDER),
            "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
        }
        command = [sys.executable, "-m", "airflow", "dags", "test", dag_id]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 0, (ended.stdout + ended.stderr)[-6000:]

        tasks = emulator.tasks
        assert {task.prompt: task.n for task in tasks} == prompts
        assert [entry.credits for entry in emulator.ledger] == [2 * task.n for task in tasks]

    expected = {(task.task_id, index): image for task in tasks for index, image in enumerate(task.images)}
    for key in (found["Key"] for found in s3.list_objects_v2(Bucket=BUCKET)["Contents"]):
        content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        (image,) = [
            image for image in expected if re.fullmatch(key_pattern.format(task_id=image[0], index=image[1]), key)
        ]
        assert content == expected.pop(image)
    assert expected == {}
