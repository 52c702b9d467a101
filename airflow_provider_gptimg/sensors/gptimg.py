# SPDX-License-Identifier: Apache-2.0
"""The sensor: waits until image tasks are completed, on a worker, in the triggerer, or in the triggerer alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import (
    HAS_TASK_STATE_STORE,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    XComArg,
    conf,
)
from airflow_provider_gptimg.exceptions import GptImgTaskFailedError, GptImgTimeoutError
from airflow_provider_gptimg.links.gptimg import FirstImageLink, first_image_url, known_links, task_links
from airflow_provider_gptimg.polling import DEFAULT_POLL_INTERVAL, DEFAULT_TIMEOUT, check_timeout
from airflow_provider_gptimg.verdicts import airflow_verdict, retry_policy_argument, unknown_arguments
from airflow_provider_gptimg.waiting import TaskWait, WaitMixin, refuse_airflow_ids

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = ["GptImgTaskSensor"]

# What a template finds in the triggerer as it does on a worker.
_NAMES = {
    *("run_id", "dag_run", "params", "logical_date", "ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz"),
    *("data_interval_start", "data_interval_end", "task_instance_key_str"),
}
_TASK_INSTANCE = {"ti", "task_instance"}
_ATTRIBUTES = {"dag_id", "task_id", "run_id", "map_index", "try_number"}


class GptImgTaskSensor(WaitMixin, BaseSensorOperator):
    """Wait until image tasks are completed, and return the finished task (dict), or a list of them for a list.

    :param gptimg_task_id: An image task's id, a finished task (dict), or a list of them, e.g. `submit.output`, also
        of a mapped submit (templated).
    :param gptimg_conn_id: Id of the connection (templated).
    :param deferrable: Wait in the triggerer instead of on a worker; if not given, as Airflow's
        `[operators] default_deferrable` says.
    :param poll_interval: Seconds between polls, 5 to 10 as the vendor asks; None: the connection's, else 5.
    :param poke_interval: The same by the name that all sensors have; `poll_interval` wins.
    :param first_poll_after: Seconds from submission to the first poll after the one made at once; None: the
        connection's, else 39.5.
    :param timeout: Seconds from submission to completion, or a `timedelta`. The image task outlives it and is paid
        for: another attempt waits for the same one.
    :param start_from_trigger: Start in the triggerer, without a worker process (Airflow 3.3 and newer, deferrable,
        not mapped); else it defers as usual. Airflow then skips the task's execute callbacks.
    :param end_from_trigger: End there too when all went well (Airflow 3.3 and newer, deferrable). Airflow then skips
        success callbacks, asset outlets and listeners.
    :param retry_policy: As of any operator (Airflow 3.3 and newer).
    """

    template_fields: Sequence[str] = ("gptimg_task_id", "gptimg_conn_id")
    ui_color = "#ede9fe"
    operator_extra_links: Any = task_links(FirstImageLink())

    def __init__(
        self,
        *,
        gptimg_task_id: Any,
        gptimg_conn_id: str = "gptimg_default",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta | None = None,
        poke_interval: float | timedelta | None = None,
        first_poll_after: float | timedelta | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        start_from_trigger: bool = False,
        end_from_trigger: bool = False,
        retry_policy: Any = None,
        **kwargs: Any,
    ) -> None:
        with airflow_verdict():  # Airflow's error about NaN or infinity does not say which argument is wrong
            check_timeout(timeout)
            if poll_interval is not None:
                poll_interval = check_timeout(poll_interval, "poll_interval")
            elif poke_interval is not None:
                poll_interval = check_timeout(poke_interval, "poke_interval")
        with unknown_arguments(type(self), kwargs):
            super().__init__(
                poke_interval=DEFAULT_POLL_INTERVAL if poll_interval is None else poll_interval,
                timeout=timeout,
                **retry_policy_argument(retry_policy),
                **kwargs,
            )
        if self.has_dag():  # while its file is parsed: before a submit is paid for
            with airflow_verdict():
                refuse_airflow_ids(gptimg_task_id, self.dag)
        self.gptimg_task_id = gptimg_task_id
        self.gptimg_conn_id = gptimg_conn_id
        self.deferrable = deferrable
        self.poll_interval: float | None = poll_interval
        self.first_poll_after = first_poll_after
        self.end_from_trigger = end_from_trigger
        self.wants_start_from_trigger = start_from_trigger
        self.start_from_trigger = False
        if start_from_trigger and deferrable and HAS_TASK_STATE_STORE:
            self._start_in_triggerer()

    def _start_in_triggerer(self) -> None:
        """Let the scheduler hand this task to the triggerer, if Airflow can and can render the ids there."""
        task_id, conn_id = map(_renderable_in_triggerer, (self.gptimg_task_id, self.gptimg_conn_id))
        if task_id is None or conn_id is None:
            return
        from airflow.triggers.base import StartTriggerArgs

        self.start_trigger_args: StartTriggerArgs = StartTriggerArgs(
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
            timeout=self.execution_timeout,
        )
        self.start_from_trigger: bool = True

    def execute(self, context: Context) -> Any:
        """Return the finished task or tasks, or defer until they are finished.

        :raises AirflowFailException: Another attempt would fail in the same way; `__cause__` is the error.
        :raises GptImgError: As the table of errors in the docs says.
        """
        if self.wants_start_from_trigger:
            self.log.info(
                "This wait did not start in the triggerer, so it goes on as usual: that takes Airflow 3.3, deferrable, "
                "an unmapped task, and a gptimg_task_id that the triggerer can render"
            )
        with self._verdict():
            if self.reschedule and not self.deferrable:
                return self._poke_or_reschedule(context)
            return self._sense(context)

    def execute_complete(self, context: Context, event: Any = None, deadline: float | None = None) -> Any:
        """Return the finished task or tasks after the trigger has fired.

        :param deadline: Unix seconds; None: counted from submission.
        :raises GptImgError: As :meth:`execute`.
        """
        with self._verdict():
            return self._sense(context, event, deadline)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Call `next_method` after a deferral.

        :raises GptImgTimeoutError: `execution_timeout` was up in the triggerer. Other sensors then have no retry left.
        """
        with self._verdict():
            try:
                return super().resume_execution(next_method, next_kwargs, context)
            except AirflowSensorTimeout as error:
                raise GptImgTimeoutError(
                    f"Time was up after execution_timeout={self.execution_timeout}. The image tasks continue and are "
                    "paid for; another attempt waits for the same ones"
                ) from error

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Poll once, and return whether the tasks are finished, with their dicts.

        :raises GptImgError: As :meth:`execute`.
        """
        wait, is_done = self._poll(context)
        return PokeReturnValue(is_done=True, xcom_value=self._result(wait)) if is_done else False

    def _poll(self, context: Context) -> tuple[TaskWait, bool]:
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        wait = TaskWait(
            GptImgHook(self.gptimg_conn_id),
            self.gptimg_task_id,
            poll_interval=self.poll_interval,
            first_poll_after=self.first_poll_after,
            timeout=self.timeout,
        )
        return wait, wait.poll(since=_first_poke_at(context)) or wait.is_expired

    def _poke_or_reschedule(self, context: Context) -> Any:
        self.operator_extra_links = ()
        wait, is_done = self._poll(context)
        if is_done:
            return self._result(wait)
        now = time.time()
        next_at = wait.next_poll_at or now
        if self.exponential_backoff:
            pause = max(self.poke_interval, now - (_first_poke_at(context) or now))
            if self.max_wait is not None:
                pause = min(pause, self.max_wait.total_seconds())
            next_at = min(now + pause, wait.deadline or now + pause)
        raise AirflowRescheduleException(datetime.fromtimestamp(max(next_at, now), UTC))

    def _sense(self, context: Context, event: Any = None, deadline: float | None = None) -> Any:
        ends = self.end_from_trigger and HAS_TASK_STATE_STORE
        return self._result(
            self.wait_for(context, self.gptimg_task_id, event=event, deadline=deadline, end_from_trigger=ends)
        )

    def _result(self, wait: TaskWait) -> Any:
        tasks = [task.as_dict() for task in wait.results()]
        result = tasks if wait.many else tasks[0]
        self.operator_extra_links = known_links(FirstImageLink, first_image_url(result))
        return result

    @contextmanager
    def _verdict(self) -> Iterator[None]:
        """Skip where `soft_fail` or `never_fail` say so, for the errors for which core sensors do."""
        try:
            with airflow_verdict():
                yield
        except (AirflowSkipException, AirflowRescheduleException):
            raise
        except (AirflowFailException, AirflowTaskTimeout, GptImgTaskFailedError, GptImgTimeoutError) as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
        except Exception as error:
            if self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise


def _first_poke_at(context: Context) -> float | None:
    """Return when this attempt poked first, in Unix seconds; None if that is now."""
    ti: Any = context.get("ti")
    if hasattr(ti, "get_first_reschedule_date"):
        first = ti.get_first_reschedule_date(context)
    else:  # Airflow 2.11, which starts the attempt at its first poke
        first = getattr(ti, "start_date", None)
    return first.timestamp() if first else None


def _renderable_in_triggerer(value: Any) -> Any:
    """Return an id, or a list of them, in a form that the triggerer can render; None if there is none.

    The triggerer renders Jinja, but resolves no `XComArg`, and a pull without `map_indexes` never returns there.
    """
    if isinstance(value, str):
        return value if _is_known_in_triggerer(value) else None
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


def _is_known_in_triggerer(template: str) -> bool:
    """Return whether a template uses only what the triggerer has: no macros and filters of a DAG, no asset events."""
    from jinja2 import Environment, TemplateSyntaxError, meta, nodes

    try:
        tree = Environment(autoescape=True).parse(template)
        names = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError:  # an unknown filter, too
        return False
    if not names <= _NAMES | _TASK_INSTANCE:
        return False
    pulls = [
        call.node
        for call in tree.find_all(nodes.Call)
        # Without map_indexes a pull never returns there.
        if isinstance(call.node, nodes.Getattr) and any(given.key == "map_indexes" for given in call.kwargs)
    ]
    known = [
        use.node
        for use in tree.find_all(nodes.Getattr)
        if use.attr in _ATTRIBUTES or (use.attr == "xcom_pull" and any(use is pull for pull in pulls))
    ]
    uses = [name for name in tree.find_all(nodes.Name) if name.name in _TASK_INSTANCE]
    return all(any(use is each for each in known) for use in uses)
