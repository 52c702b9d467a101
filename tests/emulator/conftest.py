# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from airflow_provider_gptimg.emulator import Emulator

SUBMIT = "/api/v1/images/generate"


@pytest.fixture
def emulator(monkeypatch):
    with Emulator(speed=100) as emulator:
        monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", emulator.connection_json)
        yield emulator


class Api:
    """A raw client of the API: paths and JSON, nothing that interprets an answer."""

    def __init__(self, emulator: Emulator) -> None:
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        self.http = httpx.Client(base_url=emulator.base_url, headers=headers, timeout=20, verify=False)

    def submit(self, prompt: object = "a cat", **fields: object) -> httpx.Response:
        return self.http.post(SUBMIT, json={"prompt": prompt, **fields})

    def poll(self, task_id: str) -> httpx.Response:
        return self.http.get(f"/api/v1/images/task/{task_id}")

    def data(self, task_id: str) -> dict:
        return self.poll(task_id).raise_for_status().json()["data"]


@pytest.fixture
def api(emulator: Emulator) -> Iterator[Api]:
    client = Api(emulator)
    with client.http:
        yield client


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1_776_816_723.456) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, 10 seconds at most."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.005)

    return wait
