# SPDX-License-Identifier: Apache-2.0
"""Mirror the completed image tasks of a batch, and note where their images are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from airflow_provider_gptimg.exceptions import GptImgError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.mirroring.images import FORMATS
from airflow_provider_gptimg.mirroring.listing import find_missing

if TYPE_CHECKING:
    from airflow_provider_gptimg.api.tasks import ImageTask
    from airflow_provider_gptimg.batch.entries import Entry
    from airflow_provider_gptimg.batch.ledger import Ledger
    from airflow_provider_gptimg.mirroring.destination import KeyPattern
    from airflow_provider_gptimg.mirroring.mirror import Mirror
    from airflow_provider_gptimg.mirroring.store import S3Store

__all__ = ["Completed"]

_AT_ONCE = 64
"""Image tasks that are mirrored before that is written down."""


class Completed:
    """Completed image tasks that wait to be mirrored.

    :param mirror: Where images go.
    :param pattern: Its keys.
    :param fail: Called with a request and the error that kept its images from S3.
    """

    def __init__(
        self,
        ledger: Ledger,
        mirror: Mirror,
        pattern: KeyPattern,
        fail: Callable[[Entry, GptImgError], None],
        log: Any,
    ) -> None:
        self._ledger = ledger
        self._mirror = mirror
        self._pattern = pattern
        self._fail = fail
        self._log = log
        self._tasks: list[tuple[Entry, ImageTask]] = []

    def add(self, entry: Entry, task: ImageTask) -> None:
        """Add a request's completed image task."""
        self._tasks.append((entry, task))

    def mirror(self, has_mirrored: bool) -> GptImgError | None:
        """Mirror all; return the error if nothing is in S3 yet and what was bought is refused, else None.

        :param has_mirrored: S3 has taken images of this batch already: then only a refusal of all that is to come
            counts.
        """
        refused: GptImgError | None = None
        while self._tasks:
            group = self._tasks[:_AT_ONCE]
            copied = self._mirror.copy(task for _, task in group)
            refusals: list[GptImgError] = []
            for entry, task in group:
                result = copied[task.task_id]
                if isinstance(result, GptImgError):
                    self._fail(entry, result)
                    is_by_s3 = isinstance(result, GptImgRequestError) and isinstance(result.__cause__, ClientError)
                    if is_by_s3 or (self._mirror.require_c2pa and isinstance(result, GptImgMediaError)):
                        refusals.append(result)
                else:
                    self._ledger.mirror(entry, task, result)
                    has_mirrored = True
            self._ledger.write()
            del self._tasks[: len(group)]
            refused = refused or self._mirror.refusal or (None if has_mirrored else next(iter(refusals), None))
        return refused

    def lose_missing(self, store: S3Store, mirrored: Sequence[Entry]) -> list[Entry]:
        """Return those of `mirrored` whose images S3 no longer has, and note that they have to be mirrored again."""
        sizes = {entry: {fact["key"]: fact["size"] for fact in (entry.objects or {})["objects"]} for entry in mirrored}
        missing = find_missing(store, self._pattern.bucket, sizes)
        for entry in missing:
            self._ledger.lose(entry)
        self._ledger.write()
        if missing:
            self._log.warning(
                "Images of %d requests were mirrored and are gone from S3, the first those of %s: mirroring them again",
                len(missing),
                missing[0].name,
            )
        return missing

    def is_stale(self, entry: Entry) -> bool:
        """Return whether a mirrored request has other objects than this attempt's arguments ask for."""
        facts = (entry.objects or {}).get("objects", ())
        if self._mirror.require_c2pa and not all(fact.get("c2pa") for fact in facts):
            return True
        extensions = {known.content_type: known.extension for known in FORMATS}
        return not all(
            fact["bucket"] == self._pattern.bucket
            and fact["key"] == self._pattern.key(entry.task_id, index, extensions.get(fact["content_type"], ""))
            for index, fact in enumerate(facts)
        )
