# SPDX-License-Identifier: Apache-2.0
"""Properties are tried with the same examples at each run, and no machine is too slow for one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "gptimg",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("gptimg")


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Wait for a condition without blocking the event loop, 20 seconds at most."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 -- it comes true in another thread
                await asyncio.sleep(0.005)

    return wait
