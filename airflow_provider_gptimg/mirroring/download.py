# SPDX-License-Identifier: Apache-2.0
"""How an image's bytes come from their host: streamed into a file, checked on the way, and whole."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import IO

import httpx

from airflow_provider_gptimg.exceptions import GptImgMediaError
from airflow_provider_gptimg.hooks.connection import ConnectionSettings
from airflow_provider_gptimg.hooks.http import sync_client
from airflow_provider_gptimg.hooks.origin import Origin
from airflow_provider_gptimg.mirroring.images import (
    HEAD_BYTES,
    EndFinder,
    ImageFormat,
    Pixels,
    PixelsFinder,
    read_format,
)

__all__ = ["Download", "Downloader", "GoneError", "TransientError", "without_query"]

_SLOWEST = 16 * 1024
"""Bytes a second that a download must reach on average once a call's timeout has passed."""


@dataclass(frozen=True)
class Download:
    """What came: an image, whole.

    :param size: Bytes.
    :param digest: Its sha256.
    :param format: As its bytes say, whatever was declared.
    """

    size: int
    digest: bytes
    format: ImageFormat
    pixels: Pixels | None


class TransientError(Exception):
    """A download that may well succeed when tried again."""


class GoneError(Exception):
    """The URL does not serve the image: not any more, or not yet.

    :param for_good: Whether the host says that it never will.
    """

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


class Downloader:
    """Downloads images, from several threads if need be, with one client for each host. Close it after use.

    :param max_image_bytes: Larger images are refused.
    """

    def __init__(self, settings: ConnectionSettings, max_image_bytes: int) -> None:
        self._settings = settings
        self._max_image_bytes = max_image_bytes
        self._clients: dict[Origin, httpx.Client] = {}
        self._clients_lock = Lock()
        self._stack = ExitStack()

    def close(self) -> None:
        """Close all its connections."""
        self._stack.close()

    def download(self, url: str, file: IO[bytes], name: str) -> Download:
        """Write the image at `url` into `file`.

        :param name: Stands for the image in errors.
        :raises TransientError: It did not come, or not all of it.
        :raises GoneError: It is not there any more.
        :raises GptImgMediaError: It is no image, or too large.
        """
        headers = {"accept": "image/*", "accept-encoding": "identity"}
        try:
            with self._client(url).stream("GET", url, headers=headers) as answer:
                self._check_answer(answer, name)
                return self._receive(answer, file, name)
        except (httpx.RequestError, OSError) as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error

    def _client(self, url: str) -> httpx.Client:
        origin = Origin.of(url)
        with self._clients_lock:
            if origin not in self._clients:
                self._clients[origin] = self._stack.enter_context(sync_client(self._settings, origin))
            return self._clients[origin]

    def _check_answer(self, answer: httpx.Response, name: str) -> None:
        status = answer.status_code
        if status in (403, 404, 408, 410, 421, 425):
            raise GoneError(f"HTTP {status}", for_good=status == 410)
        if status == 429 or status >= 500:
            raise TransientError(f"HTTP {status}")
        if status != 200:
            why = "a redirect, which is not followed" if 300 <= status < 400 else "no image"
            raise GptImgMediaError(f"{name}: {without_query(str(answer.url))} answered with {why}", http_status=status)
        length = answer.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_image_bytes:
            raise self._too_large(name, int(length))

    def _too_large(self, name: str, size: int) -> GptImgMediaError:
        return GptImgMediaError(
            f"{name} has {size} bytes or more, max_image_bytes={self._max_image_bytes} are allowed: "
            "raise it if that is right"
        )

    def _receive(self, answer: httpx.Response, file: IO[bytes], name: str) -> Download:
        digest = hashlib.sha256()
        size, head = 0, b""
        image_format: ImageFormat | None = None
        finders: tuple[EndFinder, PixelsFinder] | None = None
        started = time.monotonic()
        for chunk in answer.iter_bytes():
            size += len(chunk)
            if size > self._max_image_bytes:
                raise self._too_large(name, size)
            taken = time.monotonic() - started - self._settings.call_timeout
            if taken > 0 and size < taken * _SLOWEST:
                raise TransientError(f"it sent {size} bytes in {taken + self._settings.call_timeout:.0f} s")
            if finders is None:
                head += chunk
                if len(head) >= HEAD_BYTES:
                    image_format = read_format(head)
                    if image_format is None:
                        break
                    finders = EndFinder(image_format), PixelsFinder(image_format)
                    for finder in finders:
                        finder.feed(head)
            else:
                for finder in finders:
                    finder.feed(chunk)
            digest.update(chunk)
            file.write(chunk)
        if image_format is None or finders is None:
            shown = without_query(str(answer.url))
            raise GptImgMediaError(f"{name} is no PNG, JPEG or WebP: {shown} starts with {head[:HEAD_BYTES]!r}")
        end, pixels = finders
        told = "content-length" in answer.headers or "chunked" in answer.headers.get("transfer-encoding", "")
        if end.is_cut or not (told or end.ends_well):
            raise TransientError(f"it is cut: {size} bytes came, and its end was not among them")
        return Download(size, digest.digest(), image_format, pixels.pixels)


def without_query(url: str) -> str:
    """Return `url` as it may be shown: a query may hold a signature."""
    return url.split("?", 1)[0][:200]
