# SPDX-License-Identifier: Apache-2.0
"""Write the manifest: one JSON Lines object per run that lists the mirrored images, for DuckDB and Athena."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from io import BytesIO
from typing import Any
from urllib.parse import quote

from airflow_provider_gptimg import __version__
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE, ImageTask
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.mirroring.marks import SHA256, WRITER, read_marks, short_mark
from airflow_provider_gptimg.mirroring.objects import MirroredObject
from airflow_provider_gptimg.mirroring.store import Content, S3Store

__all__ = ["Manifest", "manifest_lines"]


class Manifest:
    """An S3 object that one task instance writes, and overwrites in a later attempt.

    :param context: Of the task instance.
    :param replace: Overwrite an object of another writer.
    """

    def __init__(self, store: S3Store, bucket: str, key: str, context: Mapping[str, Any], *, replace: bool) -> None:
        self._store = store
        self.bucket = bucket
        self.key = key
        self._writer = _writer(context)
        self._origin = _origin(context)
        self._replace = replace
        self._condition: dict[str, str] = {}

    @property
    def uri(self) -> str:
        """Its `s3://` URI."""
        return f"s3://{self.bucket}/{self.key}"

    def claim(self) -> None:
        """Check that the manifest may be written, before anything is downloaded.

        :raises GptImgRequestError: The key holds something else.
        """
        if self._replace:
            return
        there = self._store.head(self.bucket, self.key, with_checksum=False)
        if there is None:
            self._condition = {"IfNoneMatch": "*"}
        elif self._is_ours(there):
            etag = str(there.get("ETag") or "")
            # A store without strong ETags cannot compare them: the write of somebody else in between is lost.
            self._condition = {"IfMatch": etag} if etag and not etag.startswith("W/") else {}
        else:
            raise GptImgRequestError(
                f"manifest_key: {self.uri} is there already, and is not by this task instance: put "
                "{{{{ run_id | replace(':', '') }}}} into manifest_key ({{{{ ti.task_id }}}} too if tasks share it, "
                "{{{{ ti.map_index }}}} if one is mapped), or set replace=True"
            )

    def write(
        self,
        objects: Iterable[MirroredObject],
        tasks: Mapping[str, ImageTask],
        prompts: Mapping[str, str] | None = None,
        reused: Collection[str] = (),
    ) -> None:
        """Write the manifest in one PUT.

        :param tasks: The image tasks of `objects`, by id.
        :param prompts: Their prompts, by the same ids; None: unknown, since the API does not repeat them.
        :param reused: Ids of those that cost nothing here, since another task has paid for them.
        :raises GptImgError: S3 refused or failed, or somebody else wrote the object in between.
        """
        body = manifest_lines(objects, tasks, prompts, self._origin, reused)
        digest = hashlib.sha256(body)
        metadata = {WRITER: self._writer, SHA256: digest.hexdigest()}
        content = Content(BytesIO(body), len(body), digest.digest(), "application/x-ndjson", metadata)
        if self._store.put(self.bucket, self.key, content, self._condition) is None:
            # Somebody wrote it in between; perhaps this very PUT, whose answer was lost.
            there = self._store.head(self.bucket, self.key, with_checksum=False) or {}
            if not metadata.items() <= read_marks(there.get("Metadata")).items():
                raise GptImgError(f"{self.uri} was written by somebody else while images were mirrored")
        elif "IfNoneMatch" in self._condition:
            # The manifest is the smallest object: the cheapest way to learn whether the store honours conditions.
            self._store.check_conditions(self.bucket, self.key, content)

    def _is_ours(self, head: Mapping[str, Any]) -> bool:
        return bool(self._writer) and read_marks(head.get("Metadata")).get(WRITER) == self._writer


def manifest_lines(
    objects: Iterable[MirroredObject],
    tasks: Mapping[str, ImageTask],
    prompts: Mapping[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
    reused: Collection[str] = (),
) -> bytes:
    """Return a line of JSON for each image.

    :param origin: Fields that name what wrote it; None: outside of a task instance.
    :param reused: As :meth:`Manifest.write`.
    """
    known, origin = prompts or {}, origin or _origin({})
    rows = [_row(mirrored, tasks[mirrored.task_id], known.get(mirrored.task_id)) for mirrored in objects]
    for row in rows:
        row["credits"] = 0 if row["task_id"] in reused else CREDITS_PER_IMAGE
    return b"".join(json.dumps({**row, **origin}).encode() + b"\n" for row in rows)


def _row(mirrored: MirroredObject, task: ImageTask, prompt: str | None) -> dict[str, Any]:
    width, height = mirrored.pixels or (None, None)
    return {
        "task_id": mirrored.task_id,
        "index": mirrored.index,
        "prompt_sha256": None if prompt is None else hashlib.sha256(prompt.encode()).hexdigest(),
        "uri": mirrored.uri,
        "size": mirrored.size,
        "sha256": mirrored.sha256,
        "content_type": mirrored.content_type,
        "width": width,
        "height": height,
        "created_at": task.created_at,
        "updated_at": task.updated_at,
        "credits": CREDITS_PER_IMAGE,
        "source_url": mirrored.source_url,
        "skipped": mirrored.skipped,
        "c2pa": mirrored.c2pa,
        "model": task.model,
    }


def _origin(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what wrote the manifest; outside of a task instance only the release of this provider is known."""
    ti = context.get("ti")
    return {
        "generator": f"airflow-provider-gptimg {__version__}",
        "dag_id": getattr(ti, "dag_id", None),
        "run_id": getattr(ti, "run_id", None),
        "airflow_task_id": getattr(ti, "task_id", None),
        "map_index": getattr(ti, "map_index", None),
    }


def _writer(context: Mapping[str, Any]) -> str:
    """Return a name of the task instance that all its attempts share; empty outside of one."""
    ti = context.get("ti")
    if ti is None:
        return ""
    # Quoted, since S3 takes ASCII only in metadata, and short, since it takes 2 KB of it.
    return short_mark(quote(f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"))
