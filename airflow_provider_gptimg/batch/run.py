# SPDX-License-Identifier: Apache-2.0
"""Work on a batch: submit while there is room, mirror what is completed, wait for some more, and repeat."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.batch.completed import Completed
from airflow_provider_gptimg.batch.entries import Entry, Standing
from airflow_provider_gptimg.batch.in_flight import InFlight, Limits
from airflow_provider_gptimg.batch.ledger import Ledger
from airflow_provider_gptimg.batch.pace import Pace
from airflow_provider_gptimg.batch.report import Report, standing_of, warn_of_unknown
from airflow_provider_gptimg.batch.reuse import Purchaser
from airflow_provider_gptimg.batch.sending import CHUNK, Sender
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.journal.reuse import PAUSE
from airflow_provider_gptimg.telemetry import count

if TYPE_CHECKING:
    from airflow_provider_gptimg.batch.requests import BatchRequest
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.journal.attempt import Attempt
    from airflow_provider_gptimg.journal.reuse import Reuse
    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.mirror import Mirror
    from airflow_provider_gptimg.mirroring.store import S3Store

__all__ = ["Batch"]


class Batch:
    """One worker's part of a batch. It reads all that it knows from the ledger, so it can end at any moment.

    :param attempt: Says whether anything may be sent still.
    :param mirror: Where images go.
    :param pattern: Its keys: what was mirrored under others is mirrored again.
    :param reuse: Whether what other tasks have paid for will do.
    """

    def __init__(
        self,
        hook: GptImgHook,
        attempt: Attempt,
        ledger: Ledger,
        requests: Sequence[BatchRequest],
        limits: Limits,
        pace: Pace,
        mirror: Mirror,
        pattern: KeyPattern,
        log: Any,
        reuse: Reuse,
    ) -> None:
        self.entries: list[Entry] = ledger.enter(requests)
        self.pace = pace
        self._attempt = attempt
        self._ledger = ledger
        self._limits = limits
        self._log = log
        self._sender = Sender(hook, attempt, ledger, limits.aws_conn_id, log)
        self._purchaser = Purchaser(hook, attempt, ledger, mirror, reuse, log)
        self._pending: deque[Entry] = deque()
        self._in_flight = InFlight(hook, limits, pace.started_at)
        self._completed = Completed(ledger, mirror, pattern, self._fail, log)
        for entry in self.entries:
            standing = self.standing(entry)
            if standing is Standing.PENDING:
                self._pending.append(entry)
            elif standing is Standing.IN_FLIGHT or (standing is Standing.MIRRORED and self._completed.is_stale(entry)):
                self._in_flight[entry.task_id] = entry

    def standing(self, entry: Entry) -> Standing:
        """Return what this attempt has to do for a request."""
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
                "Nothing outlasts this attempt of what it submits (no journal, see [gptimg] journal): the batch holds "
                "this worker to its end, and if the attempt dies, the next one submits and pays again"
            )
        warn_of_unknown(self.entries, self._log)
        if strays := self._undelivered_strays:
            told = "%d image tasks of earlier attempts are paid for and not asked for any more: %s"
            self._log.warning(told, len(strays), ", ".join(strays))

    def recover(self, store: S3Store) -> None:
        """Once an attempt: mirror again what earlier attempts mirrored and S3 no longer has. It is paid for."""
        mirrored = [entry for entry in self.entries if self.standing(entry) is Standing.MIRRORED]
        here = [entry for entry in mirrored if entry.task_id not in self._in_flight]
        self._in_flight.update((entry.task_id, entry) for entry in self._completed.lose_missing(store, here))

    def look(self) -> None:
        """Ask once for what was submitted before and may be finished by now.

        :raises GptImgAuthError: The key was rejected.
        """
        self._take(self._in_flight.look())

    def work(self) -> bool:
        """Submit and mirror all that can be now, and return whether there is something to wait for.

        :raises NotSentError: The task was stopped, or a later attempt has begun.
        :raises GptImgError: No submit and no wait can go well, e.g. since the key was rejected.
        """
        self._attempt.pause(0.0)  # is it stopped?
        if self._limits.ends_at is not None and time.time() >= self._limits.ends_at:
            self._stop(GptImgTimeoutError("The task's execution_timeout is over"))
        self._take(self._in_flight.expire())
        if not self._has_mirrored:
            self._mirror_completed()  # before more is bought, find out whether S3 takes it
        self._submit()
        self._mirror_completed()
        if self._may_submit and not self._in_flight and not self.pace.is_short:
            self._stop()  # there is nothing else to do meanwhile
        self._ledger.write()
        self._log.info(
            "Batch of %d: %d under way, %d to be submitted, %d mirrored",
            len(self.entries),
            len(self._in_flight),
            len(self._pending),
            sum(entry.objects is not None for entry in self.entries),
        )
        return bool(self._in_flight) or self._may_submit

    @property
    def digest(self) -> str:
        """A hash of the requests, the same in any order."""
        return hashlib.sha256("".join(sorted(entry.fingerprint for entry in self.entries)).encode()).hexdigest()

    def stop_if_changed(self, digest: str | None) -> None:
        """Submit nothing more in this attempt if its requests differ from its first leg's: nobody agreed to new ones.

        :param digest: As the leg before had it; None: that is not known.
        """
        if digest is None or digest == self.digest:
            return
        strays = self._undelivered_strays
        dropped = f" Paid for and not asked for any more: {', '.join(strays)}." if strays else ""
        self._stop(
            GptImgRequestError(
                "requests changed while the task was deferred, when it was rendered or read again, and what is new in "
                f"it was not agreed to.{dropped} Let a task upstream make the list, or use @task.gptimg_batch, which "
                "keeps it"
            )
        )

    @property
    def can_defer(self) -> bool:
        """True if another process can go on, and there is time enough to start one."""
        return self._ledger.lasts and bool(self._in_flight) and not (self._is_paused and self.pace.is_short)

    def hold(self) -> None:
        """Wait on this worker until some image tasks are final, one is out of time, or a pause is over.

        :raises GptImgAuthError: The key was rejected.
        """
        if self._in_flight:
            self._take(self._in_flight.hold(self._until()))
        else:
            self._attempt.pause(self.pace.pause)

    def told(self) -> str:
        """Return what was sent and what is paid for, for the log of a stopped task."""
        return standing_of(self.entries, self._sender.sending)

    def trigger_arguments(self) -> dict[str, Any]:
        """Return the arguments of the trigger that waits for the same tasks."""
        return self._in_flight.trigger_arguments(self._until(), is_room_wanted=self._may_submit)

    def report(self) -> Report:
        """Return how each request ended."""
        pending = set(self._pending)
        ended: dict[Standing, list[Entry]] = {standing: [] for standing in Standing}
        for entry in self.entries:
            ended[Standing.PENDING if entry in pending else self.standing(entry)].append(entry)
        if not_submitted := ended[Standing.PENDING]:
            reason = self.pace.stopped_by or GptImgError("the batch did not finish")
            self._ledger.fail(not_submitted, GptImgError(f"Not submitted: {reason}"))
            self._ledger.write()
        unknown = ended[Standing.UNKNOWN]
        unknown += (stray for stray in self._ledger.strays if self.standing(stray) is Standing.UNKNOWN)
        return Report(
            mirrored=ended[Standing.MIRRORED],
            failed=ended[Standing.FAILED],
            unknown=unknown,
            not_submitted=not_submitted,
            stopped=self.pace.stopped_by,
            on_unknown="resubmit" if "resubmit" in map(self._on_unknown, unknown) else "fail",
            try_number=self._ledger.try_number,
            charged=self._ledger.charged,
            way_to_drop=self._attempt.store.way_to_drop,
        )

    def _on_unknown(self, entry: Entry) -> str:
        return (entry.asked and entry.asked.on_unknown) or self._limits.on_unknown

    @property
    def _undelivered_strays(self) -> list[str]:
        """The ids of image tasks that are paid for, not mirrored, and not asked for any more."""
        return [stray.task_id for stray in self._ledger.strays if stray.task_id and not stray.objects]

    @property
    def _may_submit(self) -> bool:
        return bool(self._pending) and self.pace.stopped is None

    @property
    def _is_paused(self) -> bool:
        """True if there are requests and room for them, and only the API's wish for a pause keeps them back."""
        return self._may_submit and self._room > 0

    @property
    def _room(self) -> int:
        return max(0, self._limits.max_in_flight - len(self._in_flight))

    def _until(self) -> float | None:
        """Return when something has to be done even if no image task is final, in Unix seconds."""
        moments = (self._in_flight.next_deadline, self.pace.not_before if self._is_paused else None)
        return min((moment for moment in moments if moment is not None), default=None)

    def _take(self, ended: Iterable[tuple[Entry, Any]]) -> None:
        """Take in what polls have brought."""
        for entry, outcome in list(ended):
            if isinstance(outcome, ImageTask):
                self._completed.add(entry, outcome)
                if len(outcome.images) < entry.request.n:
                    self._log.warning(
                        "%s: the API made %d of the %d images that were paid for",
                        entry.name,
                        len(outcome.images),
                        entry.request.n,
                    )
            elif isinstance(outcome, GptImgTaskFailedError) and entry.may_be_sent_again(
                outcome, self._ledger.try_number
            ):
                self._log.info("%s: %s", entry.name, outcome)
                self._ledger.refund(entry)
                self._sort(entry)
            else:
                self._fail(entry, outcome)

    def _sort(self, entry: Entry) -> None:
        """Plan what is to be done next about a request whose image task was refunded."""
        standing = self.standing(entry)
        if standing is Standing.PENDING:
            self._pending.append(entry)
        elif standing is Standing.IN_FLIGHT:  # another of its image tasks is paid for
            self._in_flight.add(entry, time.time())

    def _fail(self, entry: Entry, error: Any) -> None:
        self._log.warning("%s: %s", entry.name, error)
        self._ledger.fail([entry], error)

    def _submit(self) -> None:
        """Submit while there is room, until the API wants a pause or refuses to go on."""
        while self._may_submit and self._room and time.time() >= self.pace.not_before:
            size = min(CHUNK, self._room, len(self._pending))
            self._submit_chunk([self._pending.popleft() for _ in range(size)])

    def _submit_chunk(self, chunk: list[Entry]) -> None:
        try:
            chunk = self._reuse(chunk)
            outcomes = self._sender.send(chunk) if chunk else {}
            self._purchaser.publish(outcomes)
        finally:
            self._purchaser.release()
        for entry, outcome in outcomes.items():
            if isinstance(outcome, ImageTask):
                self._in_flight.add(entry)
        self._settle(outcomes)

    def _reuse(self, chunk: list[Entry]) -> list[Entry]:
        """Return the requests of a chunk that are left to be paid for here and now."""
        left, busy = self._purchaser.reuse(chunk)
        for entry in chunk:
            if entry not in left and entry not in busy and entry.objects is None:
                self._in_flight.add(entry, time.time())
        self._pending.extend(busy)
        if len(busy) == len(chunk):
            self._log.info("Other tasks submit the same %d requests right now: waiting for them", len(busy))
            self._attempt.pause(PAUSE)
        return left

    def _settle(self, outcomes: Mapping[Entry, ImageTask | GptImgError]) -> None:
        """Decide for each submit that was not accepted what becomes of it, and how to go on."""
        later: list[GptImgError] = []
        unknown: list[GptImgError] = []
        for entry, outcome in reversed(list(outcomes.items())):
            if isinstance(outcome, ImageTask):
                continue
            if isinstance(outcome, GptImgSubmissionUnknownError):
                self._log.error("%s: %s", entry.name, outcome)
                unknown.append(outcome)
            elif isinstance(outcome, (GptImgInsufficientCreditsError, GptImgAuthError)):
                self._stop(outcome)
                self._pending.appendleft(entry)
            elif isinstance(outcome, GptImgRateLimitError):
                later.append(outcome)
                self._pending.appendleft(entry)
            elif isinstance(outcome, GptImgServerError) and entry.refusals < MAX_ATTEMPTS:
                later.append(outcome)
                self._pending.append(entry)
            else:
                later += [outcome] if isinstance(outcome, GptImgServerError) else []
                self._fail(entry, outcome)
        self.pace.slow_down(later, accepted=any(isinstance(outcome, ImageTask) for outcome in outcomes.values()))
        if later:
            self._log.info("%s. The next submit is in %.0f s", later[0], self.pace.pause)
        if unknown and self._ledger.lost >= CHUNK:
            # Something between here and the API swallows answers: each further submit would be a gamble.
            self._stop(unknown[0])

    def _stop(self, error: GptImgError | None = None) -> None:
        if self.pace.stopped is None:
            self._log.error("No more submits in this attempt: %s", self.pace.stop(error))

    def _mirror_completed(self) -> None:
        refusal = self._completed.mirror(self._has_mirrored)
        if refusal and self._may_submit:
            self._stop(refusal)  # S3 has taken nothing yet, and refuses what was bought: buy no more

    @property
    def _has_mirrored(self) -> bool:
        return any(entry.objects is not None for entry in self.entries)
