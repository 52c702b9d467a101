# SPDX-License-Identifier: Apache-2.0
"""Write an image's metadata, and recognize its object in S3 by it."""

from __future__ import annotations

import base64
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_gptimg.mirroring import marks
from airflow_provider_gptimg.mirroring.images import Pixels
from airflow_provider_gptimg.mirroring.store import md5_of, read_etag

if TYPE_CHECKING:
    from airflow_provider_gptimg.api.tasks import Image
    from airflow_provider_gptimg.mirroring.download import Download

__all__ = ["MirroredObject", "Source", "image_metadata", "is_same", "read_own"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MirroredObject:
    """An object in S3 that is exactly one image.

    :param index: From 0, in the order of the API's answer.
    :param size: Bytes.
    :param sha256: Hex digest of its bytes.
    :param etag: Empty if the store gives none.
    :param skipped: True if the identical object existed already.
    :param pixels: None if the image does not say, or if an older release wrote the object.
    :param c2pa: Whether it has a C2PA manifest, which nobody has validated; None: a release that did not look mirrored
        it.
    """

    bucket: str
    key: str
    task_id: str
    index: int
    source_url: str
    content_type: str
    size: int
    sha256: str
    etag: str
    skipped: bool
    pixels: Pixels | None = None
    c2pa: bool | None = None

    @property
    def uri(self) -> str:
        """The object's `s3://` URI."""
        return f"s3://{self.bucket}/{self.key}"

    def as_dict(self) -> dict[str, Any]:
        """Return the dict for XCom."""
        return {
            "uri": self.uri,
            "bucket": self.bucket,
            "key": self.key,
            "task_id": self.task_id,
            "index": self.index,
            "source_url": self.source_url,
            "content_type": self.content_type,
            "size": self.size,
            "sha256": self.sha256,
            "etag": self.etag,
            "skipped": self.skipped,
            "c2pa": self.c2pa,
        }


@dataclass(frozen=True)
class Source:
    """One image of an image task.

    :param index: From 0, in the order of the API's answer.
    """

    task_id: str
    index: int
    image: Image

    def __str__(self) -> str:
        return f"Image {self.index} of image task {self.task_id}"


def image_metadata(source: Source, url: str, download: Download, dag_id: str | None, room: int) -> dict[str, str]:
    """Return the metadata by which a later run and the gallery recognize the object.

    :param dag_id: Id of the DAG; None: unknown.
    :param room: Most bytes that it may take.
    """
    metadata = {
        marks.TASK_ID: source.task_id,
        marks.INDEX: str(source.index),
        marks.SHA256: download.digest.hex(),
        marks.SIZE: str(download.size),
        marks.C2PA: "true" if download.c2pa else "false",
    }
    if download.pixels:
        metadata |= {marks.WIDTH: str(download.pixels.width), marks.HEIGHT: str(download.pixels.height)}
    if dag_id:
        metadata[marks.DAG_ID] = marks.dag_mark(dag_id)
    with_url = metadata | {marks.SOURCE_URL: quote(url, safe=string.punctuation)}
    return with_url if marks.metadata_size(with_url) <= room else metadata


def read_own(head: Mapping[str, Any], bucket: str, key: str, source: Source) -> MirroredObject | None:
    """Return the object that `head` describes if it is this image, complete and unchanged."""
    metadata = marks.read_marks(head.get("Metadata"))
    sha256, size = metadata.get(marks.SHA256, ""), str(head.get("ContentLength"))
    if _image_of(metadata) != (source.task_id, str(source.index)) or not _SHA256.fullmatch(sha256):
        return None
    if metadata.get(marks.SIZE, size) != size:  # rewritten by a tool that keeps metadata
        return None
    checksum = head.get("ChecksumSHA256")
    if checksum and checksum != base64.b64encode(bytes.fromhex(sha256)).decode():
        return None
    return MirroredObject(
        bucket=bucket,
        key=key,
        task_id=source.task_id,
        index=source.index,
        source_url=metadata.get(marks.SOURCE_URL, source.image.url),
        content_type=str(head.get("ContentType", "")),
        size=int(head["ContentLength"]),
        sha256=sha256,
        etag=read_etag(head),
        skipped=True,
        pixels=_read_pixels(metadata),
        c2pa={"true": True, "false": False}.get(metadata.get(marks.C2PA, "")),
    )


def is_same(head: Mapping[str, Any], file: IO[bytes], download: Download) -> bool:
    """Return whether the object that `head` describes holds what was downloaded, and is marked as no other image."""
    if head.get("ContentLength") != download.size or any(_image_of(marks.read_marks(head.get("Metadata")))):
        return False
    if checksum := head.get("ChecksumSHA256"):
        return bool(checksum == base64.b64encode(download.digest).decode())
    # The ETag of one PUT is its MD5, except for an object that is encrypted with a key: then it never matches.
    return read_etag(head) == md5_of(file).hex()


def _image_of(metadata: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return the image task's id and the index in an object's metadata, each None if missing."""
    return metadata.get(marks.TASK_ID), metadata.get(marks.INDEX)


def _read_pixels(metadata: Mapping[str, str]) -> Pixels | None:
    sizes = metadata.get(marks.WIDTH, ""), metadata.get(marks.HEIGHT, "")
    return Pixels(*map(int, sizes)) if all(size.isdecimal() for size in sizes) else None
