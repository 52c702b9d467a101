# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_instance import FileStore, Instance

from airflow_provider_gptimg import polling
from airflow_provider_gptimg.emulator import Emulator

QUICK = {"poll_interval": 0.05, "first_poll_after": 0.1, "timeout": 5}


@pytest.fixture(scope="session")
def _emulator_server(_clock: Callable[[], float]) -> Iterator[Emulator]:
    """The same as all tests have, with generations of 150 to 200 ms."""
    with Emulator(speed=300, seed=1, credits=10_000, clock=_clock) as server:
        yield server


@pytest.fixture
def emulator(emulator: Any, connect: Callable[..., None]) -> Any:
    connect(emulator, **QUICK)
    return emulator


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """A task instance of which nothing has run yet."""
    return Instance(FileStore(tmp_path / "store"))


@pytest.fixture
def stored(s3: Any) -> Callable[[], dict[str, bytes]]:
    """Returns all objects in the bucket, by key."""

    def read() -> dict[str, bytes]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="images")
        keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
        return {key: s3.get_object(Bucket="images", Key=key)["Body"].read() for key in keys}

    return read


@pytest.fixture
def manifest(s3: Any) -> Callable[[str], list[dict[str, Any]]]:
    """Returns the lines of a manifest."""

    def read(key: str) -> list[dict[str, Any]]:
        body = s3.get_object(Bucket="images", Key=key)["Body"].read().decode()
        return [json.loads(line) for line in body.splitlines()]

    return read


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without a pause."""
    from airflow_provider_gptimg.batch import pace

    monkeypatch.setattr(pace, "backoff", lambda failures, retry_after: retry_after or 0.0)
    monkeypatch.setattr(pace, "MAX_WAIT", 0.1)


@pytest.fixture(autouse=True)
def _a_task_is_new_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each test the minute after which a task that the API does not know is not new any more."""
    monkeypatch.setattr(polling, "NEW_FOR", 0.1)
