# SPDX-License-Identifier: Apache-2.0
"""Reuse in a batch: look for each request into what tasks have bought for it, before it is submitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.tasks import COMPLETED, ImageTask
from airflow_provider_gptimg.batch.entries import Entry
from airflow_provider_gptimg.batch.sending import CHUNK
from airflow_provider_gptimg.journal.reuse import Bought, Found, Lease, Purchases, Reuse
from airflow_provider_gptimg.journal.submission import still_there

if TYPE_CHECKING:
    from airflow_provider_gptimg.batch.ledger import Ledger
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.journal.attempt import Attempt
    from airflow_provider_gptimg.mirroring.mirror import Mirror, MirroredObject

__all__ = ["Purchaser"]

There = tuple[ImageTask, "list[MirroredObject] | None"]


class Purchaser:
    """Finds what may be reused, takes leases for what has to be paid for, and publishes what was bought.

    :param wish: What the operator's arguments say.
    """

    def __init__(
        self, hook: GptImgHook, attempt: Attempt, ledger: Ledger, mirror: Mirror, wish: Reuse, log: Any
    ) -> None:
        self._hook = hook
        self._attempt = attempt
        self._ledger = ledger
        self._mirror = mirror
        self._wish = wish
        self._log = log
        self._known: dict[Entry, Purchases | None] = {}
        self._leases: list[Lease] = []

    def reuse(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Note what may be reused in the ledger; return the entries to submit, and those that others submit just now.

        :raises GptImgError: The journal, S3 or the API does not say.
        """
        if not self._wish.is_wanted:
            return list(entries), []
        with ThreadPoolExecutor(CHUNK, thread_name_prefix="gptimg-reuse") as pool:
            outcomes = dict(zip(entries, pool.map(self._find, entries), strict=True))
        leases = {entry: outcome for entry, outcome in outcomes.items() if isinstance(outcome, Lease)}
        for entry, outcome in outcomes.items():
            if isinstance(outcome, Found):
                task, objects = outcome.there
                self._log.info("%s: reusing image task %s, which costs nothing", entry.name, task.task_id)
                self._ledger.reuse(entry, outcome.bought)
                if objects is not None:
                    self._ledger.mirror(entry, task, objects)
        self._ledger.write()
        # To look for the others may have taken longer than a lease lasts.
        over = [entry for entry, lease in leases.items() if lease.is_over]
        busy = [entry for entry, outcome in outcomes.items() if outcome is None]
        return [entry for entry in leases if entry not in over], busy + over

    def publish(self, outcomes: Mapping[Entry, Any]) -> None:
        """Let others know of the image tasks among the outcomes of submits."""
        bought = [(entry, task) for entry, task in outcomes.items() if isinstance(task, ImageTask)]
        if bought and self._purchases(bought[0][0]) is not None:
            with ThreadPoolExecutor(CHUNK, thread_name_prefix="gptimg-reuse") as pool:
                list(pool.map(self._publish, *zip(*bought, strict=True)))

    def release(self) -> None:
        """Give back all leases."""
        for lease in self._leases:
            lease.release()
        self._leases.clear()

    def _purchases(self, entry: Entry) -> Purchases | None:
        if entry not in self._known:
            self._known[entry] = self._wish.purchases(self._attempt, entry.request, entry.occurrence)
        return self._known[entry]

    def _find(self, entry: Entry) -> Found[There] | Lease | None:
        purchases = self._purchases(entry)
        assert purchases is not None  # noqa: S101 - without a shared journal, reuse was refused
        found = purchases.find(lambda bought: self._look(entry, bought))
        if isinstance(found, Lease):
            self._leases.append(found)
        return found

    def _look(self, entry: Entry, bought: Bought) -> There | None:
        """Return an image task whose images are in their place in S3, or that the API still knows; else None."""
        if objects := self._mirror.find(bought.task_id, entry.request.n):
            return ImageTask(bought.task_id, COMPLETED, created_at=bought.created_at), objects
        task = still_there(self._hook, bought)
        return None if task is None else (task, None)

    def _publish(self, entry: Entry, task: ImageTask) -> None:
        purchases = self._purchases(entry)
        if purchases is not None and entry.current is not None:
            purchases.publish(task.task_id, entry.current.at, task.created_at, self._log)
