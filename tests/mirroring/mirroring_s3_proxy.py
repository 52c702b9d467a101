# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of an S3 server that refuses, fails or loses what a test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType

import aiohttp
from aiohttp import web

Refusal = tuple[int, str]

LOST = (0, "the answer is lost, the request was carried out")
CUT = (0, "the connection ends before the request was carried out")


class S3Proxy:
    """Hands requests on to `url`, but for those that `rule` has an answer for.

    `rule` gets the request and returns an HTTP status and an S3 error code (or 200 and a body), `LOST`, `CUT`, or None.
    """

    def __init__(self, url: str) -> None:
        self._backend = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""
        self.rule: Callable[[web.Request], Refusal | None] = lambda request: None
        self.requests: list[str] = []

    def __enter__(self) -> S3Proxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        refusal = self.rule(request)
        if refusal is CUT:
            await request.content.readany()
            return _hang_up(request)
        body = await request.read()
        if refusal not in (None, LOST):
            status, code = refusal
            text = code if status == 200 else f"<Error><Code>{code}</Code><Message>a test's wish</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "expect"}
        async with self._session.request(
            request.method, f"{self._backend}{request.raw_path}", headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            if refusal is LOST:
                return _hang_up(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            return web.Response(status=answer.status, headers=kept, body=content if request.method != "HEAD" else None)


def _hang_up(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.abort()
    return web.Response()
