# SPDX-License-Identifier: Apache-2.0
"""Download an image from its host into a file, check it on the way, and bound its bytes and its time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import IO, Any

import httpx

from airflow_provider_gptimg.api.texts import clean_url
from airflow_provider_gptimg.exceptions import GptImgMediaError
from airflow_provider_gptimg.hooks.connection import ConnectionSettings, Origin
from airflow_provider_gptimg.hooks.decoding import BodyError, BodyTooLargeError, BoundedBody
from airflow_provider_gptimg.hooks.http import sync_client
from airflow_provider_gptimg.hooks.time_limit import TimeLimit
from airflow_provider_gptimg.mirroring.images import HEAD_BYTES, ImageFormat, ImageReader, Pixels, read_format

__all__ = ["Download", "Downloader", "GoneError", "TransientError"]

_SLOWEST = 16 * 1024
"""Bytes per second that a download must average once a call's timeout has passed."""


@dataclass(frozen=True)
class Download:
    """A complete image.

    :param size: Bytes.
    :param digest: Its sha256.
    :param format: According to its bytes, whatever was declared.
    :param c2pa: Whether it has a C2PA manifest.
    """

    size: int
    digest: bytes
    format: ImageFormat
    pixels: Pixels | None
    c2pa: bool


class TransientError(Exception):
    """The download may succeed when tried again."""


class GoneError(Exception):
    """The URL does not serve the image: no longer, or not yet.

    :param for_good: True if the host says that it never will.
    """

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


@dataclass
class _Lane:
    """A client for one request at a time, and so for one connection.

    :param stream: The connection, once it is made.
    """

    client: httpx.Client
    stream: Any = None


class Downloader:
    """Downloads images over kept connections, from any number of threads. Close it after use.

    :param max_image_bytes: Larger images are refused.
    """

    def __init__(self, settings: ConnectionSettings, max_image_bytes: int) -> None:
        self._settings = settings
        self._max_image_bytes = max_image_bytes
        self._idle: dict[Origin, list[_Lane]] = defaultdict(list)
        self._lock = Lock()
        self._stack = ExitStack()

    def close(self) -> None:
        """Close all its connections."""
        self._stack.close()

    def download(self, url: str, file: IO[bytes], name: str) -> Download:
        """Write the image at `url` into `file`.

        Once the connection's `timeout` has passed, it ends as soon as fewer than 16 KiB a second have come on average,
        whatever else trickles in.

        :param name: Name of the image in errors.
        :raises TransientError: The image did not arrive, or not completely.
        :raises GoneError: The image is not there, no longer or not yet.
        :raises GptImgMediaError: It is not an image, or too large.
        """
        with TimeLimit(self._settings.call_timeout) as limit:
            try:
                with self._lane(url) as lane, self._open(lane, url, limit) as answer:
                    self._check_answer(answer, name)
                    return self._receive(answer, file, name, limit)
            except (httpx.RequestError, OSError) as error:
                if limit.is_over:
                    raise TransientError("it came too slowly") from error
                raise TransientError(f"{type(error).__name__}: {error}") from error

    @contextmanager
    def _lane(self, url: str) -> Iterator[_Lane]:
        origin = Origin.of(url)
        with self._lock:
            idle = self._idle[origin]
            lane = idle.pop() if idle else _Lane(self._stack.enter_context(sync_client(self._settings, origin)))
        try:
            yield lane
        finally:
            with self._lock:
                idle.append(lane)

    @contextmanager
    def _open(self, lane: _Lane, url: str, limit: TimeLimit) -> Iterator[httpx.Response]:
        """Yield the answer as soon as its headers have arrived."""
        limit.take(lane.stream)  # httpx reports no event when it uses a kept connection
        request = lane.client.build_request(
            "GET",
            url,
            headers={"accept": "image/*", "accept-encoding": "identity"},
            extensions={"trace": limit.trace},
        )
        answer = lane.client.send(request, stream=True)
        try:
            lane.stream = answer.extensions["network_stream"]
            limit.take(lane.stream)
            yield answer
        finally:
            answer.close()

    def _check_answer(self, answer: httpx.Response, name: str) -> None:
        status = answer.status_code
        if status in (403, 404, 408, 410, 421, 425):
            raise GoneError(f"HTTP {status}", for_good=status == 410)
        if status == 429 or status >= 500:
            raise TransientError(f"HTTP {status}")
        if status != 200:
            why = "a redirect, which is not followed" if 300 <= status < 400 else "no image"
            raise GptImgMediaError(f"{name}: {clean_url(str(answer.url))} answered with {why}", http_status=status)
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_image_bytes:
            raise self._too_large(name, int(length))

    def _too_large(self, name: str, size: int) -> GptImgMediaError:
        return GptImgMediaError(
            f"{name} has {size} bytes or more, max_image_bytes={self._max_image_bytes} are allowed: "
            "raise it if that is right"
        )

    def _receive(self, answer: httpx.Response, file: IO[bytes], name: str, limit: TimeLimit) -> Download:
        digest = hashlib.sha256()
        size, start = 0, b""
        reader: ImageReader | None = None
        image_format: ImageFormat | None = None
        for piece in self._pieces(answer, name, limit):
            size += len(piece)
            digest.update(piece)
            file.write(piece)
            if reader:
                reader.feed(piece)
                continue
            start += piece
            if len(start) >= HEAD_BYTES:
                image_format = read_format(start)
                if image_format is None:
                    break
                reader = ImageReader(image_format)
                reader.feed(start)
        if image_format is None or reader is None:
            shown = clean_url(str(answer.url))
            raise GptImgMediaError(f"{name} is not a PNG, JPEG or WebP: {shown} starts with {start[:HEAD_BYTES]!r}")
        told = "content-length" in answer.headers or "chunked" in answer.headers.get("transfer-encoding", "")
        if reader.is_cut or not (told or reader.ends_well):
            raise TransientError(f"it is cut: {size} bytes came, and its end was not among them")
        return Download(size, digest.digest(), image_format, reader.pixels, reader.c2pa)

    def _pieces(self, answer: httpx.Response, name: str, limit: TimeLimit) -> Iterator[bytes]:
        """Yield the decoded body, and count its bytes before they are held."""
        size = 0
        try:
            body = BoundedBody(answer.headers.get("content-encoding", ""), self._max_image_bytes)
            for chunk in answer.iter_raw():
                for piece in body.feed(chunk):
                    size += len(piece)
                    yield piece
                limit.allow(self._settings.call_timeout + size / _SLOWEST)
        except BodyTooLargeError:
            raise self._too_large(name, self._max_image_bytes + 1) from None
        except BodyError as error:
            raise GptImgMediaError(f"{name}: {clean_url(str(answer.url))} sent a body that {error}") from None
        try:
            body.end()
        except BodyError as error:
            raise TransientError(f"it is cut: the body {error}") from None
