# SPDX-License-Identifier: Apache-2.0
"""Attempts at one Airflow task instance: what is kept between them, what they push, and a triggerer to defer to."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from airflow_names import TaskDeferred, execute
from pydantic import JsonValue, TypeAdapter

from airflow_provider_gptimg.airflow_compat import AirflowFailException, BaseOperator
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.journal.attempt import Attempt
from airflow_provider_gptimg.journal.entries import Submitted
from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger


class Killed(BaseException):
    """The end of a worker process, at a moment that a test chooses."""


class StateStore:
    """Airflow's task state store of one task instance: JSON values by key."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}
        self.retentions: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return copy.deepcopy(self.records.get(key, default))

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        TypeAdapter(JsonValue).validate_python(value)  # as Airflow's own store: not what only json.dumps would take
        assert value is not None
        self.records[key] = json.loads(json.dumps(value))
        self.retentions[key] = retention

    def delete(self, key: str) -> None:
        self.records.pop(key, None)


class Instance:
    """One Airflow task instance; `attempt()` is one try at it, deferrals and all.

    :param store: Its state store; None: there is none.
    """

    dag_id, run_id, task_id, map_index = "pictures", "today", "paid", -1

    def __init__(self, store: StateStore | None = None) -> None:
        self.store = store
        self.try_number = 0
        self.max_tries = 0
        self.xcoms: dict[str, Any] = {}
        self.deferrals: list[TaskDeferred] = []
        self.events: list[Any] = []
        self.killed_at_push = False
        self.first_reschedule: Any = None
        self.start_date: Any = None

    @property
    def context(self) -> Any:
        context: dict[str, Any] = {"ti": self, "task_instance": self}
        if self.store is not None:
            context["task_state_store"] = self.store
        return context

    @property
    def submissions(self) -> list[Submitted]:
        """What the journal knows."""
        return Attempt.of(self.context, logging.getLogger("airflow.task")).read()

    def xcom_push(self, key: str, value: Any) -> None:
        if self.killed_at_push:
            raise Killed
        self.xcoms[key] = value

    def get_first_reschedule_date(self, context: Any) -> Any:
        return self.first_reschedule

    def attempt(self, operator: BaseOperator, while_deferred: Callable[[], object] = lambda: None) -> Any:
        """Execute; while that defers, fire the trigger and resume, each on an operator as freshly parsed.

        :param while_deferred: Called when the operator has deferred and before its trigger runs.
        """
        self.try_number += 1
        self.xcoms.clear()
        self.deferrals.clear()
        self.events.clear()
        call: Callable[[], Any] = lambda: execute(copy.copy(operator), self.context)  # noqa: E731
        while True:
            try:
                return call()
            except TaskDeferred as deferred:
                self.deferrals.append(deferred)
                while_deferred()
                event = asyncio.run(fire(deferred.trigger))
                self.events.append(event)
                kwargs = json.loads(json.dumps({**(deferred.kwargs or {}), "event": event}))
                method = deferred.method_name
                call = lambda: copy.copy(operator).resume_execution(method, kwargs, self.context)  # noqa: E731, B023

    def defer(self, operator: BaseOperator) -> TaskDeferred:
        """Execute, and return the deferral that this must end in."""
        self.try_number += 1
        with pytest.raises(TaskDeferred) as caught:
            execute(copy.copy(operator), self.context)
        return caught.value

    def kill(self, operator: BaseOperator) -> None:
        """Execute, and end the worker when the submission is recorded and nothing has been delivered yet."""
        self.try_number += 1
        self.killed_at_push = True
        with pytest.raises(Killed):
            execute(copy.copy(operator), self.context)
        self.killed_at_push = False

    def clear(self) -> None:
        """Do what Airflow does when a person clears the task."""
        self.max_tries += 1


def rebuilt(trigger: GptImgTaskTrigger) -> GptImgTaskTrigger:
    """Return the trigger that a triggerer makes of `trigger`."""
    path, kwargs = trigger.serialize()
    assert path == f"{GptImgTaskTrigger.__module__}.{GptImgTaskTrigger.__name__}"
    return GptImgTaskTrigger(**json.loads(json.dumps(kwargs)))


async def fire(trigger: GptImgTaskTrigger) -> Any:
    """Run `trigger` as a triggerer does, and return what its one event brings."""
    (event,) = [event async for event in rebuilt(trigger).run()]
    return event.payload


@contextmanager
def fails_at_once(error_type: type[GptImgError]) -> Iterator[pytest.ExceptionInfo[AirflowFailException]]:
    """Expect that Airflow is told not to try again, with the text of an error of exactly this type."""
    with pytest.raises(AirflowFailException) as caught:
        yield caught
    assert type(caught.value.__cause__) is error_type
    assert str(caught.value) == str(caught.value.__cause__)


@contextmanager
def may_be_retried(error_type: type[GptImgError]) -> Iterator[pytest.ExceptionInfo[GptImgError]]:
    """Expect an error of exactly this type, which leaves Airflow its retries."""
    with pytest.raises(error_type) as caught:
        yield caught
    assert type(caught.value) is error_type
