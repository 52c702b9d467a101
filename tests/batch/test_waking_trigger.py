# SPDX-License-Identifier: Apache-2.0
"""The trigger as a batch uses it: it wakes the task when some are final, and polls each task at its own time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger


async def fire(**arguments: Any) -> dict[str, Any]:
    """Run a trigger as a triggerer does: rebuilt from what it serialized."""
    _, kwargs = GptImgTaskTrigger(**arguments).serialize()
    (event,) = [event async for event in GptImgTaskTrigger(**json.loads(json.dumps(kwargs))).run()]
    payload: dict[str, Any] = event.payload
    return payload


@pytest.mark.parametrize(("wake_after", "finished", "status"), [(2, 2, "some"), (1, 3, "some"), (4, 4, "finished")])
async def test_wakes_when_enough_are_final(emulator: Any, wake_after: int, finished: int, status: str) -> None:
    task_ids = [emulator.add_task() for _ in range(finished)]
    task_ids += [emulator.add_task(status="processing", polls=10_000) for _ in range(4 - finished)]
    assert await fire(gptimg_task_id=task_ids, wake_after=wake_after) == {"status": status}


async def test_waits_for_all_by_default(emulator: Any) -> None:
    task_ids = [emulator.add_task(), emulator.add_task(polls=3)]
    assert await fire(gptimg_task_id=task_ids) == {"status": "finished"}
    assert emulator.task(task_ids[1]).status == "completed"


def test_what_the_release_before_does_not_know_is_left_out_unless_used() -> None:
    assert "wake_after" not in GptImgTaskTrigger("t").serialize()[1]
    assert GptImgTaskTrigger(["t"], wake_after=1).serialize()[1]["wake_after"] == 1


async def test_polls_each_task_at_its_own_time(emulator: Any) -> None:
    soon, later = emulator.add_task(), emulator.add_task()
    now = time.time()
    await fire(gptimg_task_id=[soon, later], first_poll_at=[now, now + 1.5])
    assert emulator.task(soon).poll_times[0] < now + 1.5 <= emulator.task(later).poll_times[0]
