# SPDX-License-Identifier: Apache-2.0
"""One async client per event loop and connection, shared by all triggers that wait there.

A client a trigger would mean a TLS context, a handshake and a socket for each wait. A semaphore guards
aiohttp's pool, so that waiting in line counts against no time-out, and the number of sockets is bounded whatever the
number of waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from inspect import signature
from ssl import SSLContext
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import hdrs

from airflow_provider_gptimg.api.answers import Answer, NoAnswer
from airflow_provider_gptimg.api.calls import Call, poll_call
from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS, Sleep, converse
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgError
from airflow_provider_gptimg.hooks.connection import ConnectionSettings, name_connection
from airflow_provider_gptimg.hooks.decoding import BodyError, BoundedBody
from airflow_provider_gptimg.hooks.http import MAX_ANSWER, make_answer, request_headers, why_not
from airflow_provider_gptimg.hooks.network import proxy_for, tls_context

__all__ = ["SharedClient", "shared_client"]

log: logging.Logger = logging.getLogger(__name__)

KEEP_ALIVE = 75.0
"""Seconds an idle connection is kept: longer than any usual poll interval, or each poll would open one."""
_MAX_HEADER = 64 * 1024
"""Bytes of an answer's header line: as many as a worker's own client takes, where aiohttp has 8 KiB."""
_LARGEST_READ = 4 * 1024
_FRESH = 60.0
"""Seconds for which a connection's fields, once read, serve."""


@dataclass(frozen=True)
class _Way:
    """One way to reach the API. A changed connection makes a new one while calls go on over the old."""

    context: SSLContext
    proxy: str | None
    max_connections: int
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore


class SharedClient:
    """The calls that triggers make over one connection. Get one by :func:`shared_client`."""

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.users: int = 0
        self._settings: ConnectionSettings | None = None
        self._headers: dict[str, str] = {}
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()
        self._ways: list[_Way] = []
        """The last one counts."""

    async def settings(self, stale: ConnectionSettings | None = None) -> ConnectionSettings:
        """Return what the connection says, read once for all triggers that start together.

        :param stale: What a caller found to be out of date; it is read again unless another caller has just done so.
        :raises GptImgError: The connection is wrong or missing.
        """
        async with self._lock:
            age = time.monotonic() - self._read_at
            if self._settings is None or age > _FRESH or (self._settings is stale and age > 1.0):
                settings = await ConnectionSettings.aload(self.conn_id)
                await self._open(settings)
                self._headers = request_headers(settings)
                self._settings, self._read_at = settings, time.monotonic()
            return self._settings

    async def get_task(self, task_id: str, max_attempts: int = MAX_ATTEMPTS) -> ImageTask:
        """Ask for an image task. If the key is rejected, the connection is read once more before that counts.

        :param max_attempts: How often to send the request while it fails in a way that may pass.
        :raises GptImgError: As :meth:`GptImgHook.get_task`.
        """
        settings = self._settings
        if settings is None or time.monotonic() - self._read_at > _FRESH:
            settings = await self._read_again()
        try:
            return await self._drive(settings, task_id, max_attempts)
        except GptImgError as error:
            if error.http_status not in (401, 403):
                raise
            fresh = await self._read_again(stale=settings)
            if fresh == settings:
                raise
        return await self._drive(fresh, task_id, max_attempts)

    async def _read_again(self, stale: ConnectionSettings | None = None) -> ConnectionSettings:
        """Return the settings, read again; if that fails while waits are under way, those from before."""
        try:
            return await self.settings(stale)
        except Exception as error:
            if self._settings is None:
                raise
            self._read_at = time.monotonic()
            log.warning(
                "Connection %r cannot be read again (%s): waits go on with what it said before",
                self.conn_id,
                type(error).__name__,
            )
            return self._settings

    async def _drive(self, settings: ConnectionSettings, task_id: str, max_attempts: int) -> ImageTask:
        settings.refuse_key(task_id)
        conversation = converse(poll_call(task_id), max_attempts=max_attempts)
        outcome: Answer | NoAnswer | None = None
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Sleep):
                    await asyncio.sleep(step.seconds)
                    outcome = None
                else:
                    way = self._ways[-1]
                    async with way.slots:
                        # As headers and URL are: of the connection as it was read last.
                        outcome = await self._exchange(way, self._settings or settings, step)
                step = conversation.send(outcome)
        except GptImgAuthError as error:
            raise name_connection(error, self.conn_id) from None
        except StopIteration as done:
            task: ImageTask = done.value
            return task

    async def _exchange(self, way: _Way, settings: ConnectionSettings, call: Call) -> Answer | NoAnswer:
        """Send `call`, a read, and return what came of it; `http.exchange` for an event loop."""
        response: aiohttp.ClientResponse | None = None
        try:
            async with (
                asyncio.timeout(settings.call_timeout),
                way.session.get(
                    settings.base_url + call.path, headers=self._headers, proxy=way.proxy, allow_redirects=False
                ) as response,
            ):
                body, flaw = await _receive(response)
        except (aiohttp.ClientError, OSError) as error:
            if response is None or response.status != 429:
                return NoAnswer(why_not(error, settings, isinstance(error, TimeoutError)), sent=True)
            body, flaw = b"", None  # the headers of a 429 say all that is needed
        return make_answer(response.status, response.raw_headers, body, flaw, settings)

    async def _open(self, settings: ConnectionSettings) -> None:
        """Open a way to the API, unless the last one still fits."""
        context = await asyncio.to_thread(tls_context, settings.verify)
        proxy = proxy_for(settings.origin)
        if self._ways:
            last = self._ways[-1]
            if (last.context, last.proxy, last.max_connections) == (context, proxy, settings.max_connections):
                return
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=settings.max_connections, keepalive_timeout=KEEP_ALIVE, ssl=context, **_SOCKETS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # each call has one, from its first byte to its last
            auto_decompress=False,  # it would decode without a bound
            max_field_size=_MAX_HEADER,
        )
        slots = asyncio.Semaphore(settings.max_connections)
        self._ways.append(_Way(context, proxy, settings.max_connections, session, slots))

    async def __aenter__(self) -> SharedClient:
        self.users += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        self.users -= 1
        if not self.users:
            _clients[asyncio.get_running_loop()].pop(self.conn_id, None)
            await self.aclose()

    async def aclose(self) -> None:
        """Close all its connections."""
        for way in self._ways:
            await way.session.close()


class _SmallReads(socket.socket):
    """A socket that is read in pieces of 4 KiB, between which the event loop turns to other waits.

    A flood of informational answers (1xx, 25 bytes each) would else be parsed by the thousand in one go.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, _LARGEST_READ), flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        return super().recv_into(buffer, min(size or len(buffer), _LARGEST_READ), flags)


def _small_reads(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, *_ = address
    return _SmallReads(family, kind, protocol)


# From aiohttp 3.12 on.
_SOCKETS: dict[str, Any] = (
    {"socket_factory": _small_reads} if "socket_factory" in signature(aiohttp.TCPConnector).parameters else {}
)


async def _receive(response: aiohttp.ClientResponse) -> tuple[bytes, str | None]:
    """Return the body, and the reason if it could not be read."""
    length = response.content_length
    if length is not None and length <= MAX_ANSWER and hdrs.CONTENT_ENCODING not in response.headers:
        return await response.content.read(), None  # as nearly all are: in one piece
    body = bytearray()
    try:
        bounded = BoundedBody(", ".join(response.headers.getall(hdrs.CONTENT_ENCODING, ())), MAX_ANSWER)
        async for chunk in response.content.iter_any():
            for piece in bounded.feed(chunk):
                body += piece
        bounded.end()
    except BodyError as error:
        response.close()
        return b"", f"the body {error}"
    return bytes(body), None


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, SharedClient]] = WeakKeyDictionary()


def shared_client(conn_id: str) -> SharedClient:
    """Return the running loop's client for connection `conn_id`, to be entered: the last one to leave closes it."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if conn_id not in clients:
        clients[conn_id] = SharedClient(conn_id)
    return clients[conn_id]
