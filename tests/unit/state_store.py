# SPDX-License-Identifier: Apache-2.0
"""Airflow's task state store, as much of it as a task sees: JSON values that outlive an attempt."""

from __future__ import annotations

import json
import logging
from typing import Any

from airflow_provider_gptimg.submission import RECORD_KEY, Submission, SubmissionRecord


class StateStore:
    """What `context["task_state_store"]` is; `writes` keeps every value written, in order."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.writes: list[Any] = []
        self.retentions: list[Any] = []

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        assert value is not None
        self.values[key] = json.dumps(value)
        self.writes.append(value)
        self.retentions.append(retention)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)

    @property
    def record(self) -> SubmissionRecord | None:
        value = self.get(RECORD_KEY)
        return None if value is None else SubmissionRecord.from_json(value)


class TaskInstance:
    """The part of a task instance that tells a retry from a clear."""

    def __init__(self, max_tries: int = 0) -> None:
        self.max_tries = max_tries


def submission(store: Any, max_tries: int = 0, log: logging.Logger | None = None) -> Submission:
    """Return the submission as an attempt makes it from its context."""
    context: Any = {"ti": TaskInstance(max_tries)} | ({} if store is None else {"task_state_store": store})
    return Submission(context, log or logging.getLogger("airflow.task"))
