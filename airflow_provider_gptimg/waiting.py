# SPDX-License-Identifier: Apache-2.0
"""The wait of an operator: poll once, then defer or hold the worker, then resume and read how each task ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.tasks import ImageTask, check_task_id
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgProtocolError,
    GptImgRequestError,
    GptImgTaskFailedError,
    from_dict,
)
from airflow_provider_gptimg.journal.spending import note_refunds
from airflow_provider_gptimg.polling import PAID_FOR, Progress, Wait, check_timeout

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

__all__ = [
    "HOLDS_A_WORKER",
    "TaskWait",
    "WaitMixin",
    "read_event",
    "read_task_id",
    "read_task_ids",
    "refuse_airflow_ids",
]

HOLDS_A_WORKER = (
    "This task holds a worker until its images are finished. To wait in the triggerer instead, set deferrable=True on "
    "the task, or default_deferrable = True in the section [operators] of Airflow's configuration"
)


class WaitMixin:
    """Mixin of the operators that wait for image tasks. Its attributes are their arguments of the same names."""

    gptimg_conn_id: str
    deferrable: bool
    poll_interval: float | timedelta | None
    first_poll_after: float | timedelta | None
    timeout: Any
    execution_timeout: timedelta | None
    operator_extra_links: Any
    log: Any
    defer: Any

    def check_wait(self, hook: GptImgHook) -> None:
        """Check the wait's arguments, before anything is paid for.

        :raises GptImgRequestError: An argument is not a number of seconds.
        """
        hook.settings.schedule(self.poll_interval, self.first_poll_after)
        check_timeout(self.timeout)

    def wait_for(
        self,
        context: Context,
        gptimg_task_id: Any,
        *,
        event: Any = None,
        deadline: float | None = None,
        submitted_at: float | None = None,
        end_from_trigger: bool = False,
        resume_with: Mapping[str, Any] | None = None,
        before_wait: Callable[[], None] | None = None,
    ) -> TaskWait:
        """Poll once; then, unless all tasks are final or time is up, defer, or hold the worker until they are.

        :param gptimg_task_id: As :func:`read_task_ids`.
        :param event: Of the trigger, for a task that resumes.
        :param deadline: Unix seconds, which the leg before has set; None: counted from submission.
        :param submitted_at: Unix seconds; None: as the API says.
        :param end_from_trigger: Let the trigger end the Airflow task.
        :param resume_with: Arguments of `execute_complete` besides `deadline`.
        :param before_wait: Called where there is something to wait for, before the wait.
        :raises TaskDeferred: The trigger waits from here on.
        :raises GptImgError: The ids or the connection are wrong.
        """
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        self.operator_extra_links = ()
        refuse_airflow_ids(gptimg_task_id, context.get("dag"))
        status = read_event(event)
        wait = TaskWait(
            GptImgHook(self.gptimg_conn_id),
            gptimg_task_id,
            poll_interval=self.poll_interval,
            first_poll_after=self.first_poll_after,
            timeout=self.timeout,
            submitted_at=submitted_at,
            deadline=time.time() if status == "timeout" else deadline,
        )
        is_done = wait.poll()
        if self.deferrable and self.execution_timeout is not None:
            # Airflow's own timer runs on workers only, and starts again when a task resumes.
            wait.limit(_started_at(context) + self.execution_timeout.total_seconds(), "timeout or execution_timeout")
        if is_done or wait.is_expired:
            return wait
        if before_wait is not None:
            before_wait()
        if self.deferrable and status != "error":
            self.defer(
                trigger=wait.trigger(end_from_trigger),
                method_name="execute_complete",
                kwargs={**(resume_with or {}), "deadline": wait.deadline},
            )
        if status == "error":
            # Else a triggerer that cannot wait and a worker would hand the task to each other without a pause.
            self.log.warning("The triggerer could not wait, so this worker does: %s", from_dict(event.get("error")))
        else:
            self.log.info(HOLDS_A_WORKER)
        wait.hold()
        return wait

    def on_kill(self) -> None:
        """Say what is paid for."""
        self.log.warning(PAID_FOR)


def _started_at(context: Context) -> float:
    started = getattr(context.get("ti"), "start_date", None)
    return started.timestamp() if started else time.time()


class TaskWait:
    """A wait for image tasks as an operator's arguments say.

    :param gptimg_task_id: As :func:`read_task_ids`.
    :param poll_interval: Seconds; None: the connection's. Likewise `first_poll_after`.
    :param timeout: Seconds from submission to completion, or a `timedelta`.
    :param submitted_at: Unix seconds; None: as the API says.
    :param deadline: Unix seconds, where an earlier leg of this attempt has set it.
    :raises GptImgError: The ids or the connection are wrong.
    """

    def __init__(
        self,
        hook: GptImgHook,
        gptimg_task_id: Any,
        *,
        poll_interval: float | timedelta | None,
        first_poll_after: float | timedelta | None,
        timeout: float | timedelta,
        submitted_at: float | None = None,
        deadline: float | None = None,
    ) -> None:
        from airflow_provider_gptimg.hooks.poller import Poller

        self.hook = hook
        hook.settings.refuse_key(gptimg_task_id)
        self.many: bool = not isinstance(gptimg_task_id, (str, Mapping))
        self.task_ids: list[str]
        self.task_ids, finished = read_task_ids(gptimg_task_id)
        self._poll_interval = poll_interval
        self._first_poll_after = first_poll_after
        self._timeout = check_timeout(timeout)
        self._poller = Poller(hook)
        self._wait = Wait(
            hook.settings.schedule(poll_interval, first_poll_after),
            deadline=deadline,
            submitted_at=submitted_at,
            progress=Progress(hook.log.info),
            final_failure_codes=hook.settings.final_failure_codes,
        )
        self._wait.outcomes.update(finished)
        self.claimed: frozenset[str] = frozenset(finished)
        """Ids of the tasks that are finished only by what `gptimg_task_id` says."""

    def poll(self, since: float | None = None) -> bool:
        """Poll once each task that is not known to be final, and return whether all are.

        :param since: When this attempt began, in Unix seconds; None: now.
        """
        unknown = [task_id for task_id in self.task_ids if task_id not in self._wait.outcomes]
        with self._wait.ended_by_rejection(self.task_ids):
            self._poller.start(self._wait, unknown, self._timeout, since)
        return self._wait.next_at is None

    def limit(self, deadline: float, name: str) -> None:
        """Let the wait end by `deadline`, in Unix seconds, at the latest.

        :param name: Of what ends it, for the text of a time-out.
        """
        self._wait.limit = name
        if self._wait.deadline is None or deadline < self._wait.deadline:
            self._wait.deadline = deadline

    @property
    def deadline(self) -> float | None:
        """When the wait ends, in Unix seconds; None before the first poll."""
        return self._wait.deadline

    @property
    def is_expired(self) -> bool:
        """True if time is up."""
        return self._wait.expired(time.time())

    @property
    def next_poll_at(self) -> float | None:
        """When the next poll is due, in Unix seconds; None if none is planned."""
        return self._wait.next_at

    def hold(self) -> None:
        """Wait on this worker until all are final or time is up."""
        with self._wait.ended_by_rejection(self.task_ids):
            self._poller.finish(self._wait)

    def trigger(self, end_from_trigger: bool = False) -> GptImgTaskTrigger:
        """Return the trigger that waits from here on."""
        from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

        # A wait that ends in the triggerer needs all results there, in the shape that was asked for.
        waiting = list(self.task_ids) if end_from_trigger else self._wait.waiting
        return GptImgTaskTrigger(
            gptimg_task_id=waiting if self.many or len(waiting) != 1 else waiting[0],
            gptimg_conn_id=self.hook.gptimg_conn_id,
            poll_interval=self._poll_interval,
            first_poll_after=self._first_poll_after,
            deadline=self._wait.deadline,
            submitted_at=self._wait.submitted_at,
            first_poll_at=self._wait.next_at,
            end_from_trigger=end_from_trigger,
        )

    @property
    def outcomes(self) -> dict[str, ImageTask | GptImgError]:
        """The end of each task: the completed task, or an error."""
        outcomes = {task_id: self._wait.outcome(task_id) for task_id in dict.fromkeys(self.task_ids)}
        failed = [task_id for task_id, outcome in outcomes.items() if isinstance(outcome, GptImgTaskFailedError)]
        note_refunds(failed, self.hook.log)
        return outcomes

    def raise_failures(self, outcomes: Mapping[str, ImageTask | GptImgError], submits: bool = False) -> None:
        """Raise the first error among `outcomes`, naming all tasks that have one, and their places in the list.

        :param submits: The Airflow task submits, so that its next attempt can mend a failed generation.
        :raises GptImgError: The first error.
        """
        failed = {each: outcome for each, outcome in outcomes.items() if isinstance(outcome, GptImgError)}
        if not failed:
            return
        error = next(iter(failed.values()))
        if isinstance(error, GptImgTaskFailedError) and not submits:
            error.add_hint("Another attempt to wait fails again: clear what submitted it, and all tasks downstream")
        if len(outcomes) > 1:
            count, ids = f"Of {len(outcomes)} image tasks {len(failed)} failed", ", ".join(failed)
            places = ", ".join(f"[{self.task_ids.index(each)}]" for each in failed)
            error.add_hint(f"{count}: {ids} (in gptimg_task_id: {places})")
        raise error

    def results(self, images: int | None = None, submits: bool = False) -> list[ImageTask]:
        """Return the completed tasks, in the order of their ids, and log what was made.

        :param images: Number of images that each request asked for; None: unknown.
        :param submits: As for :meth:`raise_failures`.
        :raises GptImgError: The first error, naming all tasks that have one.
        """
        outcomes = self.outcomes
        self.raise_failures(outcomes, submits)
        tasks = [task for task in map(outcomes.get, self.task_ids) if isinstance(task, ImageTask)]
        for task in tasks:
            made = f"{len(task.images)} image" + ("s" if len(task.images) > 1 else "")
            self.hook.log.info("Image task %s completed: %s, %d credits", task.task_id, made, task.credits)
            if images is not None and len(task.images) < images:
                self.hook.log.warning(
                    "Image task %s delivered %s of the %d that were asked for and charged: ask the vendor about it",
                    task.task_id,
                    made,
                    images,
                )
        return tasks


def read_task_ids(value: Any) -> tuple[list[str], dict[str, ImageTask]]:
    """Return the ids in an operator's `gptimg_task_id`, and the tasks among them that are known to be completed.

    :param value: An id, a finished task (dict), or a list of them; a mapped task's XCom too.
    :raises GptImgRequestError: It is something else, or empty.
    """
    entries = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(entries, Sequence):
        raise GptImgRequestError(
            f"gptimg_task_id={value!r:.120} is neither an image task's id, nor a finished task, nor a list of them: "
            "pass the XCom of a GptImgSubmitOperator, as in gptimg_task_id=submit.output"
        )
    if not entries:
        raise GptImgRequestError(
            "gptimg_task_id is an empty list: no image task was submitted. If it is the output of a mapped task, that "
            "task was expanded over nothing, or all its instances were skipped; trigger_rule='all_success' skips this "
            "task with them"
        )
    task_ids, finished = [], {}
    for entry in entries:
        if isinstance(entry, Mapping) and "task_id" not in entry:
            raise GptImgRequestError(
                f"gptimg_task_id={entry!r:.120} is a dict without 'task_id': pass a finished task, as a "
                "GptImgGenerateOperator or GptImgTaskSensor returns it, or an image task's id"
            )
        task_id = check_task_id(entry.get("task_id") if isinstance(entry, Mapping) else entry)
        task_ids.append(task_id)
        if isinstance(entry, Mapping) and (task := ImageTask.from_dict(entry)):
            finished[task_id] = task
    return task_ids, finished


def refuse_airflow_ids(value: Any, dag: Any) -> None:
    """Refuse an Airflow task, or its id, in the place of an image task's id.

    :param value: As :func:`read_task_ids`.
    :param dag: The DAG that runs; None: unknown.
    :raises GptImgRequestError: It names a task of the DAG, or is one.
    """
    airflow_ids = set(getattr(dag, "task_ids", ()))
    for entry in [value] if isinstance(value, str) or not isinstance(value, Sequence) else value:
        operator, name = hasattr(entry, "output"), getattr(entry, "task_id", entry)
        if operator or (isinstance(name, str) and name in airflow_ids):
            raise GptImgRequestError(
                f"gptimg_task_id={name!r} is {'a' if operator else 'the task_id of a'} task in this DAG, not the id of "
                f"an image task: pass what that task returns, as in gptimg_task_id={name.rpartition('.')[2]}.output"
            )


def read_event(event: Any) -> str:
    """Return the status of a trigger's event: `finished`, `timeout`, `error` or, if it is none of these, `unknown`.

    The resumed task polls itself in any case, so an event of another release, or of `dag.test()`, which cannot tell one
    from another, does no harm. Neither does an error of the triggerer end a wait that is paid for.
    """
    status = event.get("status") if isinstance(event, Mapping) else None
    return status if status in ("finished", "timeout", "error") else "unknown"


def read_task_id(event: Any) -> str:
    """Return the one id in a trigger's event.

    :raises GptImgProtocolError: It names none.
    """
    task_id = event.get("gptimg_task_id") if isinstance(event, Mapping) else None
    if not isinstance(task_id, str):
        raise GptImgProtocolError(f"The trigger's event names no image task: {event!r:.300}")
    return task_id
