# SPDX-License-Identifier: Apache-2.0
"""How a hosted image becomes an S3 object: exactly the image, or no object at all.

An image is streamed into a temporary file and checked there; only then one conditional PUT, whose checksum S3
verifies, makes it visible. So a cut, wrong or oversized image is never seen in the bucket, no multipart upload can
be left behind, and memory stays flat.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import string
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os.path import commonprefix
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_gptimg.api.protocol import backoff
from airflow_provider_gptimg.api.tasks import Image, ImageTask
from airflow_provider_gptimg.exceptions import GptImgError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.mirroring.destination import KeyPattern
from airflow_provider_gptimg.mirroring.download import Download, Downloader, GoneError, TransientError, without_query
from airflow_provider_gptimg.mirroring.images import FORMATS, Pixels
from airflow_provider_gptimg.mirroring.store import Content, S3Store
from airflow_provider_gptimg.telemetry import count, span

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["LOOKS_AT_A_TIME", "Mirror", "MirroredObject"]

LOOKS_AT_A_TIME = 64
"""Requests to S3 that ask what is there already: more than downloads, for they take no memory, but time."""

_IN_MEMORY = 1024 * 1024
_DOWNLOAD_ATTEMPTS = 4
_REFUSALS = 4
"""Objects that S3 may refuse, and take none, before nothing more is downloaded."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class MirroredObject:
    """An object in S3 that is exactly one image.

    :param index: From 0, in the order of the API's answer.
    :param size: Bytes.
    :param sha256: Of its bytes, in hex.
    :param skipped: Whether it was there already, and identical.
    :param pixels: None where the image does not tell, or is not from a release that noted it.
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

    @property
    def uri(self) -> str:
        """The object's `s3://` URI."""
        return f"s3://{self.bucket}/{self.key}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as it goes to XCom."""
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
        }


@dataclass(frozen=True)
class _Source:
    task_id: str
    index: int
    image: Image

    def __str__(self) -> str:
        return f"Image {self.index} of image task {self.task_id}"


class Mirror:
    """Copies images into S3, several at a time, with one S3 client for all. Use it as a context manager.

    :param replace: Overwrite objects that are not the image.
    :param max_image_bytes: Larger images are refused.
    :param concurrency: Images under way at a time.
    """

    def __init__(
        self,
        hook: GptImgHook,
        store: S3Store,
        pattern: KeyPattern,
        *,
        replace: bool,
        max_image_bytes: int,
        concurrency: int,
        log: Any,
    ) -> None:
        self._hook = hook
        self._settings = hook.settings
        self._store = store
        self._pattern = pattern
        self._replace = replace
        self._concurrency = concurrency
        self._log = log
        self._downloader = Downloader(hook.settings, max_image_bytes)
        self._refusal: GptImgRequestError | None = None
        """Why S3 takes nothing from us; then there is no use in downloading the rest."""
        self._refused = 0
        self._has_put = False

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *error: object) -> None:
        self._downloader.close()

    def copy(self, tasks: Iterable[ImageTask]) -> dict[str, list[MirroredObject] | GptImgError]:
        """Copy all images of completed tasks. One that fails keeps no other from its place.

        :returns: For each task its objects, or the first error among its images.
        :raises GptImgRequestError: Two images would go to the same key.
        """
        sources = [
            _Source(task.task_id, index, image)
            for task in {task.task_id: task for task in tasks}.values()
            for index, image in enumerate(task.images)
        ]
        self._check_keys(sources)
        with span("mirror", images=len(sources)):
            found = self._look(sources)
            missing = [source for source in sources if source not in found]
            with ThreadPoolExecutor(self._concurrency, thread_name_prefix="gptimg-mirror") as pool:
                found.update(zip(missing, pool.map(self._copy_or_error, missing), strict=True))
        _count(found.values())
        results: dict[str, list[MirroredObject] | GptImgError] = {}
        for source in sources:
            result, outcome = results.setdefault(source.task_id, []), found[source]
            if isinstance(result, list):
                if isinstance(outcome, GptImgError):
                    results[source.task_id] = outcome
                else:
                    result.append(outcome)
        return results

    def _check_keys(self, sources: Iterable[_Source]) -> None:
        taken: dict[str, _Source] = {}
        for source in sources:
            key = self._pattern.key(source.task_id, source.index, ".")
            if other := taken.get(key):
                raise GptImgRequestError(
                    f"s3_key={self._pattern.pattern!r} gives two images the same key, {other} and {source}: put "
                    "{task_id} and {index} into it"
                )
            taken[key] = source

    def _look(self, sources: Sequence[_Source]) -> dict[_Source, MirroredObject | GptImgError]:
        """Return the objects that an earlier run made, and the errors for images of which S3 does not tell."""
        prefixes = {source.task_id: self._pattern.prefix(source.task_id) for source in sources}
        with ThreadPoolExecutor(LOOKS_AT_A_TIME, thread_name_prefix="gptimg-look") as pool:
            # Where the folder is small, one request tells all; else one for each image task does.
            shared = commonprefix([prefix or "" for prefix in prefixes.values()])  # noqa: RUF071 - S3 compares so too
            keys = self._list(shared)
            listed = dict.fromkeys(prefixes, keys)
            if keys is None:
                listed = dict(zip(prefixes, pool.map(self._list, prefixes.values()), strict=True))
            there = {source: self._keys_there(source, listed[source.task_id]) for source in sources}
            there = {source: keys for source, keys in there.items() if keys}
            looks = pool.map(self._find_or_error, there.keys(), there.values())
            return {source: known for source, known in zip(there, looks, strict=True) if known}

    def _list(self, prefix: str | None) -> Collection[str] | None:
        """Return the keys that start with `prefix`; None if that is not to be had in one request."""
        try:
            return self._store.sizes(self._pattern.bucket, prefix) if prefix else None
        except GptImgRequestError as error:  # there is no such bucket, say
            self._refusal = error
        except GptImgError as error:
            self._log.warning("%s; asking for each image instead", error)
        return None

    def _keys_there(self, source: _Source, listed: Collection[str] | None) -> list[str]:
        """Return the keys under which an earlier run may have put this image, the likeliest first.

        :param listed: All keys there are of its image task; None if that is not known.
        """
        declared = next((known for known in FORMATS if known.content_type == source.image.content_type), FORMATS[0])
        formats = (declared, *(known for known in FORMATS if known is not declared))
        keys = dict.fromkeys(self._pattern.key(source.task_id, source.index, known.extension) for known in formats)
        return [key for key in keys if listed is None or key in listed]

    def _find_or_error(self, source: _Source, keys: Iterable[str]) -> MirroredObject | GptImgError | None:
        try:
            return self._find(source, keys)
        except GptImgError as error:
            self._log.error("%s", error)
            return error

    def _find(self, source: _Source, keys: Iterable[str]) -> MirroredObject | None:
        """Return the object among `keys` that an earlier run made of this image."""
        for key in keys:
            head = self._store.head(self._pattern.bucket, key)
            if head and (known := _own(head, self._pattern.bucket, key, source)):
                return known
        return None

    def _copy_or_error(self, source: _Source) -> MirroredObject | GptImgError:
        try:
            return self._copy(source)
        except GptImgError as error:
            self._log.error("%s", error)
            return error

    def _copy(self, source: _Source) -> MirroredObject:
        if self._refusal:
            raise self._refusal
        self._settings.check_media_url(source.image.url)
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            download, url = self._fetch(source, file)
            mirrored = self._put(source, url, file, download)
        verb = "is there already" if mirrored.skipped else "mirrored"
        self._log.info("%s %s: %s, %d bytes, sha256 %s", source, verb, mirrored.uri, mirrored.size, mirrored.sha256)
        return mirrored

    def _taken(self, key: str) -> GptImgRequestError:
        return GptImgRequestError(
            f"s3://{self._pattern.bucket}/{key} exists and is not this image: choose another s3_key, or set "
            "replace=True to overwrite it"
        )

    def _fetch(self, source: _Source, file: IO[bytes]) -> tuple[Download, str]:
        """Download the image, again where that may help; ask the API for its URL anew where it is gone."""
        url, attempt, asked = source.image.url, 0, False
        while True:
            attempt += 1
            file.seek(0)
            file.truncate()
            try:
                return self._downloader.download(url, file, str(source)), url
            except GoneError as error:
                images = () if asked else self._hook.get_task(source.task_id).images
                asked = True
                if source.index >= len(images):
                    raise GptImgMediaError(f"{source} is not to be had at {without_query(url)}: {error}") from error
                url = self._settings.check_media_url(images[source.index].url)
            except TransientError as error:
                if attempt >= _DOWNLOAD_ATTEMPTS:
                    raise GptImgMediaError(
                        f"{source} could not be downloaded from {without_query(url)}: {error}"
                    ) from error
                pause = backoff(attempt, None, random.uniform)
                self._log.warning("%s: %s; trying again in %.1f s", source, error, pause)
                time.sleep(pause)

    def _put(self, source: _Source, url: str, file: IO[bytes], download: Download) -> MirroredObject:
        bucket, key = self._pattern.bucket, self._pattern.key(source.task_id, source.index, download.format.extension)
        content = Content(
            file=file,
            size=download.size,
            digest=download.digest,
            content_type=download.format.content_type,
            metadata=_metadata(source, url, download),
        )
        try:
            etag = self._store.put(bucket, key, content, {} if self._replace else {"IfNoneMatch": "*"})
        except GptImgRequestError as error:
            # It may be this key that is locked, or too long; when S3 has taken no other either, it is more than that.
            self._refused += 1
            if self._refused >= _REFUSALS and not self._has_put:
                self._refusal = error
            raise
        self._has_put = True
        skipped = etag is None
        if etag is None:
            # The key was taken before, perhaps by this very PUT, whose answer was lost.
            head = self._store.head(bucket, key) or self._store.head(bucket, key, with_checksum=False) or {}
            known = _own(head, bucket, key, source)
            if known and known.sha256 == download.digest.hex():
                return known
            if not _is_same(head, file, download):
                raise self._taken(key)
            etag = str(head["ETag"]).strip('"')
        return MirroredObject(
            bucket=bucket,
            key=key,
            task_id=source.task_id,
            index=source.index,
            source_url=url,
            content_type=download.format.content_type,
            size=download.size,
            sha256=download.digest.hex(),
            etag=etag,
            skipped=skipped,
            pixels=download.pixels,
        )


def _count(outcomes: Iterable[MirroredObject | GptImgError]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, GptImgError):
            count("mirrored_images", outcome="failed")
        elif outcome.skipped:
            count("mirrored_images", outcome="skipped")
        else:
            count("mirrored_images", outcome="mirrored")
            count("mirrored_bytes", outcome.size)


def _metadata(source: _Source, url: str, download: Download) -> dict[str, str]:
    """Return what lets a later run know its own object."""
    metadata = {
        "gptimg-task-id": source.task_id,
        "gptimg-index": str(source.index),
        "gptimg-sha256": download.digest.hex(),
        "gptimg-size": str(download.size),
    }
    if download.pixels:
        metadata |= {"gptimg-width": str(download.pixels.width), "gptimg-height": str(download.pixels.height)}
    shown = quote(url, safe=string.punctuation)
    if len(shown) <= 1024:  # S3 takes 2 KB of metadata in all
        metadata["gptimg-source-url"] = shown
    return metadata


def _marks(metadata: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Return which image an object says it is of: the image task's id and the index, None where it says nothing."""
    return metadata.get("gptimg-task-id"), metadata.get("gptimg-index")


def _own(head: Mapping[str, Any], bucket: str, key: str, source: _Source) -> MirroredObject | None:
    """Return the object that `head` describes if it is this very image, whole and unchanged."""
    metadata = head.get("Metadata") or {}
    sha256, size = metadata.get("gptimg-sha256", ""), str(head.get("ContentLength"))
    if _marks(metadata) != (source.task_id, str(source.index)) or not _SHA256.fullmatch(sha256):
        return None
    if metadata.get("gptimg-size", size) != size:  # written anew by a tool that keeps metadata
        return None
    checksum = head.get("ChecksumSHA256")
    if checksum and checksum != base64.b64encode(bytes.fromhex(sha256)).decode():
        return None
    return MirroredObject(
        bucket=bucket,
        key=key,
        task_id=source.task_id,
        index=source.index,
        source_url=metadata.get("gptimg-source-url", source.image.url),
        content_type=str(head.get("ContentType", "")),
        size=int(head["ContentLength"]),
        sha256=sha256,
        etag=str(head.get("ETag", "")).strip('"'),
        skipped=True,
        pixels=_read_pixels(metadata),
    )


def _is_same(head: Mapping[str, Any], file: IO[bytes], download: Download) -> bool:
    """Return whether the object that `head` describes holds what was downloaded, and is marked as no other image."""
    if head.get("ContentLength") != download.size or any(_marks(head.get("Metadata") or {})):
        return False
    if checksum := head.get("ChecksumSHA256"):
        return bool(checksum == base64.b64encode(download.digest).decode())
    # An ETag is the MD5 of what came in one PUT, unless it was encrypted with a key: then it is never equal.
    file.seek(0)
    md5 = hashlib.md5(usedforsecurity=False)
    while block := file.read(_IN_MEMORY):
        md5.update(block)
    return str(head.get("ETag", "")).strip('"') == md5.hexdigest()


def _read_pixels(metadata: Mapping[str, str]) -> Pixels | None:
    sizes = metadata.get("gptimg-width", ""), metadata.get("gptimg-height", "")
    return Pixels(*map(int, sizes)) if all(size.isdecimal() for size in sizes) else None
