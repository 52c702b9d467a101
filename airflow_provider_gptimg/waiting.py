# SPDX-License-Identifier: Apache-2.0
"""How an operator waits: ask once, then defer or hold the worker, then read what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.tasks import COMPLETED, Image, ImageTask, check_task_id
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgProtocolError,
    GptImgRequestError,
)
from airflow_provider_gptimg.polling import Progress, Wait, check_timeout

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

__all__ = ["TaskWaiter", "check_timeout", "raise_failures", "read_event", "read_task_id", "read_task_ids"]


def read_task_ids(value: Any) -> tuple[list[str], dict[str, ImageTask]]:
    """Return the ids in an operator's `gptimg_task_id`, and the tasks among them that are known to be completed.

    :param value: An id, a finished task (dict), or a list of them; a mapped task's XCom too.
    :raises GptImgRequestError: It is something else, or empty.
    """
    entries = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(entries, Sequence) or not entries:
        raise GptImgRequestError(
            f"gptimg_task_id={value!r:.120} is neither an image task's id, nor a finished task, nor a list of them: "
            "pass the XCom of a GptImgSubmitOperator, as in gptimg_task_id=submit.output"
        )
    task_ids, finished = [], {}
    for entry in entries:
        task_id = check_task_id(entry.get("task_id") if isinstance(entry, Mapping) else entry)
        task_ids.append(task_id)
        if isinstance(entry, Mapping) and (task := _finished(task_id, entry)):
            finished[task_id] = task
    return task_ids, finished


def _finished(task_id: str, entry: Mapping[str, Any]) -> ImageTask | None:
    listed = entry.get("images")
    if entry.get("status") != COMPLETED or not isinstance(listed, Sequence):
        return None
    images = [
        Image(image["url"], image.get("content_type"))
        for image in listed
        if isinstance(image, Mapping) and isinstance(image.get("url"), str)
    ]
    if not images or len(images) != len(listed):
        return None
    texts = ("id", "type", "provider", "model", "media_url", "created_at", "updated_at")
    return ImageTask(
        task_id=task_id, status=COMPLETED, images=tuple(images), **{name: entry.get(name) for name in texts}
    )


class TaskWaiter:
    """A wait for image tasks as an operator's arguments say.

    :param gptimg_task_id: As :func:`read_task_ids`.
    :param poll_interval: Seconds; None: the connection's. Likewise `first_poll_after`.
    :param timeout: Seconds from submission to completion.
    :param submitted_at: Unix seconds; None: as the API says.
    :param deadline: Unix seconds, where an earlier leg of this attempt has set it.
    :raises GptImgError: The ids or the connection are wrong.
    """

    def __init__(
        self,
        hook: GptImgHook,
        gptimg_task_id: Any,
        *,
        poll_interval: float | None,
        first_poll_after: float | None,
        timeout: float,
        submitted_at: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.hook = hook
        self.many = not isinstance(gptimg_task_id, (str, Mapping))
        self.task_ids, finished = read_task_ids(gptimg_task_id)
        self.poll_interval = poll_interval
        self.first_poll_after = first_poll_after
        self.timeout = check_timeout(timeout)
        self.wait = Wait(
            hook.settings.schedule(poll_interval, first_poll_after),
            deadline=deadline,
            submitted_at=submitted_at,
            progress=Progress(hook.log.info),
        )
        self.wait.outcomes.update(finished)
        self.claimed = frozenset(finished)
        """Ids of the tasks that are finished only by what `gptimg_task_id` says."""

    def ask(self, since: float | None = None) -> bool:
        """Ask once for each task that is not known to be final, and return whether all are.

        :param since: When this attempt began, in Unix seconds; None: now.
        :raises GptImgAuthError: The key was rejected.
        """
        unknown = [task_id for task_id in self.task_ids if task_id not in self.wait.outcomes]
        self.hook.start_wait(self.wait, unknown, self.timeout, since)
        return self.wait.next_at is None

    @property
    def expired(self) -> bool:
        """Whether time is up."""
        return self.wait.expired(time.time())

    def hold(self) -> None:
        """Wait on this worker until all are final or time is up.

        :raises GptImgAuthError: The key was rejected.
        """
        self.hook.finish_wait(self.wait)

    def trigger(self, end_from_trigger: bool = False) -> GptImgTaskTrigger:
        """Return the trigger that waits on."""
        from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

        # A wait that ends in the triggerer needs all results there, in the shape that was asked for.
        waiting = self.wait.waiting
        if end_from_trigger:
            waiting = list(self.task_ids)
        return GptImgTaskTrigger(
            gptimg_task_id=waiting if self.many or len(waiting) != 1 else waiting[0],
            gptimg_conn_id=self.hook.gptimg_conn_id,
            poll_interval=self.poll_interval,
            first_poll_after=self.first_poll_after,
            deadline=self.wait.deadline,
            submitted_at=self.wait.submitted_at,
            first_poll_at=self.wait.next_at,
            end_from_trigger=end_from_trigger,
        )

    @property
    def outcomes(self) -> dict[str, ImageTask | GptImgError]:
        """What became of each task: the completed task, or the error that stands for it."""
        return {task_id: self.wait.outcome(task_id) for task_id in dict.fromkeys(self.task_ids)}

    def results(self) -> list[ImageTask]:
        """Return the completed tasks, in the order of their ids, and log what was made.

        :raises GptImgError: The first error, naming all tasks that have one.
        """
        outcomes = self.outcomes
        raise_failures(outcomes)
        tasks = [task for task in map(outcomes.get, self.task_ids) if isinstance(task, ImageTask)]
        for task in tasks:
            made = f"{len(task.images)} image" + ("s" if len(task.images) > 1 else "")
            self.hook.log.info("Image task %s completed: %s, %d credits", task.task_id, made, task.credits)
        return tasks


def raise_failures(outcomes: Mapping[str, ImageTask | GptImgError]) -> None:
    """Raise the first error among `outcomes`, naming all tasks that have one.

    :raises GptImgError: The first error.
    """
    failed = {task_id: outcome for task_id, outcome in outcomes.items() if isinstance(outcome, GptImgError)}
    if not failed:
        return
    error = next(iter(failed.values()))
    if len(outcomes) > 1:
        error.add_hint(f"Of {len(outcomes)} image tasks {len(failed)} failed: {', '.join(failed)}")
    raise error


def read_event(event: Any) -> str:
    """Return the status of a trigger's event: `finished`, `timeout`, `error` or, if it is none of these, `unknown`.

    The resumed task asks the API itself in any case, so an event of another release, or of `dag.test()`, which cannot
    tell one from another, does no harm. Neither does an error of the triggerer end a wait that is paid for.
    """
    status = event.get("status") if isinstance(event, Mapping) else None
    return status if status in ("finished", "timeout", "error") else "unknown"


def read_task_id(event: Any) -> str:
    """Return the one id that a trigger's event speaks of.

    :raises GptImgProtocolError: It names none.
    """
    task_id = event.get("gptimg_task_id") if isinstance(event, Mapping) else None
    if not isinstance(task_id, str):
        raise GptImgProtocolError(f"The trigger's event names no image task: {event!r:.300}")
    return task_id
