# SPDX-License-Identifier: Apache-2.0
"""A DAG of 100 mapped prompts, run twice on a running Airflow with a journal in S3: the second run costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import S3Server, StandaloneAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

PROMPTS = 100
DAG_FILE = f"""
from airflow.sdk import DAG
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator

with DAG("hundred", schedule=None, max_active_tasks=100, default_args={{"retries": 2}}):
    GptImgGenerateOperator.partial(task_id="images", deferrable=False, reuse=True).expand(
        prompt=[f"picture {{number}}" for number in range({PROMPTS})]
    )
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[tuple[Emulator, dict[str, str]]]:
    extra = {"poll_interval": 0.2, "first_poll_after": 0}
    with Emulator(durations=(0.1, 0.2), credits=1000, extra=extra) as emulator, S3Server("journals") as server:
        yield (
            emulator,
            {
                "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
                "AIRFLOW_CONN_AWS_DEFAULT": server.connection_json,
                "AIRFLOW__GPTIMG__JOURNAL": "s3://journals/hundred",  # moto keeps what other tests have written
                "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
                "AIRFLOW__CORE__PARALLELISM": "8",
                "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "64",
            },
        )


def test_the_second_run_of_a_hundred_prompts_costs_nothing(environment, tmp_path):
    emulator, env = environment
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "hundred.py").write_text(DAG_FILE)
    charged = []
    with StandaloneAirflow(dags, env) as airflow:
        for _ in range(2):
            run = airflow.trigger("hundred")
            assert run.wait(400) == "success"
            charged.append(sum(entry.credits for entry in emulator.ledger))
    assert charged == [2 * PROMPTS, 2 * PROMPTS]
    assert {entry.kind for entry in emulator.ledger} == {"charge"}

    command = [sys.executable, "-m", "airflow_provider_gptimg.spending", "--json", "--since", "2026-01-01"]
    told = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    amounts = {"charged": 200, "refunded": 0, "reused": 200, "unknown": 0, "net": 200}
    assert json.loads(told.stdout)["rows"] == [{"dag": "hundred", **amounts}]
