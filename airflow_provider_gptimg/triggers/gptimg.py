# SPDX-License-Identifier: Apache-2.0
"""The trigger: waits for image tasks in the triggerer, where thousands of waits share one client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_gptimg.api.tasks import COMPLETED, ImageTask, check_task_id
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.polling import PAID_FOR, Progress, Wait, check_timeout
from airflow_provider_gptimg.telemetry import count_poll, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.shared_client import SharedClient

__all__ = ["GptImgTaskTrigger"]

_AT_ONCE = 8
"""Polls that one trigger has under way at the most."""


class GptImgTaskTrigger(BaseTrigger):
    """Wait until image tasks are final, then fire once.

    It only ever polls: a trigger can be started twice, so it must not submit. All it goes by is in its
    arguments, so a restarted or moved triggerer goes on within the same deadline.

    The event is small however many tasks it speaks of: `status` is `finished` (all are final), `some` (`wake_after`
    are), `timeout`, or `error` with the `error` that no waiting mends. The resumed task asks for the rest itself. A
    wait for one id names it.

    :param gptimg_task_id: One id of an image task, or a list of them.
    :param gptimg_conn_id: Id of the connection.
    :param poll_interval: Seconds between polls of a task; None: the connection's, else 5.
    :param first_poll_after: Seconds from submission to the first poll; None: the connection's, else 39.5.
    :param deadline: When to give up, in Unix seconds; None: `timeout` seconds after submission.
    :param timeout: Seconds from submission to completion, or a `timedelta`, for a wait without a `deadline`.
    :param submitted_at: When the tasks were submitted, in Unix seconds; None: as the API says.
    :param first_poll_at: When to poll first, in Unix seconds; None: at once. A list has a moment for each task.
    :param end_from_trigger: End the Airflow task in the triggerer once all image tasks are completed, with its XCom
        written (Airflow 3.3 and newer).
    :param wake_after: Fire as soon as so many of the tasks are final; None: all.
    """

    def __init__(
        self,
        gptimg_task_id: str | list[str],
        gptimg_conn_id: str = "gptimg_default",
        poll_interval: float | timedelta | None = None,
        first_poll_after: float | timedelta | None = None,
        deadline: float | None = None,
        timeout: float | timedelta | None = None,
        submitted_at: float | None = None,
        first_poll_at: float | list[float] | None = None,
        end_from_trigger: bool = False,
        wake_after: int | None = None,
    ) -> None:
        super().__init__()
        self.gptimg_task_id = gptimg_task_id
        self.gptimg_conn_id = gptimg_conn_id
        self.poll_interval: float | None = _seconds(poll_interval)
        self.first_poll_after: float | None = _seconds(first_poll_after)
        self.deadline = deadline
        self.timeout: float | None = None if timeout is None else check_timeout(timeout)
        self.submitted_at = submitted_at
        self.first_poll_at = first_poll_at
        self.end_from_trigger = end_from_trigger
        self.wake_after = wake_after

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the trigger's import path and arguments."""
        return (
            "airflow_provider_gptimg.triggers.gptimg.GptImgTaskTrigger",
            {
                "gptimg_task_id": self.gptimg_task_id,
                "gptimg_conn_id": self.gptimg_conn_id,
                "poll_interval": self.poll_interval,
                "first_poll_after": self.first_poll_after,
                "deadline": self.deadline,
                "timeout": self.timeout,
                "submitted_at": self.submitted_at,
                "first_poll_at": self.first_poll_at,
                "end_from_trigger": self.end_from_trigger,
                # Only where it is used: the triggerer may still run the release before.
                **({} if self.wake_after is None else {"wake_after": self.wake_after}),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        # Imported here, since operators import this module when a DAG is parsed.
        from airflow_provider_gptimg.hooks.shared_client import shared_client

        status = "unreadable"
        try:
            if self._is_readable():
                async with shared_client(self.gptimg_conn_id) as client:
                    settings = await client.settings()
                    wait = Wait(
                        settings.schedule(self.poll_interval, self.first_poll_after),
                        deadline=self.deadline,
                        submitted_at=self.submitted_at,
                        progress=Progress(self._say),
                    )
                    with span("wait", tasks=len(self._task_ids)):
                        status = await self._wait(client, wait)
            event = await self._finish(wait) if status == "finished" else self._event(status)
        except GptImgError as error:
            event = self._event("error", error=error.as_dict())
        except Exception as error:
            # An exception would reach the task as a nameless "trigger failure".
            self.log.exception("The wait for image tasks failed")
            failure = GptImgError(f"The wait in the triggerer failed: {type(error).__name__}: {error}")
            event = self._event("error", error=failure.as_dict())
        yield event

    async def on_kill(self) -> None:
        """Say what is paid for when a person ends the waiting Airflow task."""
        self.log.warning(PAID_FOR)

    @staticmethod
    def _say(line: str) -> None:
        # One logger for all triggers: Airflow tells whose line it is by the context it is written in.
        GptImgTaskTrigger.logger().info(line)

    @property
    def _task_ids(self) -> list[str]:
        return [self.gptimg_task_id] if isinstance(self.gptimg_task_id, str) else list(self.gptimg_task_id)

    def _wait(self, client: SharedClient, wait: Wait) -> Coroutine[Any, Any, str]:
        """Poll each task when it is due, until all are final, or `wake_after`, or time is up."""
        started = time.time()
        self._plan(wait, started)
        since = None
        if wait.deadline is None and self.timeout is not None:
            # Until the tasks have told when they were submitted: a poll that hangs must not outlast the wait.
            since, wait.deadline = started, started + self.timeout
        wait_for = self._wait_for_one if len(wait.waiting) == 1 else self._wait_for_many
        return wait_for(client, wait, since)

    def _is_readable(self) -> bool:
        """False if the ids are not ids, e.g. a list that Jinja turned into text: then the worker reads them."""
        try:
            for given in self._task_ids:
                check_task_id(given)
        except GptImgRequestError:
            return False
        return True

    async def _wait_for_one(self, client: SharedClient, wait: Wait, since: float | None) -> str:
        """Wait for one task with one time limit and no asyncio task for a poll: thousands of triggers do this."""
        try:
            async with asyncio.timeout_at(_ends_at(wait)) as limit:
                while (due := wait.next_at) is not None:
                    now = time.time()
                    if wait.expired(now):
                        return "timeout"
                    task_id = wait.pop_due(now)
                    if task_id is None:
                        due = wait.schedule.in_step(due)
                        await asyncio.sleep((due if wait.deadline is None else min(due, wait.deadline)) - now)
                        continue
                    await self._poll(client, wait, task_id)
                    if since is not None:
                        wait.count_from_submission(self.timeout or 0.0, since)
                        since = None
                        limit.reschedule(_ends_at(wait))
        except TimeoutError:
            if not limit.expired():
                raise
            return "timeout"
        return "finished"

    async def _wait_for_many(self, client: SharedClient, wait: Wait, since: float | None) -> str:
        polls: set[asyncio.Task[None]] = set()
        try:
            while polls or wait.next_at is not None:
                now = time.time()
                if wait.expired(now):
                    return "timeout"
                if self.wake_after is not None and len(wait.outcomes) >= self.wake_after:
                    return "some"
                while len(polls) < _AT_ONCE and (task_id := wait.pop_due(now)) is not None:
                    polls.add(asyncio.create_task(self._poll(client, wait, task_id)))
                next_at = None if wait.next_at is None else wait.schedule.in_step(wait.next_at)
                until = [at for at in (next_at if len(polls) < _AT_ONCE else None, wait.deadline) if at is not None]
                pause = max(0.0, min(until) - now) if until else None
                if polls:
                    done, _ = await asyncio.wait(polls, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                    for poll in done:
                        poll.result()
                    polls -= done
                    if since is not None and not polls:
                        wait.count_from_submission(self.timeout or 0.0, since)
                        since = None
                else:
                    await asyncio.sleep(pause or 0.0)
        finally:
            for poll in polls:
                poll.cancel()
            # One error is enough: asyncio would log each that nobody took.
            await asyncio.gather(*polls, return_exceptions=True)
        return "finished"

    def _plan(self, wait: Wait, now: float) -> None:
        """Plan the first poll of each task."""
        firsts = self.first_poll_at if isinstance(self.first_poll_at, list) else itertools.repeat(self.first_poll_at)
        for task_id, first in dict(zip(self._task_ids, firsts, strict=False)).items():
            # All triggers of a restarted triggerer would else poll at the same moment.
            late = first is not None and first < now
            wait.add([task_id], max(first or 0.0, now), spread=wait.schedule.poll_interval if late else 0.0)

    async def _poll(self, client: SharedClient, wait: Wait, task_id: str) -> None:
        outcome: ImageTask | GptImgError
        try:
            outcome = await client.get_task(task_id, max_attempts=1)
        except GptImgError as error:
            outcome = error
        count_poll(outcome, in_triggerer=True)
        wait.record(task_id, outcome, time.time())

    async def _finish(self, wait: Wait) -> TriggerEvent:
        tasks = [wait.outcomes[task_id] for task_id in self._task_ids]
        images = [task for task in tasks if isinstance(task, ImageTask) and task.status == COMPLETED]
        # In dag.test() a trigger knows no task instance, so it cannot end one: the task resumes.
        if self.end_from_trigger and self.task_instance is not None and len(images) == len(tasks):
            from airflow.triggers.base import TaskSuccessEvent

            results = [task.as_dict() for task in images]
            await self._push_result(results[0] if isinstance(self.gptimg_task_id, str) else results)
            return TaskSuccessEvent()
        return self._event("finished")

    def _event(self, status: str, **facts: Any) -> TriggerEvent:
        one = {"gptimg_task_id": self.gptimg_task_id} if isinstance(self.gptimg_task_id, str) else {}
        return TriggerEvent({"status": status, **one, **facts})

    async def _push_result(self, result: Any) -> None:
        # TaskSuccessEvent(xcoms=…) would bring the value downstream as JSON text instead of as a dict.
        from asgiref.sync import sync_to_async

        from airflow_provider_gptimg.airflow_compat import XCom
        from airflow_provider_gptimg.links.gptimg import link_xcoms

        ti: Any = self.task_instance
        for key, value in (("return_value", result), *link_xcoms(result)):
            await sync_to_async(XCom.set)(
                key=key,
                value=value,
                dag_id=ti.dag_id,
                task_id=ti.task_id,
                run_id=ti.run_id,
                map_index=ti.map_index,
            )


def _ends_at(wait: Wait) -> float | None:
    """Return the wait's deadline by the clock of the event loop."""
    if wait.deadline is None:
        return None
    return asyncio.get_running_loop().time() + wait.deadline - time.time()


def _seconds(duration: float | timedelta | None) -> float | None:
    # JSON, which a trigger's arguments become, has no timedelta.
    return duration.total_seconds() if isinstance(duration, timedelta) else duration
