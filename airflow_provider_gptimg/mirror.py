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
import string
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from botocore.exceptions import ClientError

from airflow_provider_gptimg.api.images import (
    FORMATS,
    HEAD_BYTES,
    EndFinder,
    ImageFormat,
    Pixels,
    PixelsFinder,
    read_format,
)
from airflow_provider_gptimg.api.protocol import backoff
from airflow_provider_gptimg.api.tasks import Image, ImageTask
from airflow_provider_gptimg.exceptions import GptImgError, GptImgMediaError, GptImgRequestError
from airflow_provider_gptimg.hooks.connection import Origin
from airflow_provider_gptimg.hooks.http import sync_client

if TYPE_CHECKING:
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

__all__ = ["KeyPattern", "Mirror", "MirroredObject"]

SINGLE_PUT_LIMIT = 5 * 1024**3
"""Bytes that S3 takes in one PUT; there is no use for larger images."""

_IN_MEMORY = 1024 * 1024
_DOWNLOAD_ATTEMPTS = 4
_SLOWEST = 16 * 1024
"""Bytes a second that a download must reach on average once a call's timeout has passed."""

_REFUSED_BY_S3 = {"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "InvalidBucketName", "NoSuchBucket"}


class KeyPattern:
    """Where images go: an S3 key with `{task_id}`, `{index}` and `{ext}` in it.

    :param s3_key: The pattern, or `s3://bucket/pattern`.
    :param s3_bucket: The bucket, unless `s3_key` names it.
    :raises GptImgRequestError: Names the argument, its value and the way out.
    """

    def __init__(self, s3_key: str, s3_bucket: str | None) -> None:
        if not isinstance(s3_key, str) or not s3_key.strip():
            raise GptImgRequestError(
                f"s3_key={s3_key!r} is blank: use a pattern such as 'images/{{task_id}}/{{index}}{{ext}}'"
            )
        if s3_key.startswith("s3://"):
            bucket, _, pattern = s3_key.removeprefix("s3://").partition("/")
            if s3_bucket:
                raise GptImgRequestError(
                    f"s3_key={s3_key!r} names a bucket, and so does s3_bucket={s3_bucket!r}: drop one"
                )
        else:
            bucket, pattern = s3_bucket or "", s3_key
        if not bucket or not pattern:
            raise GptImgRequestError(
                f"s3_key={s3_key!r} and s3_bucket={s3_bucket!r} name no bucket and key: pass s3_bucket, or "
                "s3_key='s3://bucket/pattern'"
            )
        self.bucket = bucket
        self.pattern = pattern
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
            if unknown := fields - {"task_id", "index", "ext"}:
                raise ValueError(f"it has {{{sorted(unknown)[0]}}}")
            self.has_extension = "ext" in fields
            self.key("task", 0, ".png")
        except (ValueError, IndexError, KeyError) as error:
            raise GptImgRequestError(
                f"s3_key={s3_key!r} is no pattern: {error}. {{task_id}}, {{index}} and {{ext}} are known, and '{{{{' "
                "stands for a brace"
            ) from None

    def key(self, task_id: str, index: int, extension: str) -> str:
        """Return the key of one image.

        :param index: From 0, in the order of the API's answer.
        :param extension: With its dot.
        """
        return self.pattern.format(task_id=task_id, index=index, ext=extension)

    @property
    def folder(self) -> str:
        """What all its keys start with, up to a slash, which is left out; empty if they share nothing."""
        shared, *_ = next(iter(string.Formatter().parse(self.pattern)))
        return shared.rpartition("/")[0]


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


@dataclass(frozen=True)
class _Download:
    size: int
    digest: bytes
    format: ImageFormat
    pixels: Pixels | None


class _Transient(Exception):
    """A download that may well succeed when tried again."""


class _Gone(Exception):
    """The URL does not serve the image any more."""


class Mirror:
    """Copies images into S3, several at a time, with one S3 client for all. Use it as a context manager.

    :param s3: A boto3 S3 client; it is used from several threads.
    :param replace: Overwrite objects that are not the image.
    :param put_arguments: Further arguments of S3's PutObject, e.g. `ServerSideEncryption`.
    :param max_image_bytes: Larger images are refused.
    :param concurrency: Images under way at a time.
    """

    def __init__(
        self,
        hook: GptImgHook,
        s3: Any,
        pattern: KeyPattern,
        *,
        replace: bool,
        put_arguments: Mapping[str, Any],
        max_image_bytes: int,
        concurrency: int,
        log: Any,
    ) -> None:
        self._hook = hook
        self._settings = hook.settings
        self._s3 = s3
        self._pattern = pattern
        self._replace = replace
        self._put_arguments = put_arguments
        self._max_image_bytes = max_image_bytes
        self._concurrency = concurrency
        self._log = log
        self._clients: dict[Origin, httpx.Client] = {}
        self._clients_lock = Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

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
        results: dict[str, list[MirroredObject] | GptImgError] = {}
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="gptimg-mirror") as pool:
            for source, outcome in zip(sources, pool.map(self._copy_or_error, sources), strict=True):
                result = results.setdefault(source.task_id, [])
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

    def _copy_or_error(self, source: _Source) -> MirroredObject | GptImgError:
        try:
            return self._copy(source)
        except GptImgError as error:
            self._log.error("%s", error)
            return error

    def _copy(self, source: _Source) -> MirroredObject:
        self._settings.check_media_url(source.image.url)
        if known := self._find(source):
            self._log.info("%s is there already: %s", source, known.uri)
            return known
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
            download, url = self._fetch(source, file)
            mirrored = self._put(source, url, file, download)
        verb = "is there already" if mirrored.skipped else "mirrored"
        self._log.info("%s %s: %s, %d bytes, sha256 %s", source, verb, mirrored.uri, mirrored.size, mirrored.sha256)
        return mirrored

    def _find(self, source: _Source) -> MirroredObject | None:
        """Return the object that an earlier run made of this image."""
        declared = next((known for known in FORMATS if known.content_type == source.image.content_type), FORMATS[0])
        extensions = [declared.extension, *(known.extension for known in FORMATS if known is not declared)]
        for extension in extensions if self._pattern.has_extension else extensions[:1]:
            key = self._pattern.key(source.task_id, source.index, extension)
            head = self._head(key)
            if head is None:
                continue
            if known := _own(head, self._pattern.bucket, key, source):
                return known
            if not self._replace and not self._pattern.has_extension:
                raise self._taken(key)
        return None

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = self._s3.head_object(Bucket=self._pattern.bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            # Without permission to list, S3 says 403 for what is not there.
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (403, 404):
                return None
            raise
        return answer

    def _taken(self, key: str) -> GptImgRequestError:
        return GptImgRequestError(
            f"s3://{self._pattern.bucket}/{key} exists and is not this image: choose another s3_key, or set "
            "replace=True to overwrite it"
        )

    def _fetch(self, source: _Source, file: IO[bytes]) -> tuple[_Download, str]:
        """Download the image, again where that may help; ask the API for its URL anew where it is gone."""
        url, attempt, asked = source.image.url, 0, False
        while True:
            attempt += 1
            file.seek(0)
            file.truncate()
            try:
                return self._download(source, url, file), url
            except _Gone as error:
                images = () if asked else self._hook.get_task(source.task_id).images
                asked = True
                if source.index >= len(images):
                    raise GptImgMediaError(f"{source} is not to be had at {_shown(url)}: {error}") from error
                url = self._settings.check_media_url(images[source.index].url)
            except _Transient as error:
                if attempt >= _DOWNLOAD_ATTEMPTS:
                    raise GptImgMediaError(f"{source} could not be downloaded from {_shown(url)}: {error}") from error
                pause = backoff(attempt, None, random.uniform)
                self._log.warning("%s: %s; trying again in %.1f s", source, error, pause)
                time.sleep(pause)

    def _download(self, source: _Source, url: str, file: IO[bytes]) -> _Download:
        try:
            with self._client(url).stream(
                "GET", url, headers={"accept": "image/*", "accept-encoding": "identity"}
            ) as answer:
                self._check_answer(source, answer)
                return self._receive(source, answer, file)
        except (httpx.RequestError, OSError) as error:
            raise _Transient(f"{type(error).__name__}: {error}") from error

    def _client(self, url: str) -> httpx.Client:
        origin = Origin.of(url)
        with self._clients_lock:
            if origin not in self._clients:
                self._clients[origin] = self._stack.enter_context(sync_client(self._settings, origin))
            return self._clients[origin]

    def _check_answer(self, source: _Source, answer: httpx.Response) -> None:
        status = answer.status_code
        if status in (403, 404, 410):
            raise _Gone(f"HTTP {status}")
        if status == 429 or status >= 500:
            raise _Transient(f"HTTP {status}")
        if status != 200:
            why = "a redirect, which is not followed" if 300 <= status < 400 else "no image"
            raise GptImgMediaError(f"{source}: {_shown(str(answer.url))} answered with {why}", http_status=status)
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_image_bytes:
            raise self._too_large(source, int(length))

    def _too_large(self, source: _Source, size: int) -> GptImgMediaError:
        return GptImgMediaError(
            f"{source} has {size} bytes or more, max_image_bytes={self._max_image_bytes} are allowed: "
            "raise it if that is right"
        )

    def _receive(self, source: _Source, answer: httpx.Response, file: IO[bytes]) -> _Download:
        digest = hashlib.sha256()
        size, head = 0, b""
        image_format: ImageFormat | None = None
        finders: tuple[EndFinder, PixelsFinder] | None = None
        started = time.monotonic()
        for chunk in answer.iter_bytes():
            size += len(chunk)
            if size > self._max_image_bytes:
                raise self._too_large(source, size)
            taken = time.monotonic() - started - self._settings.call_timeout
            if taken > 0 and size < taken * _SLOWEST:
                raise _Transient(f"it sent {size} bytes in {taken + self._settings.call_timeout:.0f} s")
            if finders is None:
                head += chunk
                if len(head) >= HEAD_BYTES:
                    image_format = self._format(source, head)
                    finders = EndFinder(image_format), PixelsFinder(image_format)
                    for finder in finders:
                        finder.feed(head)
            else:
                for finder in finders:
                    finder.feed(chunk)
            digest.update(chunk)
            file.write(chunk)
        if image_format is None or finders is None:
            raise self._not_an_image(source, head)
        end, size_in_pixels = finders
        told = "content-length" in answer.headers or "chunked" in answer.headers.get("transfer-encoding", "")
        if end.is_cut or not (told or end.ends_well):
            raise _Transient(f"it is cut: {size} bytes came, and its end was not among them")
        return _Download(size, digest.digest(), image_format, size_in_pixels.pixels)

    def _format(self, source: _Source, head: bytes) -> ImageFormat:
        image_format = read_format(head)
        if image_format is None:
            raise self._not_an_image(source, head)
        return image_format

    def _not_an_image(self, source: _Source, head: bytes) -> GptImgMediaError:
        return GptImgMediaError(
            f"{source} is no PNG, JPEG or WebP: {_shown(source.image.url)} starts with {head[:HEAD_BYTES]!r}"
        )

    def _put(self, source: _Source, url: str, file: IO[bytes], download: _Download) -> MirroredObject:
        bucket, key = self._pattern.bucket, self._pattern.key(source.task_id, source.index, download.format.extension)
        arguments: dict[str, Any] = {
            **self._put_arguments,
            "Bucket": bucket,
            "Key": key,
            "ContentType": download.format.content_type,
            "ContentLength": download.size,
            "ChecksumSHA256": base64.b64encode(download.digest).decode(),
            "Metadata": {**self._put_arguments.get("Metadata", {}), **_metadata(source, url, download)},
        }
        if not self._replace:
            arguments["IfNoneMatch"] = "*"
        etag = self._put_once(file, arguments)
        if etag is None:
            # The key was taken meanwhile, perhaps by this very PUT, whose answer was lost.
            known = _own(self._head(key) or {}, bucket, key, source)
            if known is None or known.sha256 != download.digest.hex():
                raise self._taken(key)
            return known
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
            skipped=False,
            pixels=download.pixels,
        )

    def _put_once(self, file: IO[bytes], arguments: dict[str, Any]) -> str | None:
        """Put the object and return its ETag; None if its key is taken."""
        for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
            file.seek(0)
            try:
                return str(self._s3.put_object(Body=file, **arguments)["ETag"]).strip('"')
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code", "")
                uri = f"s3://{arguments['Bucket']}/{arguments['Key']}"
                if code in ("PreconditionFailed", "412"):
                    return None
                if code == "NotImplemented" and "IfNoneMatch" in arguments:
                    self._log.warning("This S3 store knows no conditional writes: another writer of %s would win", uri)
                    if self._head(arguments["Key"]) is not None:
                        return None
                    del arguments["IfNoneMatch"]
                    continue
                if code in _REFUSED_BY_S3:
                    raise GptImgRequestError(f"S3 refuses to write {uri}: {error}") from error
                if code != "ConditionalRequestConflict" or attempt == _DOWNLOAD_ATTEMPTS:
                    raise
                time.sleep(backoff(attempt, None, random.uniform))
        raise GptImgError("unreachable")


def _metadata(source: _Source, url: str, download: _Download) -> dict[str, str]:
    """Return what lets a later run know its own object."""
    metadata = {
        "gptimg-task-id": source.task_id,
        "gptimg-index": str(source.index),
        "gptimg-sha256": download.digest.hex(),
    }
    if download.pixels:
        metadata |= {"gptimg-width": str(download.pixels.width), "gptimg-height": str(download.pixels.height)}
    shown = quote(url, safe=string.punctuation)
    if len(shown) <= 1024:  # S3 takes 2 KB of metadata in all
        metadata["gptimg-source-url"] = shown
    return metadata


def _own(head: Mapping[str, Any], bucket: str, key: str, source: _Source) -> MirroredObject | None:
    """Return the object that `head` describes if it is this very image, whole and unchanged."""
    metadata = head.get("Metadata") or {}
    sha256 = metadata.get("gptimg-sha256", "")
    if metadata.get("gptimg-task-id") != source.task_id or metadata.get("gptimg-index") != str(source.index):
        return None
    checksum = head.get("ChecksumSHA256")
    if not sha256 or (checksum and checksum != base64.b64encode(bytes.fromhex(sha256)).decode()):
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


def _read_pixels(metadata: Mapping[str, str]) -> Pixels | None:
    sizes = metadata.get("gptimg-width", ""), metadata.get("gptimg-height", "")
    return Pixels(*map(int, sizes)) if all(size.isdecimal() for size in sizes) else None


def _shown(url: str) -> str:
    return url.split("?", 1)[0][:200]
