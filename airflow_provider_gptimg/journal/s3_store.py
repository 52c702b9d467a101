# SPDX-License-Identifier: Apache-2.0
"""The journal in S3: one small object for each entry, which attempts cannot overwrite."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from airflow_provider_gptimg.airflow_compat import conf
from airflow_provider_gptimg.exceptions import GptImgRequestError
from airflow_provider_gptimg.journal.store import Store, entry_of, told

__all__ = ["S3Store", "journal_setting", "not_understood", "open_s3_journal"]

_WRITER = "writer"
_LARGEST = 1024 * 1024
"""Bytes of an entry in S3 that are read: it has 40 KB at the most."""
_AT_A_TIME = 32


class S3Store(Store):
    """Small objects in S3, which attempts cannot overwrite. It may be used from several threads.

    :param prefix: Of the store's objects, with a slash at its end.
    :param aws_conn_id: AWS connection.
    :param writer: Task instance that each entry names as its writer, for spending; None: none.
    :param parent: Store whose client it shares; None: it has its own.
    :param limits: Of its client, as :func:`.s3_client` takes them.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        aws_conn_id: str | None,
        writer: dict[str, Any] | None = None,
        parent: S3Store | None = None,
        **limits: Any,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._aws_conn_id = aws_conn_id
        self._writer = {_WRITER: writer} if writer else {}
        self._client: Any = None
        self._parent = parent
        self._limits = limits
        self.way_to_drop: str = f"delete the objects s3://{bucket}/{prefix}…"

    def below(self, folder: str, writer: dict[str, Any] | None = None) -> S3Store:
        """Return the store of a folder in this one, over the same client.

        :param folder: Its name, without a slash.
        :param writer: As of the class.
        """
        return S3Store(self._bucket, f"{self._prefix}{folder}/", self._aws_conn_id, writer, self)

    def beside(self, folder: str) -> S3Store:
        """Return the store of a folder that all task instances share, whose entries name the same writer."""
        return (self._parent or self).below(folder, self._writer.get(_WRITER))

    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""
        entry = self.get_signed(name)
        return entry and {key: value for key, value in entry.items() if key != _WRITER}

    def get_signed(self, name: str) -> Any:
        """Return an entry with its `writer`, the task instance that wrote it; None: there is none."""
        with told("read", self):
            try:
                with closing(self._s3.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]) as body:
                    text = body.read(_LARGEST)
            except self._s3.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    return None
                raise
        return entry_of(text)

    def get_all(self, names: Iterable[str]) -> dict[str, Any]:
        """Return entries by name as :meth:`get_signed` does, several at a time."""
        return self._each(self.get_signed, names)

    def times_of(self, starts: Iterable[str]) -> dict[str, float]:
        """Return as :meth:`times` what starts with any of `starts`, with one request for each, several at a time."""
        return {name: at for times in self._each(self.times, starts).values() for name, at in times.items()}

    def _each(self, call: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
        names = list(names)
        with told("read", self):
            _ = self._s3  # made once, before several threads ask for it
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="gptimg-journal") as pool:
            return dict(zip(names, pool.map(call, names), strict=True))

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once; return whether it is there now, and not another one in its place."""
        text = json.dumps({**entry, **self._writer})
        item = {"Bucket": self._bucket, "Key": self._key(name), "Body": text, "ContentType": "application/json"}
        with told("written", self):
            try:
                self._s3.put_object(**item, IfNoneMatch="*")
                return True
            except self._s3.exceptions.ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 501:  # the store does not support conditional writes
                    self._s3.put_object(**item)
                    return True
                if status not in (304, 409, 412):  # older MinIO answers 304 instead of 412
                    raise
        return bool(self.get_signed(name) == json.loads(text))  # it may be this very write, repeated

    def list(self) -> set[str]:
        """Return the names of all entries."""
        return set(self.times())

    def times(self, start: str = "", up_to: str = "") -> dict[str, float]:
        """Return when each entry was written, in Unix seconds by S3's clock, by name: one request for 1,000 entries.

        :param start: Only names that start so.
        :param up_to: Name that ends the list; empty: all.
        """
        times: dict[str, float] = {}
        with told("listed", self):
            paginator = self._s3.get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + start)
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self._prefix).removesuffix(".json")
                    if up_to and name >= up_to:
                        return times
                    times[name] = item["LastModified"].timestamp()
        return times

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        with told("written", self):
            self._s3.delete_object(Bucket=self._bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}.json"

    @property
    def _s3(self) -> Any:
        if self._parent is not None:
            return self._parent._s3
        if self._client is None:
            from airflow.providers.amazon.aws.hooks.s3 import S3Hook

            from airflow_provider_gptimg.mirroring.store import s3_client

            self._client = s3_client(S3Hook(aws_conn_id=self._aws_conn_id), _AT_A_TIME, **self._limits)
        return self._client


def open_s3_journal(**limits: Any) -> S3Store | None:
    """Return the journal of all task instances, if `[gptimg] journal` says that it is in S3; else None.

    :param limits: Of its client, as :func:`.s3_client` takes them.
    :raises GptImgRequestError: The setting is not understood.
    """
    setting = journal_setting()
    if not setting.startswith("s3://"):
        return None
    bucket, _, prefix = setting.removeprefix("s3://").partition("/")
    if not bucket:
        raise not_understood(setting)
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    conn_id = conf.get("gptimg", "journal_aws_conn_id", fallback="aws_default") or None
    return S3Store(bucket, folder, conn_id, **limits)


def journal_setting() -> str:
    """Return `[gptimg] journal`: `auto`, `none` or `s3://bucket/prefix`."""
    return str(conf.get("gptimg", "journal", fallback="auto")).strip() or "auto"


def not_understood(setting: str) -> GptImgRequestError:
    """Build the error for a value that `[gptimg] journal` cannot have."""
    return GptImgRequestError(
        f"[gptimg] journal = {setting!r} in Airflow's configuration is not understood: use 'auto', 'none', or "
        "'s3://bucket/prefix'"
    )
