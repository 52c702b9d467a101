# SPDX-License-Identifier: Apache-2.0
"""The submission record: what lets a repeated task know that it has paid already.

The record is written before the POST (an intent) and completed after it (the task id). What an attempt does
with the record it finds is a table, :func:`decide`; :class:`Submission` is the little that acts on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import FAILED, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.polling import may_have_ended
from airflow_provider_gptimg.telemetry import count, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["RECORD_KEY", "Accepted", "Decision", "Submission", "SubmissionRecord", "decide", "once_succeeded"]

RECORD_KEY = "gptimg_submission"
_VERSION = 1

_WAYS_ON = (
    "To go on, look into the vendor's transaction log, and if the images were not charged, or may be paid for again: "
    "either set on_unknown_submission='resubmit' on the task or in the connection's extra and clear the task, or "
    f"delete the record {RECORD_KEY!r} of the task instance (in Airflow's UI under Storage, or by its REST API: "
    "…/taskInstances/TASK_ID/state-store) and clear the task"
)


@dataclass(frozen=True)
class SubmissionRecord:
    """What is known of the one submission that a task instance stands for.

    :param fingerprint: Of the request and the connection's id.
    :param credits: What it costs when accepted.
    :param submitted_at: Unix seconds, just before the POST.
    :param max_tries: The task instance's `max_tries` then. Airflow raises it when a person clears the task, and
        leaves it alone over automatic retries.
    :param task_id: None: the POST's outcome was not recorded (an intent).
    :param delivered_max_tries: `max_tries` when an attempt ended well with it; None: none has.
    """

    fingerprint: str
    credits: int
    submitted_at: float
    max_tries: int
    task_id: str | None = None
    delivered_max_tries: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any) -> SubmissionRecord:
        """Return the record that `value` holds.

        A record that cannot be read counts as an intent: something was submitted, and what came of it is unknown.
        """
        if not isinstance(value, Mapping):
            value = {}
        fingerprint, task_id = value.get("fingerprint"), value.get("task_id")
        delivered = value.get("delivered_max_tries")
        if not isinstance(fingerprint, str):
            fingerprint, task_id = "", None  # whether the request was changed cannot be told either
        return cls(
            fingerprint=fingerprint,
            credits=_number(value.get("credits")),
            submitted_at=float(_number(value.get("submitted_at"))),
            max_tries=int(_number(value.get("max_tries"))),
            task_id=task_id if isinstance(task_id, str) and task_id else None,
            delivered_max_tries=delivered if isinstance(delivered, int) else None,
        )


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and 0 <= value < 1e11 else 0


class Decision(Enum):
    """What an attempt does with the record it found, in the words of its log."""

    SUBMIT = "There is no earlier submission: submitting"
    SUBMIT_CHANGED = "The request was changed since the earlier submission: submitting anew, which costs credits again"
    SUBMIT_CLEARED = "The earlier images were delivered and the task was cleared since: submitting anew"
    SUBMIT_UNKNOWN = "The outcome of the earlier submission is unknown: submitting again, as on_unknown_submission says"
    TAKE_UP = "Taking up the image task of the earlier submission, which is paid for: no new submission"
    STOP = "The outcome of the earlier submission is unknown: a person has to decide"


def decide(record: SubmissionRecord | None, fingerprint: str, max_tries: int, on_unknown: str) -> Decision:
    """Return what an attempt does.

    :param fingerprint: Of the request as it is now.
    :param max_tries: The task instance's `max_tries` now.
    :param on_unknown: `fail` or `resubmit`.
    """
    if record is None:
        return Decision.SUBMIT
    if record.task_id is None:
        return Decision.SUBMIT_UNKNOWN if on_unknown == "resubmit" else Decision.STOP
    if record.fingerprint != fingerprint:
        return Decision.SUBMIT_CHANGED
    if record.delivered_max_tries is not None and max_tries > record.delivered_max_tries:
        return Decision.SUBMIT_CLEARED
    return Decision.TAKE_UP


@dataclass(frozen=True)
class Accepted:
    """An image task that is paid for.

    :param task: As the API described it last.
    :param submitted_at: Unix seconds.
    :param charged: Credits that this attempt spent: none for a task taken up again.
    """

    task: ImageTask
    submitted_at: float
    charged: int


class Submission:
    """One request of one task instance, submitted once however often the task is repeated.

    :param context: Airflow's task context.
    :param log: A logger.
    :param key: Where the record stands in the task instance's state store.
    """

    def __init__(self, context: Context, log: Any, key: str = RECORD_KEY) -> None:
        self._context = context
        self._store: Any = context.get("task_state_store")
        self._max_tries = int(getattr(context.get("ti"), "max_tries", 0) or 0)
        self._log = log
        self._key = key

    def obtain(self, hook: GptImgHook, request: ImageRequest, on_unknown: str, aws_conn_id: str | None) -> Accepted:
        """Return the image task of this request: the one that is paid for already, or else a new one.

        :param on_unknown: `fail` or `resubmit`: what to do if an earlier attempt's outcome is unknown.
        :param aws_conn_id: AWS connection that presigns `s3://` references.
        :raises GptImgSubmissionUnknownError: Credits may have been charged for a task that nobody knows.
        :raises GptImgError: As :meth:`GptImgHook.submit`.
        """
        fingerprint = request.fingerprint(hook.gptimg_conn_id)
        record = self._read()
        decision = decide(record, fingerprint, self._max_tries, on_unknown)
        if self._store is None:
            self._log.warning(
                "This Airflow keeps no state for tasks (3.3 and newer do): if this attempt dies, the next one submits "
                "and pays again"
            )
        if decision is Decision.STOP and record is not None:
            count("submissions", outcome="unknown")
            raise self._unknown(record)
        self._log.info(decision.value)
        if decision is Decision.TAKE_UP and record is not None:
            task = self._take_up(hook, record)
            if task.status != FAILED:
                return Accepted(task, record.submitted_at, charged=0)
            self._log.info("Image task %s failed (%s) and was refunded: submitting anew", task.task_id, task.error)
        elif record is not None and record.task_id is not None:
            self._log.info("The earlier image task is %s", record.task_id)
        return self._submit(hook, request, fingerprint, record, aws_conn_id, on_unknown)

    def deliver(self) -> None:
        """Have noted, once the task has succeeded, that from then on clearing it means "make new ones"."""

        def note() -> None:
            record = self._read()
            if record is not None:
                self._write(replace(record, delivered_max_tries=self._max_tries))

        if self._store is not None:
            once_succeeded(self._context, note)

    @contextmanager
    def known_task(self) -> Iterator[None]:
        """If the API no longer knows the task, or it may have ended, add to the error how to delete the record."""
        try:
            yield
        except (GptImgTaskNotFoundError, GptImgTimeoutError) as error:
            is_lost = isinstance(error, GptImgTaskNotFoundError) or may_have_ended(error.last_status)
            if is_lost and self._store is not None:
                error.add_hint(
                    "It was submitted by this task, with another user's key perhaps. To submit again, delete the "
                    f"record {self._key!r} of the task instance (in Airflow's UI under Storage, or by its REST API: "
                    "…/taskInstances/TASK_ID/state-store) and clear the task"
                )
            raise

    def _take_up(self, hook: GptImgHook, record: SubmissionRecord) -> ImageTask:
        assert record.task_id is not None  # noqa: S101 - as decided
        with self.known_task():
            return hook.get_task(record.task_id)

    def _submit(
        self,
        hook: GptImgHook,
        request: ImageRequest,
        fingerprint: str,
        previous: SubmissionRecord | None,
        aws_conn_id: str | None,
        on_unknown: str,
    ) -> Accepted:
        prepared = hook.prepare_submit(request, aws_conn_id)
        record = SubmissionRecord(fingerprint, request.credits, time.time(), self._max_tries)

        def pause(seconds: float) -> None:
            # Refused so far: who is killed now leaves no intent, which would look like an unknown outcome.
            nonlocal record
            self._write(previous)
            time.sleep(seconds)
            record = replace(record, submitted_at=time.time())
            self._write(record)

        self._write(record)
        try:
            with span("submit", credits=request.credits):
                task = hook.submit_prepared(prepared, pause=pause)
        except GptImgSubmissionUnknownError as error:
            count("submissions", outcome="unknown")
            way_on = "The next attempt submits again" if on_unknown == "resubmit" else _WAYS_ON
            error.add_hint(way_on)
            raise
        except GptImgError:
            # Certainly not accepted: things stand as before.
            count("submissions", outcome="refused")
            self._write(previous)
            raise
        # Logged first: if the next line fails, this one tells a person what was paid for.
        self._log.info("Submitted image task %s: %d credits", task.task_id, request.credits)
        self._write(replace(record, task_id=task.task_id))
        count("submissions", outcome="accepted")
        count("credits", request.credits, outcome="charged")
        return Accepted(task, record.submitted_at, charged=request.credits)

    def _unknown(self, record: SubmissionRecord) -> GptImgSubmissionUnknownError:
        when = datetime.fromtimestamp(record.submitted_at, UTC)
        return GptImgSubmissionUnknownError(
            f"An earlier attempt sent a submit at {when:%Y-%m-%d %H:%M:%S} UTC and ended before its outcome was "
            f"recorded: up to {record.credits} credits may have been charged, for images that nobody has an id of. "
            f"{_WAYS_ON}"
        )

    def _read(self) -> SubmissionRecord | None:
        if self._store is None:
            return None
        value = self._store.get(self._key)
        return None if value is None else SubmissionRecord.from_json(value)

    def _write(self, record: SubmissionRecord | None) -> None:
        if self._store is None:
            return
        if record is None:
            self._store.delete(self._key)
            return
        from airflow_provider_gptimg.airflow_compat import NEVER_EXPIRE

        # Kept as long as its DAG run: an expired record would let a retry pay again.
        self._store.set(self._key, record.to_json(), retention=NEVER_EXPIRE)


def once_succeeded(context: Context, note: Callable[[], None]) -> None:
    """Call `note` when Airflow has the task's result and its success; at once where `execute` is called by hand.

    An attempt that dies before that has delivered nothing, and clearing it must not pay again.
    """
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    ti = context.get("ti")
    if not isinstance(ti, RuntimeTaskInstance):
        note()
        return
    # First of all: the author's own callbacks may take their time.
    ti.task.on_success_callback = [lambda _context: note(), *ti.task.on_success_callback]
