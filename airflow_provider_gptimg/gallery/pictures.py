# SPDX-License-Identifier: Apache-2.0
"""Brings the bytes of a picture that an XCom names, and of nothing else.

An XCom may be edited by people, so what it says is not enough: an object in S3 has to carry the marks that the
mirror left on it, a hosted URL has to be on one of the connection's media hosts, and the bytes have to be an image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from airflow_provider_gptimg.exceptions import GptImgMediaError
from airflow_provider_gptimg.gallery.tiles import Picture, Record
from airflow_provider_gptimg.mirroring.images import HEAD_BYTES, read_format

__all__ = ["Opened", "PictureUnavailableError", "open_picture"]

_CHUNK = 256 * 1024
_IN_MEMORY = 4 * 1024 * 1024
_LARGEST_HOSTED = 64 * 1024 * 1024
_KEEP_CLIENT = 300
"""Seconds after which a changed AWS connection is heeded."""


class PictureUnavailableError(Exception):
    """A picture that cannot be shown; its text may be, and names no host, key or signature."""


@dataclass(frozen=True)
class Opened:
    """An image on its way.

    :param content_type: As its bytes say.
    :param size: Bytes; None: unknown.
    """

    content_type: str
    extension: str
    size: int | None
    chunks: Iterator[bytes]


def open_picture(record: Record, picture: Picture) -> Opened:
    """Return a picture's bytes, from S3 if they are there, else from the vendor.

    :raises PictureUnavailableError: They cannot be had, or are not that picture.
    """
    try:
        return _from_s3(record, picture) if picture.bucket else _from_vendor(record, picture)
    except PictureUnavailableError:
        raise
    except Exception as error:
        raise PictureUnavailableError(f"The image could not be fetched: {_what(error)}") from error


def _what(error: Exception) -> str:
    """Return what went wrong in a word; an error's text could name hosts and keys."""
    answer = getattr(error, "response", None)  # of botocore
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return f"{type(error).__name__} {code}" if code else type(error).__name__


def _from_s3(record: Record, picture: Picture) -> Opened:
    answer = _s3(*_aws_connection(record)).get_object(Bucket=picture.bucket, Key=picture.key)
    body, marks = answer["Body"], answer["Metadata"]
    if marks.get("gptimg-task-id") != picture.image_task or marks.get("gptimg-index") != str(picture.index):
        body.close()
        raise PictureUnavailableError("The object in S3 is not this image")
    return _opened(body, answer["ContentLength"])


def _from_vendor(record: Record, picture: Picture) -> Opened:
    from airflow_provider_gptimg.hooks.connection import ConnectionSettings
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.mirroring.download import Downloader, GoneError

    conn_id = _text(record.fields.get("gptimg_conn_id")) or GptImgHook.default_conn_name
    connection = GptImgHook.get_connection(conn_id)
    if connection.conn_type != GptImgHook.conn_type:
        raise PictureUnavailableError("The task's connection is of another type")
    settings = ConnectionSettings.read(connection)
    file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed when it has been sent
    try:
        url = settings.check_media_url(picture.url or "")
        with closing(Downloader(settings, _LARGEST_HOSTED)) as downloader:
            size = downloader.download(url, file, "The image").size
    except Exception as error:
        file.close()
        if isinstance(error, GoneError):
            raise PictureUnavailableError("The vendor does not host the image any more") from error
        if isinstance(error, GptImgMediaError):
            raise PictureUnavailableError("The image's host is not allowed, or what it serves is no image") from error
        raise
    file.seek(0)
    return _opened(file, size)


def _opened(source: Any, size: int | None) -> Opened:
    head = source.read(HEAD_BYTES)
    found = read_format(head)
    if found is None:
        source.close()
        raise PictureUnavailableError("What is there is no image")
    return Opened(found.content_type, found.extension, size, _chunks(head, source))


def _chunks(head: bytes, source: IO[bytes]) -> Iterator[bytes]:
    try:
        yield head
        while chunk := source.read(_CHUNK):
            yield chunk
    finally:
        source.close()


def _aws_connection(record: Record) -> tuple[str, int]:
    return _text(record.fields.get("aws_conn_id")) or "aws_default", int(time.time() // _KEEP_CLIENT)


@lru_cache(maxsize=8)
def _s3(aws_conn_id: str, _period: int) -> Any:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    config = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 2}, max_pool_connections=16)
    return S3Hook(aws_conn_id=aws_conn_id, config=config).conn


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
