# SPDX-License-Identifier: Apache-2.0
"""Open a picture that a task instance recorded, and nothing else.

People may edit XComs, so what one says is not enough: an object in S3 has to carry the marks by which the mirror says
that it is this image and belongs to this Dag, a hosted URL has to be on one of the connection's media hosts, and the
bytes have to be an image.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from airflow_provider_gptimg.exceptions import GptImgError, GptImgMediaError
from airflow_provider_gptimg.gallery.fetch import HostError, Opened, Source, fetch
from airflow_provider_gptimg.gallery.places import Place
from airflow_provider_gptimg.gallery.recorded import Picture, Record, image_ids
from airflow_provider_gptimg.mirroring.marks import DAG_ID, INDEX, TASK_ID, dag_mark, read_marks

__all__ = ["NOT_HERE", "TOO_OLD", "PictureUnavailableError", "open_picture"]

NOT_HERE = "There is no such image of this Dag, or Airflow may not read it"
"""One text whether the image is absent, of another Dag, or forbidden: a difference would reveal which keys exist."""
TOO_OLD = (
    "Not shown: mirrored by a release before 1.0, which did not mark the object with its Dag. Clear the transfer with "
    "replace=True to mirror the image again"
)

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ACCESS_POINT = re.compile(r"arn:aws[a-z-]*:s3[a-z-]*:[a-z0-9-]*:\d{12}:")
_KEEP_CLIENT = 300
"""Seconds after which a changed AWS connection is heeded."""
_PRESIGNED = 60
_ELSEWHERE = "x-amz-bucket-region"


class PictureUnavailableError(Exception):
    """The picture cannot be shown. The text leaves out host, bucket, key and signature.

    :param status: Of the answer to the viewer.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@asynccontextmanager
async def open_picture(place: Place, dag_id: str, record: Record, picture: Picture) -> AsyncIterator[Opened]:
    """Open a picture, in S3 if it is there, else at the vendor.

    :param place: Whose thread reads connections.
    :raises PictureUnavailableError: It cannot be shown.
    """
    opening = _open_object if picture.bucket else _open_hosted
    async with AsyncExitStack() as stack:
        try:
            opened = await opening(stack, place, dag_id, record, picture)
        except HostError as error:
            raise PictureUnavailableError(str(error), 502) from None
        except PictureUnavailableError:
            raise
        except Exception as error:
            # Errors of Airflow's connections and of AWS's credentials may hold secrets.
            raise PictureUnavailableError(f"The image could not be fetched: {type(error).__name__}", 502) from error
        yield opened


async def _open_object(stack: AsyncExitStack, place: Place, dag_id: str, record: Record, picture: Picture) -> Opened:
    conn_id = _text(record.fields.get("aws_conn_id")) or "aws_default"
    bucket, region = picture.bucket or "", None
    is_bucket = _BUCKET.fullmatch(bucket)
    # A client would resolve such steps, and so ask for something else than what was signed.
    if not (is_bucket or _ACCESS_POINT.match(bucket)) or {".", ".."} & set((picture.key or "").split("/")):
        raise PictureUnavailableError(NOT_HERE, 404)

    def check(headers: Mapping[str, str]) -> None:
        _check_marks(read_marks(_metadata(headers)), dag_id, record, picture)

    for is_last in (False, True):
        try:
            source = await place.run(_object_source, conn_id, bucket, picture.key, region)
            return await stack.enter_async_context(fetch(source, check))
        except HostError as error:
            region = error.headers.get(_ELSEWHERE)
            if region and error.status in (301, 307, 400) and not is_last:
                continue
            # An access point has its own host name, so even a failed connection would reveal whether it exists.
            if (error.status or 500) < 500 or not is_bucket:
                raise PictureUnavailableError(NOT_HERE, 404) from None
            raise
    raise AssertionError("the last turn returns or raises")


def _check_marks(marks: Mapping[str, str], dag_id: str, record: Record, picture: Picture) -> None:
    if (marks.get(TASK_ID), marks.get(INDEX)) != (picture.image_task, str(picture.index)):
        raise PictureUnavailableError(NOT_HERE, 404)
    owner = marks.get(DAG_ID)
    if owner is None and not _is_vouched_for(record, picture):
        raise PictureUnavailableError(TOO_OLD, 404)
    if owner is not None and owner != dag_mark(dag_id):
        raise PictureUnavailableError(NOT_HERE, 404)


def _is_vouched_for(record: Record, picture: Picture) -> bool:
    """Return whether Airflow itself has recorded that this task mirrored the image to this place.

    Its rendered fields and its own task state count; XComs and stores that others write do not.
    """
    from airflow_provider_gptimg.mirroring.destination import KeyPattern

    if record.has_own_journal and any(picture in submission.pictures for submission in record.submissions):
        return True
    if picture.image_task not in image_ids(record.fields.get("gptimg_task_id")):
        return False
    try:
        pattern = KeyPattern(record.fields.get("s3_key") or "", record.fields.get("s3_bucket") or None)
        key = pattern.key(picture.image_task, picture.index, PurePosixPath(picture.key or "").suffix)
    except (GptImgError, TypeError, ValueError):
        return False
    return (pattern.bucket, key) == (picture.bucket, picture.key)


async def _open_hosted(stack: AsyncExitStack, place: Place, dag_id: str, record: Record, picture: Picture) -> Opened:
    try:
        source = await place.run(_hosted_source, _text(record.fields.get("gptimg_conn_id")), picture.url or "")
        return await stack.enter_async_context(fetch(source))
    except GptImgMediaError:
        raise PictureUnavailableError("The image's host is not allowed", 502) from None
    except HostError as error:
        if error.status in (403, 404, 410):
            raise PictureUnavailableError("The vendor does not host the image any more", 404) from None
        raise


def _hosted_source(conn_id: str | None, url: str) -> Source:
    from airflow_provider_gptimg.hooks.connection import ConnectionSettings, Origin
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook
    from airflow_provider_gptimg.hooks.http import proxy_for, tls_context

    connection = GptImgHook.get_connection(conn_id or GptImgHook.default_conn_name)
    if connection.conn_type != GptImgHook.conn_type:
        raise PictureUnavailableError("The task's connection is of another type", 502)
    settings = ConnectionSettings.read(connection)
    url = settings.check_media_url(url)
    return Source(url, tls_context(settings.verify), proxy_for(Origin.of(url)))


def _object_source(conn_id: str, bucket: str, key: str, region: str | None) -> Source:
    from botocore.exceptions import BotoCoreError, NoCredentialsError

    from airflow_provider_gptimg.hooks.connection import Origin
    from airflow_provider_gptimg.hooks.http import proxy_for, tls_context

    client, verify = _s3(conn_id, region, int(time.time() // _KEEP_CLIENT))
    try:
        url = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=_PRESIGNED)
        origin = Origin.of(url)
    except NoCredentialsError:
        raise
    except (BotoCoreError, ValueError):
        raise PictureUnavailableError(NOT_HERE, 404) from None
    proxy = (client.meta.config.proxies or {}).get(origin.scheme) or proxy_for(origin)
    return Source(url, tls_context(verify), proxy)


@lru_cache(maxsize=16)
def _s3(conn_id: str, region: str | None, _period: int) -> tuple[Any, bool | str]:
    """Return an S3 client that signs URLs, and the `verify` setting of its connection."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from botocore.config import Config

    hook = S3Hook(aws_conn_id=conn_id)
    config = hook.config
    ours = Config(
        signature_version=config.signature_version or "s3v4",
        connect_timeout=5,
        read_timeout=10,
        retries={"total_max_attempts": 2},
    )
    region = region or hook.region_name
    client = hook.get_session(region_name=region).client(
        "s3",
        region_name=region,
        endpoint_url=hook.conn_config.get_service_endpoint_url("s3"),
        config=config.merge(ours),
        verify=hook.verify,
    )
    verify = hook.verify
    return client, (os.environ.get("AWS_CA_BUNDLE") or True) if verify is None or verify is True else verify


def _metadata(headers: Mapping[str, str]) -> dict[str, str]:
    start = "x-amz-meta-"
    return {name.removeprefix(start): value for name, value in headers.items() if name.startswith(start)}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
