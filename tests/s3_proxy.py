# SPDX-License-Identifier: Apache-2.0
"""A proxy in front of an S3 server that refuses, fails or loses what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import NamedTuple

import aiohttp
import pytest
from aiohttp import web

__all__ = ["BEHAVIOURS", "CUT", "LOST", "Refusal", "S3Proxy", "proxied_s3", "s3_proxy"]

Refusal = tuple[int, str]
"""An HTTP status and an S3 error code, or 200 and a body."""

LOST = (0, "the answer is lost, the request was carried out")
CUT = (0, "the connection ends before the request was carried out")


BEHAVIOURS = {
    "go-headers": "names of metadata come capitalised, as servers and proxies written in Go send them",
    "no-conditions": "If-None-Match and If-Match are ignored",
    "no-etag": "no answer has an ETag",
    "weak-etag": "ETags are marked as weak",
    "no-list": "listing is refused with 405",
    "express": "listing is refused with 400, as S3 Express does for a prefix without a slash at its end",
    "no-unsigned": "a body whose signature does not cover it is denied",
    "no-checksums": "checksum headers are refused",
    "304": "Not Modified is the answer to a condition that does not hold, as older MinIO has it",
    "501": "conditional writes are not implemented",
}
"""What a store behind the proxy may do that AWS does not."""


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
        self.behaviours: frozenset[str] = frozenset()
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

    def behave(self, *behaviours: str) -> None:
        """Behave like this from now on; see :data:`BEHAVIOURS`."""
        assert BEHAVIOURS.keys() >= set(behaviours)
        self.behaviours = frozenset(behaviours)

    def _quirk(self, request: web.Request) -> Refusal | None:
        """Return the refusal that the behaviours have for a request."""
        headers = request.headers
        is_list = "list-type" in request.query
        refusals = {
            "no-list": is_list and (405, "MethodNotAllowed"),
            "express": is_list and not request.query.get("prefix", "/").endswith("/") and (400, "InvalidRequest"),
            "no-unsigned": headers.get("x-amz-content-sha256") == "UNSIGNED-PAYLOAD" and (403, "AccessDenied"),
            "no-checksums": any("x-amz-checksum" in name.lower() for name in headers) and (400, "InvalidRequest"),
            # RFC 9110: If-Match compares strongly, so that a weak tag never matches.
            "weak-etag": headers.get("if-match", "").startswith("W/") and (412, "PreconditionFailed"),
            "501": "if-none-match" in headers and (501, "NotImplemented"),
        }
        return next((refusals[one] for one in self.behaviours if refusals.get(one)), None)

    def _answered(self, request: web.Request, status: int, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        """Return an answer's status and headers as the behaviours have them."""
        if "304" in self.behaviours and status == 412:
            status = 304
        if "go-headers" in self.behaviours:
            headers = {name.title() if "-meta-" in name.lower() else name: value for name, value in headers.items()}
        if "no-etag" in self.behaviours:
            headers = {name: value for name, value in headers.items() if name.lower() != "etag"}
        if "weak-etag" in self.behaviours:
            headers = {name: f"W/{value}" if name.lower() == "etag" else value for name, value in headers.items()}
        return status, headers

    def _refusal(self, request: web.Request) -> Refusal | None:
        if refusal := self.rule(request) or self._quirk(request):
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
        if "no-conditions" in self.behaviours:
            headers = {name: value for name, value in headers.items() if not name.startswith("if-")}
        async with self._session.request(
            request.method, f"{self._backend}{request.raw_path}", headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
            if refusal == LOST:
                return _hang_up(request)
            kept = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            status, kept = self._answered(request, answer.status, kept)
            if status == 304:
                content = b""
                kept.pop("Content-Length", None)
            return web.Response(status=status, headers=kept, body=content if request.method != "HEAD" else None)


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


@contextmanager
def proxied_s3(**config: object) -> Iterator[S3Proxy]:
    """Put a proxy between the connection `aws_default` and its store; botocore itself tries twice at the most.

    :param config: Further `config_kwargs` of the connection.
    """
    fields = json.loads(os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
    with s3_proxy(fields["extra"]["endpoint_url"]) as proxy, pytest.MonkeyPatch.context() as patch:
        fields["extra"]["endpoint_url"] = proxy.url
        fields["extra"]["config_kwargs"] = {"retries": {"total_max_attempts": 2, "mode": "standard"}, **config}
        patch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))
        yield proxy
