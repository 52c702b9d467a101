# SPDX-License-Identifier: Apache-2.0
"""Bring the bytes of one picture from its host, within a time and a size that no host can stretch.

It runs on the server's event loop and keeps no thread, so a host that trickles costs a socket and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from airflow_provider_gptimg.hooks.http import USER_AGENT
from airflow_provider_gptimg.mirroring.images import HEAD_BYTES, read_format

__all__ = ["LARGEST", "LONGEST", "HostError", "Opened", "Source", "fetch"]

LONGEST = 45.0
"""Seconds for one picture in all, including the time that its viewer takes."""
LARGEST = 64 * 1024 * 1024
"""Bytes of the largest picture that is shown."""
_HOST_MAY_TAKE = 15.0
"""Seconds to wait for a host, over all reads of one picture."""


class HostError(Exception):
    """The host sent no picture.

    :param status: Its HTTP status; None: it did not answer in time, or not with an image.
    """

    def __init__(self, text: str, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers: Mapping[str, str] = headers or {}


@dataclass(frozen=True)
class Source:
    """The place of a picture.

    :param url: May hold a signature, so it must not be shown.
    :param verify: An SSL context.
    """

    url: str = field(repr=False)
    verify: Any = True
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Opened:
    """A picture on its way.

    :param content_type: As its bytes say.
    :param size: Bytes; None: unknown.
    :param chunks: Raises :class:`HostError` where they end too early, come too slowly or are too many.
    """

    content_type: str
    extension: str
    size: int | None
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def fetch(source: Source, check: Callable[[Mapping[str, str]], None] | None = None) -> AsyncIterator[Opened]:
    """Request a picture, and close the connection at the end.

    :param check: Called with the answer's headers before its body is read.
    :raises HostError: There is none.
    """
    patience = _Patience(_HOST_MAY_TAKE)
    async with AsyncExitStack() as stack:
        # The transport itself: a client would log the URL with its signature, and follow redirects.
        transport = await stack.enter_async_context(
            httpx.AsyncHTTPTransport(verify=source.verify, proxy=source.proxy, trust_env=False)
        )
        try:
            async with patience:
                answer = await transport.handle_async_request(_request(source.url))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise HostError(f"The host does not answer ({type(error).__name__})") from None
        stack.push_async_callback(answer.aclose)
        if answer.status_code != 200:
            raise HostError("The host has no such image", answer.status_code, answer.headers)
        if check is not None:
            check(answer.headers)
        length = answer.headers.get("content-length", "")
        size = int(length) if length.isdigit() and len(length) < 16 else None
        if (size or 0) > LARGEST:
            raise HostError(f"The image is larger than {LARGEST >> 20} MiB")
        chunks = _read(answer, patience)
        head = b""
        async for chunk in chunks:
            head += chunk
            if len(head) >= HEAD_BYTES:
                break
        found = read_format(head)
        if found is None:
            raise HostError("The file is not an image")
        yield Opened(found.content_type, found.extension, size, answer.headers, _together(head, chunks))


def _request(url: str) -> httpx.Request:
    # Without compression: a small answer could unpack to a huge one.
    headers = {"accept": "image/*", "accept-encoding": "identity", "user-agent": USER_AGENT}
    return httpx.Request("GET", url, headers=headers, extensions={"timeout": httpx.Timeout(_HOST_MAY_TAKE).as_dict()})


async def _read(answer: httpx.Response, patience: _Patience) -> AsyncIterator[bytes]:
    raw, size = answer.aiter_raw(), 0
    while True:
        try:
            async with patience:
                chunk = await anext(raw, None)
        except (httpx.HTTPError, OSError) as error:
            raise HostError(f"The image was cut ({type(error).__name__})") from None
        if chunk is None:
            return
        size += len(chunk)
        if size > LARGEST:
            raise HostError(f"The image is larger than {LARGEST >> 20} MiB")
        yield chunk


async def _together(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk


class _Patience:
    """A budget of seconds for waiting for a host."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    async def __aenter__(self) -> None:
        self._since = time.monotonic()
        self._timeout = asyncio.timeout(max(0.0, self._left))
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        self._left -= time.monotonic() - self._since
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            raise HostError("The host is too slow") from None
