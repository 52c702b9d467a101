# SPDX-License-Identifier: Apache-2.0
"""Attempts at one batch task: a state store that outlives them, and a triggerer to defer to."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from airflow_names import TaskDeferred, execute
from pydantic import JsonValue, TypeAdapter

from airflow_provider_gptimg.airflow_compat import BaseOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator


class FileStore:
    """Airflow's task state store of one task instance: JSON values by key, each in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def get(self, key: str, default: Any = None) -> Any:
        path = self.folder / key
        return json.loads(path.read_text()) if path.exists() else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        TypeAdapter(JsonValue).validate_python(value)  # as Airflow's own store: not what only json.dumps would take
        assert value is not None
        # As one transaction: all of the old value or all of the new one.
        path = self.folder / f"{key}.new"
        path.write_text(json.dumps(value))
        path.replace(self.folder / key)

    def delete(self, key: str) -> None:
        (self.folder / key).unlink(missing_ok=True)

    @property
    def segments(self) -> list[str]:
        """The keys that a later leg reads."""
        keys = self.values
        return [key for key in keys if key.rpartition(".")[0] not in keys]

    @property
    def values(self) -> dict[str, Any]:
        return {path.name: json.loads(path.read_text()) for path in sorted(self.folder.iterdir())}


class Instance:
    """One Airflow task instance.

    :param store: None stands for an Airflow before 3.3.
    :param number: Of the attempt, from 1.
    """

    dag_id, run_id, task_id, map_index = "dag", "run", "batch", -1

    def __init__(self, store: FileStore | None, number: int = 1, max_tries: int = 0) -> None:
        self.store = store
        self.try_number = number
        self.max_tries = max_tries
        self.xcoms: dict[str, Any] = {}
        self.deferrals = 0

    @property
    def context(self) -> Any:
        context: dict[str, Any] = {"ti": self, "task_instance": self}
        if self.store is not None:
            context["task_state_store"] = self.store
        return context

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def retry(self) -> Instance:
        """Return the next attempt, as after a failure or a kill."""
        return Instance(self.store, self.try_number + 1, self.max_tries)

    def clear(self) -> Instance:
        """Return the next attempt, as after a person has cleared the task."""
        return Instance(self.store, self.try_number + 1, self.max_tries + 1)

    def run(self, operator: BaseOperator, while_deferred: Callable[[], object] = lambda: None) -> Any:
        """Execute; while that defers, fire the trigger and resume, each time on an operator as freshly parsed.

        :param while_deferred: Called when the operator has deferred and before its trigger runs.
        """
        call: Callable[[], Any] = lambda: execute(copy.copy(operator), self.context)  # noqa: E731
        while True:
            try:
                return call()
            except TaskDeferred as deferred:
                self.deferrals += 1
                while_deferred()
                event = asyncio.run(_fire(deferred.trigger))
                kwargs = json.loads(json.dumps({**(deferred.kwargs or {}), "event": event}))
                method = deferred.method_name
                call = lambda: copy.copy(operator).resume_execution(method, kwargs, self.context)  # noqa: E731, B023


async def _fire(trigger: Any) -> Any:
    """Run a trigger as a triggerer does: rebuilt from what it serialized."""
    _, kwargs = trigger.serialize()
    (event,) = [event async for event in type(trigger)(**json.loads(json.dumps(kwargs))).run()]
    return event.payload


def batch(requests: Any, **arguments: Any) -> GptImgBatchToS3Operator:
    """Return a batch into the tests' bucket."""
    arguments = {"task_id": "batch", "s3_bucket": "images", **arguments}
    return GptImgBatchToS3Operator(requests=requests, **arguments)


def prompts(number: int) -> list[str]:
    """Return so many different prompts."""
    return [f"Picture {index}" for index in range(number)]


class InTurn:
    """An executor with one thread: the caller's."""

    def __init__(self, workers: int) -> None:
        pass

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, function: Callable[[Any], None], values: Iterable[Any]) -> Iterator[None]:
        return map(function, values)
