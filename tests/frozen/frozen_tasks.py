# SPDX-License-Identifier: Apache-2.0
"""The tasks whose half-way states are frozen for each release, and the task instance that they run as."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

IDS = ["gpt-image-2-frozen-1", "gpt-image-2-frozen-2"]
"""Stand in the frozen states for the ids that an emulator gives."""

TASKS: Mapping[str, Callable[[], Any]] = {
    "submit": lambda: GptImgSubmitOperator(task_id="submit", prompt="A lighthouse", n=2, aspect_ratio="3:2"),
    "generate": lambda: GptImgGenerateOperator(task_id="generate", prompt="A lighthouse", deferrable=True),
    "sensor": lambda: GptImgTaskSensor(task_id="sensor", gptimg_task_id=IDS, deferrable=True, timeout=900),
    "to_s3": lambda: GptImgToS3Operator(task_id="to_s3", gptimg_task_id=IDS, s3_bucket="images", deferrable=True),
    "batch": lambda: GptImgBatchToS3Operator(
        task_id="batch", requests=["A lighthouse", {"prompt": "A pier"}], s3_bucket="images", deferrable=True
    ),
}


class Killed(BaseException):
    """The end of a worker process, when it first pushes an XCom: after its submission was recorded."""


class State(dict[str, Any]):
    """A task state store, as far as the provider uses it."""

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


class Instance:
    """A task instance."""

    dag_id, run_id, map_index, max_tries = "frozen", "today", -1, 0

    def __init__(self, task_id: str, state: State, try_number: int = 1, *, is_killed: bool = False) -> None:
        self.task_id = task_id
        self.try_number = try_number
        self.is_killed = is_killed
        self.context: Any = {"ti": self, "task_instance": self, "task_state_store": state}

    def xcom_push(self, key: str, value: Any) -> None:
        if self.is_killed:
            raise Killed

    def get_first_reschedule_date(self, context: Any) -> None:
        return None
