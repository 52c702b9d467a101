# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_instance import FileStore, Instance

from airflow_provider_gptimg.emulator import Emulator

QUICK = {"poll_interval": 0.05, "first_poll_after": 0.1, "timeout": 5}


class Clock:
    """Real time, which can be stopped."""

    def __init__(self) -> None:
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return self._stopped_at or time.time()

    def stop(self) -> None:
        self._stopped_at = time.time()

    def go(self) -> None:
        self._stopped_at = None


_clock = Clock()


@pytest.fixture
def clock() -> Iterator[Clock]:
    """The emulator's clock: while it is stopped, no generation ends."""
    yield _clock
    _clock.go()


@pytest.fixture(scope="session")
def _emulator_server() -> Iterator[Emulator]:
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


@pytest.fixture(params=[False, True], ids=["held", "deferred"])
def deferrable(request: pytest.FixtureRequest) -> bool:
    """Both ways to wait."""
    return bool(request.param)


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
