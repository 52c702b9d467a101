# SPDX-License-Identifier: Apache-2.0
"""How a batch goes on: submit while there is room, mirror what is completed, wait for some more, and again."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.batch.ledger import Entry, Ledger, Standing
from airflow_provider_gptimg.batch.pace import Pace
from airflow_provider_gptimg.batch.report import Report
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
)
from airflow_provider_gptimg.hooks.poller import Poller
from airflow_provider_gptimg.mirroring.images import FORMATS
from airflow_provider_gptimg.mirroring.listing import find_missing
from airflow_provider_gptimg.polling import Wait, may_have_ended
from airflow_provider_gptimg.telemetry import count, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.batch.requests import BatchRequest
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook, PreparedSubmit
    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.mirror import Mirror
    from airflow_provider_gptimg.mirroring.store import S3Store

__all__ = ["CHUNK", "Batch", "Limits"]

CHUNK = 8
"""Requests whose submits are under way at a time, so that a kill leaves no more than these unknown."""

_MIRRORED_AT_ONCE = 64
"""Image tasks that are mirrored before that is written down."""
_LOOK_AGAIN = 120.0
"""Seconds after which a wait for all looks at what there is: one image task that hangs must not keep the others."""


@dataclass(frozen=True)
class Limits:
    """What an operator's arguments say of a batch.

    :param max_in_flight: Image tasks under way at a time.
    :param on_unknown: `fail` or `resubmit`, for requests that do not say so themselves.
    :param timeout: Seconds from an image task's submission to its completion.
    :param aws_conn_id: AWS connection that presigns `s3://` references.
    """

    max_in_flight: int
    on_unknown: str
    timeout: float
    aws_conn_id: str | None
    poll_interval: float | None = None
    first_poll_after: float | None = None


class Batch:
    """What one worker does of a batch. All that it knows comes from the ledger, so it can end at any moment.

    :param mirror: Where images go.
    :param pattern: Its keys: what was mirrored under others is mirrored again.
    """

    def __init__(
        self,
        hook: GptImgHook,
        ledger: Ledger,
        requests: Sequence[BatchRequest],
        limits: Limits,
        pace: Pace,
        mirror: Mirror,
        pattern: KeyPattern,
        log: Any,
    ) -> None:
        self.entries = ledger.enter(requests)
        self.pace = pace
        self._hook = hook
        self._ledger = ledger
        self._limits = limits
        self._mirror = mirror
        self._pattern = pattern
        self._log = log
        self._poller = Poller(hook)
        self._wait = Wait(hook.settings.schedule(limits.poll_interval, limits.first_poll_after))
        self._pending: deque[Entry] = deque()
        self._in_flight: dict[str, Entry] = {}
        self._completed: list[tuple[Entry, ImageTask]] = []
        for entry in self.entries:
            standing = self.standing(entry)
            if standing is Standing.PENDING:
                self._pending.append(entry)
            elif standing is Standing.IN_FLIGHT or (standing is Standing.MIRRORED and not _is_at(entry, pattern)):
                self._in_flight[entry.task_id] = entry

    def standing(self, entry: Entry) -> Standing:
        """Return how a request stands in this attempt."""
        return self._ledger.standing(entry, self._on_unknown(entry))

    def introduce(self) -> None:
        """Log and count, once an attempt, what there is to do and what earlier attempts have left."""
        self._log.info(
            "Batch of %d requests, which cost %d credits in all: %d have been submitted by earlier attempts",
            len(self.entries),
            sum(entry.request.credits for entry in self.entries),
            len(self.entries) - len(self._pending),
        )
        if unknown := sum(self.standing(entry) is Standing.UNKNOWN for entry in self.entries):
            count("submissions", unknown, outcome="unknown")
        if not self._ledger.lasts:
            self._log.warning(
                "This Airflow keeps no state for tasks (3.3 and newer do): the batch holds this worker to its end, and "
                "if the attempt dies, the next one submits and pays again"
            )
        if strays := self._undelivered_strays:
            self._log.warning(
                "%d image tasks of earlier attempts are paid for and not asked for any more: %s",
                len(strays),
                ", ".join(strays),
            )

    def recover(self, store: S3Store) -> None:
        """Take up, once an attempt, what earlier ones mirrored and S3 has no more: it is paid for."""
        mirrored = [entry for entry in self.entries if self.standing(entry) is Standing.MIRRORED]
        here = [entry for entry in mirrored if entry.task_id not in self._in_flight]
        sizes = {entry: {fact["key"]: fact["size"] for fact in (entry.mirrored or {})["objects"]} for entry in here}
        gone = find_missing(store, self._pattern.bucket, sizes)
        for entry in gone:
            entry.mirrored = None
            self._in_flight[entry.task_id] = entry
        self._ledger.write(gone)
        if gone:
            self._log.warning(
                "Images of %d requests were mirrored and are gone from S3, the first those of %s: mirroring them again",
                len(gone),
                gone[0].name,
            )

    def look(self) -> None:
        """Ask once for what was submitted before and may be finished by now.

        :raises GptImgAuthError: The key was rejected.
        """
        now, first_poll_after = time.time(), self._wait.schedule.first_poll_after
        ripe = []
        for task_id, entry in self._in_flight.items():
            self._wait.submissions[task_id] = _submitted_at(entry)
            first = _submitted_at(entry) + first_poll_after
            if first <= now:
                ripe.append(task_id)
            else:
                self._wait.add([task_id], first)
        self._poller.poll(self._wait, ripe)
        self._take()

    def work(self) -> bool:
        """Submit and mirror all that can be now, and return whether there is something to wait for.

        :raises GptImgError: No submit and no wait can go well, e.g. since the key was rejected.
        """
        self._expire()
        self._submit()
        self._mirror_completed()
        if self._may_submit and not self._in_flight and not self.pace.is_short:
            self._stop()  # there is nothing else to do meanwhile
        self._log.info(
            "Batch of %d: %d under way, %d to be submitted, %d mirrored",
            len(self.entries),
            len(self._in_flight),
            len(self._pending),
            sum(entry.mirrored is not None for entry in self.entries),
        )
        return bool(self._in_flight) or self._may_submit

    @property
    def digest(self) -> str:
        """What is the same for the same requests, in any order."""
        return hashlib.sha256("".join(sorted(entry.fingerprint for entry in self.entries)).encode()).hexdigest()

    def stop_if_changed(self, digest: str | None) -> None:
        """Submit nothing more in this attempt unless its first leg had these requests: none of others was agreed to.

        :param digest: As the leg before had it; None: that is not known.
        """
        if digest is None or digest == self.digest:
            return
        strays = self._undelivered_strays
        dropped = f" Paid for and not asked for any more: {', '.join(strays)}." if strays else ""
        self._stop(
            GptImgRequestError(
                "requests changed while the task was deferred, when it was rendered or read anew, and what is new in "
                f"it was not agreed to.{dropped} Let a task upstream make the list, or use @task.gptimg_batch, which "
                "keeps it"
            )
        )

    @property
    def can_defer(self) -> bool:
        """Whether another process can go on, and there is time enough to start one."""
        return self._ledger.lasts and bool(self._in_flight) and not (self._is_paused and self.pace.is_short)

    def hold(self) -> None:
        """Wait on this worker until some image tasks are final, one is out of time, or a pause is over.

        :raises GptImgAuthError: The key was rejected.
        """
        until = self._until()
        if self._in_flight:
            # A few at a time when many are under way, since each round writes all pages that it touches.
            self._poller.hold(self._wait, until=until, enough=max(1, len(self._in_flight) // 8))
            self._take()
        else:
            time.sleep(self.pace.pause)

    def trigger_arguments(self) -> dict[str, Any]:
        """Return what tells :class:`GptImgTaskTrigger` to wait for the same in the triggerer."""
        planned = self._wait.planned
        # While requests are left, half of those under way make room for as many; then it waits for the rest.
        wake_after = max(1, len(planned) // 2) if self._may_submit else None
        return {
            "gptimg_task_id": list(planned),
            "gptimg_conn_id": self._hook.gptimg_conn_id,
            "poll_interval": self._limits.poll_interval,
            "first_poll_after": self._limits.first_poll_after,
            "deadline": min(filter(None, (self._until(), max(planned.values()) + _LOOK_AGAIN))),
            "first_poll_at": list(planned.values()),
            "wake_after": wake_after,
        }

    def report(self) -> Report:
        """Return how each request ended."""
        pending = set(self._pending)
        ended: dict[Standing, list[Entry]] = {standing: [] for standing in Standing}
        for entry in self.entries:
            ended[Standing.PENDING if entry in pending else self.standing(entry)].append(entry)
        strays = [stray for stray in self._ledger.strays if self.standing(stray) is Standing.UNKNOWN]
        unknown = ended[Standing.UNKNOWN] + strays
        return Report(
            mirrored=ended[Standing.MIRRORED],
            failed=ended[Standing.FAILED],
            unknown=unknown,
            not_submitted=ended[Standing.PENDING],
            strays=[stray for stray in self._ledger.strays if stray.task_id],
            stopped=self.pace.stopped_by,
            on_unknown="resubmit" if "resubmit" in map(self._on_unknown, unknown) else "fail",
            try_number=self._ledger.try_number,
        )

    def _on_unknown(self, entry: Entry) -> str:
        return (entry.asked and entry.asked.on_unknown) or self._limits.on_unknown

    @property
    def _undelivered_strays(self) -> list[str]:
        """The ids of image tasks that are paid for, not mirrored, and not asked for any more."""
        return [stray.task_id for stray in self._ledger.strays if stray.task_id and not stray.mirrored]

    @property
    def _may_submit(self) -> bool:
        return bool(self._pending) and self.pace.stopped is None

    @property
    def _is_paused(self) -> bool:
        """Whether there are requests and room for them, and only the API's wish for a pause keeps them back."""
        return self._may_submit and self._room > 0

    @property
    def _lost(self) -> int:
        """Submits of this attempt of which nobody knows the outcome."""
        return sum(
            entry.submission is not None and not entry.task_id and entry.submitted_by == self._ledger.try_number
            for entry in self.entries
        )

    @property
    def _room(self) -> int:
        return max(0, self._limits.max_in_flight - len(self._in_flight))

    def _until(self) -> float | None:
        """Return when something has to be done even if no image task is final, in Unix seconds."""
        moments = [self._deadline(entry) for entry in self._in_flight.values()]
        if self._is_paused:
            moments.append(self.pace.not_before)
        return min(moments, default=None)

    def _deadline(self, entry: Entry) -> float:
        """Return when an image task is out of time. If that was before this attempt, it gets all of it anew."""
        deadline = _submitted_at(entry) + self._limits.timeout
        return deadline if deadline > self.pace.started_at else self.pace.started_at + self._limits.timeout

    def _expire(self) -> None:
        """Ask once more for what is out of time, and wait no longer for it."""
        now = time.time()
        expired = [task_id for task_id, entry in self._in_flight.items() if self._deadline(entry) <= now]
        if not expired:
            return
        self._wait.forget(expired)
        self._poller.poll(self._wait, expired)
        self._take()
        late = [self._in_flight.pop(task_id) for task_id in expired if task_id in self._in_flight]
        self._wait.forget(entry.task_id for entry in late)
        for entry in late:
            self._fail(entry, self._wait.outcome(entry.task_id))
        self._ledger.write(late)

    def _take(self) -> None:
        """Take in what polls have brought."""
        failed = []
        for task_id in list(self._wait.outcomes):
            outcome = self._wait.outcome(task_id)
            del self._wait.outcomes[task_id]
            entry = self._in_flight.pop(task_id, None)
            if entry is None:
                continue
            if isinstance(outcome, ImageTask):
                self._completed.append((entry, outcome))
            elif isinstance(outcome, GptImgTaskFailedError) and entry.submitted_by < self._ledger.try_number:
                self._log.info("%s: %s: submitting anew", entry.name, outcome)
                self._pending.append(entry)
            else:
                self._fail(entry, outcome)
                failed.append(entry)
        self._ledger.write(failed)

    def _fail(self, entry: Entry, error: Any) -> None:
        if isinstance(error, GptImgTaskNotFoundError) or may_have_ended(getattr(error, "last_status", None)):
            error.add_hint(f"Its record is in {entry.place!r} of the task instance's state, in the UI under Storage")
        self._log.warning("%s: %s", entry.name, error)
        self._ledger.fail(entry, error)

    def _submit(self) -> None:
        """Submit while there is room, until the API wants a pause or refuses to go on."""
        while self._may_submit and self._room and time.time() >= self.pace.not_before:
            size = min(CHUNK, self._room, len(self._pending))
            self._submit_chunk([self._pending.popleft() for _ in range(size)])

    def _submit_chunk(self, chunk: list[Entry]) -> None:
        prepared: dict[Entry, PreparedSubmit] = {}
        for entry in chunk:
            try:
                prepared[entry] = self._hook.prepare_submit(entry.request, self._limits.aws_conn_id)
            except GptImgError as error:
                self._fail(entry, error)
        before = {entry: (entry.submission, entry.submitted_by, entry.mirrored) for entry in prepared}
        for entry in prepared:
            self._ledger.intend(entry)
        self._ledger.write(chunk)
        outcomes: dict[Entry, ImageTask | GptImgError] = {}

        def send(entry: Entry) -> None:
            try:
                outcomes[entry] = self._hook.submit_prepared(prepared[entry], max_attempts=1)
            except GptImgError as error:
                outcomes[entry] = error

        try:
            with span("submit", requests=len(prepared)), ThreadPoolExecutor(CHUNK) as pool:
                list(pool.map(send, prepared))
        finally:
            # Also when Airflow ends the task just now: what is known is worth writing down.
            for entry, outcome in outcomes.items():
                if isinstance(outcome, ImageTask):
                    self._accept(entry, outcome)
                elif not isinstance(outcome, GptImgSubmissionUnknownError):
                    entry.submission, entry.submitted_by, entry.mirrored = before[entry]
            self._settle({entry: outcomes[entry] for entry in chunk if entry in outcomes})
            self._ledger.write(chunk)

    def _accept(self, entry: Entry, task: ImageTask) -> None:
        credits = entry.request.credits
        # Logged first: if the record cannot be written, this line tells a person what was paid for.
        self._log.info("%s: submitted image task %s: %d credits", entry.name, task.task_id, credits)
        self._ledger.accept(entry, task.task_id)
        self._in_flight[task.task_id] = entry
        self._wait.submissions[task.task_id] = _submitted_at(entry)
        self._wait.add([task.task_id], _submitted_at(entry) + self._wait.schedule.next_poll_in(0.0))
        count("submissions", outcome="accepted")
        count("credits", credits, outcome="charged")

    def _settle(self, outcomes: Mapping[Entry, ImageTask | GptImgError]) -> None:
        """Decide for each submit that was not accepted what becomes of it, and how to go on."""
        later: list[GptImgError] = []
        unknown: list[GptImgError] = []
        for entry, outcome in reversed(list(outcomes.items())):
            if isinstance(outcome, ImageTask):
                continue
            if isinstance(outcome, GptImgSubmissionUnknownError):
                count("submissions", outcome="unknown")
                self._log.error("%s: %s", entry.name, outcome)
                unknown.append(outcome)
                continue
            count("submissions", outcome="refused")
            if isinstance(outcome, (GptImgInsufficientCreditsError, GptImgAuthError)):
                self._stop(outcome)
                self._pending.appendleft(entry)
            elif isinstance(outcome, (GptImgRateLimitError, GptImgServerError)):
                later.append(outcome)
                self._retry_later(entry, outcome)
            else:
                self._fail(entry, outcome)
        self.pace.slow_down(later, accepted=any(isinstance(outcome, ImageTask) for outcome in outcomes.values()))
        if later:
            self._log.info("%s. The next submit is in %.0f s", later[0], self.pace.pause)
        if unknown and self._lost >= CHUNK:
            # Something between here and the API swallows answers: each further submit would be a gamble.
            self._stop(unknown[0])

    def _retry_later(self, entry: Entry, error: GptImgError) -> None:
        if isinstance(error, GptImgRateLimitError):
            self._pending.appendleft(entry)
            return
        if self._ledger.refuse(entry) >= MAX_ATTEMPTS:
            self._fail(entry, error)
        else:
            self._pending.append(entry)

    def _stop(self, error: GptImgError | None = None) -> None:
        if self.pace.stopped is None:
            self._log.error("No more submits in this attempt: %s", self.pace.stop(error))

    def _mirror_completed(self) -> None:
        """Mirror what is completed; page by page, since a page is written as a whole."""
        self._completed.sort(key=lambda done: done[0].page)
        while self._completed:
            group = self._completed[:_MIRRORED_AT_ONCE]
            copied = self._mirror.copy(task for _, task in group)
            for entry, task in group:
                result = copied[task.task_id]
                if isinstance(result, GptImgError):
                    self._fail(entry, result)
                else:
                    self._ledger.mirror(entry, task, result)
            self._ledger.write(entry for entry, _ in group)
            del self._completed[: len(group)]


def _is_at(entry: Entry, pattern: KeyPattern) -> bool:
    """Return whether a request's objects are where `pattern` puts them."""
    extensions = {known.content_type: known.extension for known in FORMATS}
    return entry.mirrored is not None and all(
        fact["bucket"] == pattern.bucket
        and fact["key"] == pattern.key(entry.task_id, index, extensions.get(fact["content_type"], ""))
        for index, fact in enumerate(entry.mirrored["objects"])
    )


def _submitted_at(entry: Entry) -> float:
    return entry.submission.submitted_at if entry.submission else 0.0
