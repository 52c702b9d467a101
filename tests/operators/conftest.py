# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attempts import Instance, StateStore

from airflow_provider_gptimg import polling
from airflow_provider_gptimg.emulator import Emulator


@pytest.fixture(scope="session")
def _emulator_server(_clock: Callable[[], float]) -> Iterator[Emulator]:
    """The same as all tests have, with generations of 50 ms."""
    with Emulator(speed=1000, seed=1, clock=_clock) as server:
        yield server


@pytest.fixture
def emulator(emulator: Any, connect: Callable[..., None]) -> Any:
    """The API behind a connection that polls without pauses."""
    connect(emulator, **QUICK)
    return emulator


QUICK = {"poll_interval": 0.02, "first_poll_after": 0, "timeout": 5}


@pytest.fixture
def quick(emulator: Any, connect: Callable[..., None]) -> Callable[..., None]:
    """Set the connection anew with further extras: `quick(timeout=0.2)`."""
    return lambda password=None, **extra: connect(emulator, password=password, **{**QUICK, **extra})


@pytest.fixture
def instance() -> Instance:
    """A task instance of which nothing has run yet."""
    return Instance(StateStore())


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without a pause, unless the API asked for one."""

    def backoff(failures: int, retry_after: float | None, uniform: Any = None) -> float:
        return retry_after or 0.0

    import airflow_provider_gptimg.mirroring.mirror  # noqa: F401 - brings in all that calls it

    for name, module in list(sys.modules.items()):
        if name.startswith("airflow_provider_gptimg.") and hasattr(module, "backoff"):
            monkeypatch.setattr(module, "backoff", backoff)


@pytest.fixture(autouse=True)
def _an_unknown_task_is_not_new_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API may not know a new task yet; spare each test the seconds after which a task is not new any more."""
    monkeypatch.setattr(polling, "UNSEEN_FOR", 0.0)
    monkeypatch.setattr(polling, "NEW_FOR", 0.0)
