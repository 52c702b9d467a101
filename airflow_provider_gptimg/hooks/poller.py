# SPDX-License-Identifier: Apache-2.0
"""Polls on a worker: a few at a time, each when the wait plans it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from airflow_provider_gptimg.api.calls import poll_call
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgError
from airflow_provider_gptimg.hooks.http import sync_client
from airflow_provider_gptimg.polling import Wait
from airflow_provider_gptimg.telemetry import count_poll, span

if TYPE_CHECKING:
    import httpx

    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["Poller"]

_AT_ONCE = 8
"""Polls that one worker has under way at a time."""


class Poller:
    """Poll the tasks of a :class:`.Wait` on this worker, and record there what each poll brought."""

    def __init__(self, hook: GptImgHook) -> None:
        self._hook = hook

    def start(self, wait: Wait, task_ids: Sequence[str], timeout: float, since: float | None = None) -> None:
        """Poll each task once, and set the wait's deadline, unless it has one, `timeout` seconds after submission.

        A task that may be too new to be known is polled until that is certain.

        :param since: When this attempt began, in Unix seconds; None: now.
        :raises GptImgAuthError: The key was rejected.
        """
        since = time.time() if since is None else since
        self.poll(wait, list(dict.fromkeys(task_ids)))
        if wait.deadline is None:
            wait.count_from_submission(timeout, since)
        if wait.is_unsure:
            # Here, since no other process knows since when the API has not known the task.
            self.hold(wait, until=wait.deadline, while_unsure=True)

    def finish(self, wait: Wait) -> None:
        """Poll until all tasks are final or the deadline has passed; then poll those that are left once more.

        :raises GptImgAuthError: The key was rejected.
        """
        self.hold(wait, until=wait.deadline)
        self.poll(wait, wait.pop_all())

    def hold(self, wait: Wait, *, until: float | None, enough: int | None = None, while_unsure: bool = False) -> None:
        """Poll each waiting task when it is due, until all are final, or `enough` are, or time is up.

        :param until: Unix seconds; None: no limit.
        :param while_unsure: Return as soon as each task is known, or known not to exist.
        :raises GptImgAuthError: The key was rejected.
        """
        with span("wait", tasks=len(wait.waiting)), sync_client(self._hook.settings) as client:
            while (due := wait.next_at) is not None and (enough is None or len(wait.outcomes) < enough):
                now = time.time()
                if (until is not None and now >= until) or (while_unsure and not wait.is_unsure):
                    return
                if due > now:
                    time.sleep((due if until is None else min(due, until)) - now)
                else:
                    due_now = [task_id for _ in range(_AT_ONCE) if (task_id := wait.pop_due(now)) is not None]
                    self._poll_each(client, wait, due_now, waited=True)

    def poll(self, wait: Wait, task_ids: Sequence[str]) -> None:
        """Poll each of these tasks once, now.

        :raises GptImgAuthError: The key was rejected.
        """
        if task_ids:
            with sync_client(self._hook.settings) as client:
                self._poll_each(client, wait, task_ids, waited=False)

    def _poll_each(self, client: httpx.Client, wait: Wait, task_ids: Sequence[str], waited: bool) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            outcomes = pool.map(lambda task_id: self._poll(client, task_id), task_ids)
            rejection: GptImgAuthError | None = None
            for task_id, outcome in zip(task_ids, outcomes, strict=True):
                count_poll(outcome, waited=waited)
                try:
                    wait.record(task_id, outcome, time.time())
                except GptImgAuthError as error:
                    rejection = rejection or error
        if rejection:
            raise rejection

    def _poll(self, client: httpx.Client, task_id: str) -> ImageTask | GptImgError:
        try:
            return self._hook._converse(poll_call(task_id), client=client, max_attempts=1)
        except GptImgError as error:
            return error
