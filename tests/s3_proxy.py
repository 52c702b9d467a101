# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of an S3 server that refuses, fails or loses what a test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import NamedTuple

import aiohttp
from aiohttp import web

__all__ = ["CUT", "LOST", "Refusal", "S3Proxy", "s3_proxy"]

Refusal = tuple[int, str]
"""An HTTP status and an S3 error code, or 200 and a body."""

LOST = (0, "the answer is lost, the request was carried out")
CUT = (0, "the connection ends before the request was carried out")


class Seen(NamedTuple):
    """A request that came.

    :param target: Path with query.
    :param headers: By lower-case name.
    """

    method: str
    target: str
    headers: dict[str, str]


class S3Proxy:
    """Hands requests on to `backend`, but for those that `rule`, or else a fault, has an answer for."""

    def __init__(self, backend: str) -> None:
        self.url = ""
        self.rule: Callable[[web.Request], Refusal | None] = lambda request: None
        self.requests: list[Seen] = []
        self._backend = backend
        self._faults: list[tuple[str, Refusal, Iterator[bool]]] = []

    def fault(self, method: str, status: int, code: str, times: int | None = 1) -> None:
        """Give this answer, or `*LOST` or `*CUT`, to the next requests; to all where `times` is None."""
        self._faults.append((method, (status, code), repeat(True) if times is None else repeat(True, times)))

    def seen(self, method: str) -> int:
        """Return how many requests of this method came."""
        return sum(request.method == method for request in self.requests)

    async def start(self) -> None:
        """Listen on a free port of the loopback interface."""
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()
        await self._session.close()

    def _refusal(self, request: web.Request) -> Refusal | None:
        if refusal := self.rule(request):
            return refusal
        for method, refusal, left in self._faults:
            if method == request.method and next(left, False):
                return refusal
        return None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Seen(request.method, request.path_qs, headers))
        refusal = self._refusal(request)
        if refusal == CUT:
            await request.content.readany()
            return _hang_up(request)
        body = await request.read()
        if refusal not in (None, LOST):
            status, code = refusal
            text = code if status == 200 else f"<Error><Code>{code}</Code><Message>a test's wish</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        headers.pop("expect", None)
        async with self._session.request(
            request.method, f"{self._backend}{request.raw_path}", headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            if refusal == LOST:
                return _hang_up(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            return web.Response(status=answer.status, headers=kept, body=content if request.method != "HEAD" else None)


def _hang_up(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.abort()
    return web.Response()


@contextmanager
def s3_proxy(backend: str) -> Iterator[S3Proxy]:
    """Run a proxy of the S3 at `backend`, with an event loop and a thread of its own."""
    proxy, loop = S3Proxy(backend), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(proxy.start(), loop).result()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
