# SPDX-License-Identifier: Apache-2.0
"""Send a few requests at a time: intend, look, POST, and write down the outcomes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgError, GptImgServerError, GptImgSubmissionUnknownError
from airflow_provider_gptimg.telemetry import count, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.batch.entries import Entry
    from airflow_provider_gptimg.batch.ledger import Ledger
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook, PreparedSubmit
    from airflow_provider_gptimg.journal.attempt import Attempt

__all__ = ["CHUNK", "Sender"]

CHUNK = 8
"""Submits that are under way at a time. A kill leaves at most these with an unknown outcome."""

Outcome = ImageTask | GptImgError


class Sender:
    """Submits requests by the journal's rules.

    :param attempt: Says whether anything may be sent still.
    :param aws_conn_id: AWS connection that presigns `s3://` references.
    """

    def __init__(self, hook: GptImgHook, attempt: Attempt, ledger: Ledger, aws_conn_id: str | None, log: Any) -> None:
        self.sending: int = 0
        """Submits that are under way right now."""
        self._hook = hook
        self._attempt = attempt
        self._ledger = ledger
        self._aws_conn_id = aws_conn_id
        self._log = log
        self._looking = Lock()

    def send(self, entries: Sequence[Entry]) -> dict[Entry, Outcome]:
        """Submit requests, all at a time; return the image task of each, or the error that it met.

        :raises NotSentError: The task was stopped, or a later attempt has begun.
        :raises GptImgError: The journal cannot be read or written.
        """
        prepared: dict[Entry, PreparedSubmit] = {}
        outcomes: dict[Entry, Outcome] = {}
        for entry in entries:
            try:
                prepared[entry] = self._hook._prepare_submit(entry.request, self._aws_conn_id)
            except GptImgError as error:
                outcomes[entry] = error
        sent: set[Entry] = set()

        def send(entry: Entry) -> None:
            def before_send() -> None:
                with self._looking:
                    self._attempt.look_again()
                sent.add(entry)

            try:
                outcomes[entry] = self._hook._submit_prepared(prepared[entry], max_attempts=1, before_send=before_send)
            except GptImgError as error:
                outcomes[entry] = error

        began = time.time()
        numbers = self._ledger.intend(prepared)
        self.sending = len(prepared)
        try:
            self._attempt.look(since=began, ask_airflow=True)
            with span("submit", requests=len(prepared)), ThreadPoolExecutor(CHUNK) as pool:
                list(pool.map(send, prepared))
        finally:
            # Also when Airflow ends the task just now: what is known is worth writing down.
            self.sending = 0
            for entry, number in numbers.items():
                self._note(entry, number, outcomes.get(entry), was_sent=entry in sent)
            self._ledger.write()
        for entry in prepared.keys() - sent:
            if isinstance(refusal := outcomes.get(entry), GptImgError):
                raise refusal
        return outcomes

    def _note(self, entry: Entry, number: int, outcome: Outcome | None, *, was_sent: bool) -> None:
        if isinstance(outcome, ImageTask):
            credits = entry.request.credits
            # Logged first: if the journal cannot be written, this line tells a person what was paid for.
            self._log.info("Submitted image task %s for %s: %d credits", outcome.task_id, entry.name, credits)
            self._ledger.accept(number, outcome.task_id)
            count("submissions", outcome="accepted")
            count("credits", credits, outcome="charged")
        elif not was_sent:
            self._ledger.refuse(number, "not sent")
        elif outcome is None or isinstance(outcome, GptImgSubmissionUnknownError):
            count("submissions", outcome="unknown")
        else:
            api_failed = isinstance(outcome, GptImgServerError)
            self._ledger.refuse(number, outcome.code or type(outcome).__name__, api_failed=api_failed)
            count("submissions", outcome="refused")
