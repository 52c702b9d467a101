# SPDX-License-Identifier: Apache-2.0
"""One running Airflow for all system tests, with the emulator and an S3 behind its connections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import S3Server, StandaloneAirflow

EXAMPLES = Path(__file__).parents[2] / "example_dags"
DAGS = Path(__file__).parent / "dags"
BUCKET = "gptimg-demo"
API_KEY = "gptimg-key-that-must-not-be-found-anywhere"


@pytest.fixture(scope="session")
def _emulator_server(_clock: Any) -> Iterator[Emulator]:
    """The API, with generations long enough for Airflow to defer, and polls that do not make a test wait."""
    extra = {"poll_interval": 0.5, "first_poll_after": 0}
    with Emulator(api_key=API_KEY, durations=(4, 5), extra=extra, clock=_clock) as server:
        yield server


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(_s3_server: S3Server) -> Any:
    """A boto3 client of an S3 that holds the bucket of the examples."""
    client = _s3_server.client()
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture(scope="session")
def _airflow(
    _emulator_server: Emulator, _s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StandaloneAirflow]:
    # The examples and the DAGs that only tests have, in one folder.
    dags = tmp_path_factory.mktemp("dags")
    for folder in (EXAMPLES, DAGS):
        shutil.copytree(folder, dags, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    env = {
        "AIRFLOW_CONN_GPTIMG_DEFAULT": _emulator_server.connection_json,
        "AIRFLOW_CONN_AWS_DEFAULT": _s3_server.connection_json,
        # For the DAGs that assets start; no DAG here has a timetable.
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "True",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        # Notice what was killed within seconds, not minutes.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
    }
    with StandaloneAirflow(dags, env) as airflow:
        yield airflow


@pytest.fixture
def airflow(_airflow: StandaloneAirflow, emulator: Emulator, s3: Any) -> StandaloneAirflow:
    """A running Airflow, with the API as new."""
    return _airflow
