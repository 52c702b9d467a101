# SPDX-License-Identifier: Apache-2.0
"""One run on a whole Airflow, from its trigger to the objects in S3."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import API_KEY, BUCKET

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import DagRun, StandaloneAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


@pytest.fixture
def run(airflow: StandaloneAirflow, emulator: Emulator, clock: Any) -> DagRun:
    """The run of the first example, at its end."""
    clock.stop()
    run = airflow.trigger("example_gptimg_to_s3", {"prompt": "A ferry in the fog"})
    # In the triggerer, while the image task goes on.
    waiting = run.wait_for("mirror", "deferred")
    assert waiting["trigger"]["classpath"] == "airflow_provider_gptimg.triggers.gptimg.GptImgTaskTrigger"
    clock.go()
    assert run.wait() == "success", "\n".join(run.log(ti["task_id"]) for ti in run.task_instances())
    return run


def test_the_images_are_in_s3_and_were_paid_for_once(run, emulator, s3, airflow):
    (task,) = emulator.tasks
    assert (task.prompt, task.n) == ("A ferry in the fog", 2)
    assert [(entry.kind, entry.credits) for entry in emulator.ledger] == [("charge", 4)]
    assert run.xcom("submit") == task.task_id
    assert run.xcom("submit", "credits") == 4

    mirrored = run.xcom("mirror")
    assert [image["uri"] for image in mirrored] == [
        f"s3://{BUCKET}/gptimg/{task.task_id}/{index}.png" for index in range(2)
    ]
    contents = [s3.get_object(Bucket=BUCKET, Key=image["key"])["Body"].read() for image in mirrored]
    assert contents == task.images

    assert re.search(r"Image task \S+: processing", run.log("mirror"))
    found = files_with(task.task_id, airflow.home)
    assert any(path.name.startswith("airflow.db") for path in found)
    assert any(path.suffix == ".log" for path in found)
    assert files_with(API_KEY, airflow.home) == []


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
