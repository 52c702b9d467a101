# SPDX-License-Identifier: Apache-2.0
"""The sensor: waits until image tasks are completed, on a worker, in the triggerer, or in the triggerer alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import (
    HAS_TASK_STATE_STORE,
    AirflowFailException,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    XComArg,
    conf,
)
from airflow_provider_gptimg.exceptions import GptImgError, GptImgTaskFailedError, GptImgTimeoutError
from airflow_provider_gptimg.links.gptimg import FirstImageLink, ImagesLink
from airflow_provider_gptimg.polling import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT
from airflow_provider_gptimg.verdicts import airflow_verdict, retry_policy_argument

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.waiting import TaskWaiter

__all__ = ["GptImgTaskSensor"]


class GptImgTaskSensor(BaseSensorOperator):
    """Wait until image tasks are completed, and return the finished task (dict), or a list of them for a list.

    :param gptimg_task_id: An image task's id, a finished task (dict), or a list of them, e.g. `submit.output`, also
        of a mapped submit (templated).
    :param gptimg_conn_id: Id of the connection (templated).
    :param deferrable: Wait in the triggerer instead of on a worker; if not given, as Airflow's
        `[operators] default_deferrable` says.
    :param poll_interval: Seconds between polls, 5 to 10 as the vendor asks; None: the connection's, else 5. Sensors'
        own `poke_interval` means the same.
    :param first_poll_after: Seconds from submission to the first poll after the one made at once; None: the
        connection's, else 39.5.
    :param timeout: Seconds from submission to completion. The image task outlives it, and so does its price: another
        attempt waits on for it.
    :param start_from_trigger: Start in the triggerer, without a worker process (Airflow 3.3 and newer, deferrable,
        not mapped); else it defers as usual. Airflow then skips the task's execute callbacks.
    :param end_from_trigger: End there too when all went well (Airflow 3.3 and newer, deferrable). Airflow then skips
        success callbacks, asset outlets and listeners.
    :param retry_policy: As of any operator (Airflow 3.3 and newer).
    """

    template_fields: Sequence[str] = ("gptimg_task_id", "gptimg_conn_id")
    ui_color = "#ede9fe"
    operator_extra_links = (ImagesLink(), FirstImageLink())

    def __init__(
        self,
        *,
        gptimg_task_id: Any,
        gptimg_conn_id: str = "gptimg_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | None = None,
        first_poll_after: float | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        start_from_trigger: bool = False,
        end_from_trigger: bool = False,
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        if poll_interval is None and "poke_interval" in kwargs:
            poll_interval = self._coerce_poke_interval(kwargs["poke_interval"]).total_seconds()
        kwargs["poke_interval"] = DEFAULT_POLL_INTERVAL if poll_interval is None else poll_interval
        super().__init__(timeout=timeout, **retry_policy_argument(retry_policy), **kwargs)
        self.gptimg_task_id = gptimg_task_id
        self.gptimg_conn_id = gptimg_conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.first_poll_after = first_poll_after
        self.end_from_trigger = end_from_trigger
        self.wants_start_from_trigger = start_from_trigger
        self._next_poll_at: float | None = None
        self.start_from_trigger = False
        if start_from_trigger and deferrable and HAS_TASK_STATE_STORE:
            self._start_in_triggerer()

    def _start_in_triggerer(self) -> None:
        """Let the scheduler hand this task to the triggerer, if Airflow can and can render the ids there."""
        task_id, conn_id = map(_renderable_in_triggerer, (self.gptimg_task_id, self.gptimg_conn_id))
        if task_id is None or conn_id is None:
            return
        from airflow.triggers.base import StartTriggerArgs

        self.start_trigger_args = StartTriggerArgs(
            trigger_cls="airflow_provider_gptimg.triggers.gptimg.GptImgTaskTrigger",
            trigger_kwargs={
                "gptimg_task_id": task_id,
                "gptimg_conn_id": conn_id,
                "poll_interval": self.poll_interval,
                "first_poll_after": self.first_poll_after,
                "timeout": self.timeout,
                "end_from_trigger": self.end_from_trigger,
            },
            next_method="execute_complete",
            next_kwargs=None,
            timeout=None,
        )
        self.start_from_trigger = True

    def execute(self, context: Context) -> Any:
        """Return the finished task or tasks, or defer until they are finished.

        :raises AirflowFailException: No other attempt would end otherwise; its cause is the error.
        :raises GptImgError: As the README's table of errors says.
        """
        if self.wants_start_from_trigger:
            self.log.info(
                "This wait did not start in the triggerer, so it goes on as usual: that takes Airflow 3.3, deferrable, "
                "an unmapped task, and a gptimg_task_id that the triggerer can render"
            )
        with self._verdict():
            if self.reschedule and not self.deferrable:
                return super().execute(context)
            return self._sense()

    def execute_complete(self, context: Context, event: Any = None, deadline: float | None = None) -> Any:
        """Return the finished task or tasks after the trigger has fired.

        :param deadline: Unix seconds; None: counted from submission.
        :raises GptImgError: As :meth:`execute`.
        """
        from airflow_provider_gptimg.waiting import read_event

        with self._verdict():
            timed_out = read_event(event) == "timeout"
            return self._sense(time.time() if timed_out else deadline)

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Ask once; called in `mode="reschedule"` only."""
        first = getattr(context.get("ti"), "get_first_reschedule_date", lambda _: None)(context)
        waiter = self._waiter()
        if not waiter.ask(since=first.timestamp() if first else None) and not waiter.expired:
            self._next_poll_at = waiter.wait.next_at
            return False
        return PokeReturnValue(is_done=True, xcom_value=self._result(waiter))

    def _get_next_poke_interval(self, *how_often: Any) -> float:
        """Return the seconds to the next poke: as the schedule says, unless an exponential backoff is wanted."""
        if self.exponential_backoff or self._next_poll_at is None:
            return super()._get_next_poke_interval(*how_often)
        return max(0.0, self._next_poll_at - time.time())

    def on_kill(self) -> None:
        """Say what a person who ends the task should know."""
        from airflow_provider_gptimg.triggers.gptimg import PAID_FOR

        self.log.warning(PAID_FOR)

    def _sense(self, deadline: float | None = None) -> Any:
        waiter = self._waiter(deadline)
        if not waiter.ask() and not waiter.expired:
            if self.deferrable:
                self.defer(
                    trigger=waiter.trigger(self.end_from_trigger and HAS_TASK_STATE_STORE),
                    method_name="execute_complete",
                    kwargs={"deadline": waiter.wait.deadline},
                )
            waiter.hold()
        return self._result(waiter)

    def _waiter(self, deadline: float | None = None) -> TaskWaiter:
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook
        from airflow_provider_gptimg.waiting import TaskWaiter

        return TaskWaiter(
            GptImgHook(self.gptimg_conn_id),
            self.gptimg_task_id,
            poll_interval=self.poll_interval,
            first_poll_after=self.first_poll_after,
            timeout=self.timeout,
            deadline=deadline,
        )

    def _result(self, waiter: TaskWaiter) -> Any:
        tasks = [task.as_dict() for task in waiter.results()]
        return tasks if waiter.many else tasks[0]

    @contextmanager
    def _verdict(self) -> Iterator[None]:
        try:
            with airflow_verdict():
                yield
        except (GptImgError, AirflowFailException) as error:
            final = (AirflowFailException, GptImgTaskFailedError, GptImgTimeoutError)
            if self.never_fail or (self.soft_fail and isinstance(error, final)):
                raise AirflowSkipException(str(error)) from error
            raise


def _renderable_in_triggerer(value: Any) -> Any:
    """Return an id, or a list of them, in a form that the triggerer can render; None if there is none.

    The triggerer renders Jinja, but resolves no `XComArg`, and a pull without `map_indexes` never returns there.
    """
    if isinstance(value, str):
        return value if value.count("xcom_pull") <= value.count("map_indexes") else None
    if isinstance(value, list):
        rendered = [_renderable_in_triggerer(entry) for entry in value]
        return rendered if rendered and None not in rendered else None
    if not isinstance(value, XComArg):
        return None
    operator, key = getattr(value, "operator", None), getattr(value, "key", None)
    if operator is None or operator.is_mapped or operator.get_closest_mapped_task_group() is not None:
        return None
    pull = f"ti.xcom_pull(task_ids={operator.task_id!r}, key={key!r}, map_indexes=-1)"
    return f"{{% set task = {pull} %}}{{{{ task['task_id'] if task is mapping else task }}}}"
