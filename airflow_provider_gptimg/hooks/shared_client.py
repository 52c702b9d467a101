# SPDX-License-Identifier: Apache-2.0
"""One async client per event loop and connection, shared by all triggers that wait there.

A client a trigger would mean a TLS context, a handshake and a socket for each wait. The client speaks httpx's
API over aiohttp's connection pool: httpx's own pool walks all its connections for each request, so its cost
grows with requests in line times connections. A semaphore stands in front, so that waiting in line counts
against no time-out and the number of sockets is bounded whatever the number of waits.
"""

from __future__ import annotations

import asyncio
import gc
import time
from functools import cache
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from airflow_provider_gptimg.api.answers import Answer, NoAnswer
from airflow_provider_gptimg.api.calls import Call, poll_call
from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS, Sleep, converse
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgAuthError
from airflow_provider_gptimg.hooks.connection import ConnectionSettings
from airflow_provider_gptimg.hooks.http import async_exchange, proxy_for, tls_context

__all__ = ["MAX_CONNECTIONS", "SharedClient", "shared_client"]

MAX_CONNECTIONS = 36
KEEP_ALIVE = 75.0
"""Seconds an idle connection is kept: longer than any usual poll interval, or each poll would open one."""
_MAX_HEADER = 64 * 1024
"""Bytes of an answer's header line: as many as a worker's own client takes, where aiohttp has 8 KiB."""
_FRESH = 60.0
"""Seconds for which a connection's fields, once read, serve further triggers."""


class SharedClient:
    """The calls that triggers make over one connection. Get one by :func:`shared_client`."""

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.users = 0
        self._settings: ConnectionSettings | None = None
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._transports: list[AiohttpTransport] = []
        """One for each TLS context and proxy that the connection asked for. The last one counts; over the others
        calls may be under way, and their idle connections close by themselves."""

    async def settings(self, stale: ConnectionSettings | None = None) -> ConnectionSettings:
        """Return what the connection says, read once for all triggers that start together.

        :param stale: What a caller found to be out of date; it is read anew unless another caller has just done so.
        """
        async with self._lock:
            age = time.monotonic() - self._read_at
            if self._settings is None or age > _FRESH or (self._settings is stale and age > 1.0):
                from airflow_provider_gptimg.airflow_compat import get_async_connection

                settings = ConnectionSettings.read(await get_async_connection(self.conn_id))
                if self._settings is None or not _same_way(self._settings, settings):
                    self._transports.append(await self._open(settings))
                self._settings, self._read_at = settings, time.monotonic()
            return self._settings

    async def get_task(self, task_id: str, max_attempts: int = MAX_ATTEMPTS) -> ImageTask:
        """Ask for an image task. A rejected key is read anew, once, before it counts.

        :param max_attempts: How often to send the request while it fails in a way that may pass.
        :raises GptImgError: As :meth:`GptImgHook.get_task`.
        """
        call = poll_call(task_id)
        settings = self._settings or await self.settings()
        try:
            return await self._drive(settings, call, max_attempts)
        except GptImgAuthError:
            fresh = await self.settings(stale=settings)
            if fresh == settings:
                raise
            return await self._drive(fresh, call, max_attempts)

    async def _drive(self, settings: ConnectionSettings, call: Call, max_attempts: int) -> ImageTask:
        conversation = converse(call, max_attempts=max_attempts)
        outcome: Answer | NoAnswer | None = None
        try:
            step = next(conversation)
            while True:
                if isinstance(step, Sleep):
                    await asyncio.sleep(step.seconds)
                    outcome = None
                else:
                    async with self._slots:
                        outcome = await async_exchange(self._transports[-1], settings, step)
                step = conversation.send(outcome)
        except StopIteration as done:
            task: ImageTask = done.value
            return task

    async def _open(self, settings: ConnectionSettings) -> AiohttpTransport:
        context = await asyncio.to_thread(tls_context, settings.verify)
        proxy = proxy_for(settings.origin)

        def session() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE, ssl=context)
            return aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), max_field_size=_MAX_HEADER
            )

        # No time-outs of its own: each call has one, from its first byte to its last.
        return AiohttpTransport(
            verify=context, client=session, proxy=httpx.Proxy(proxy) if proxy else None, trust_env=False
        )

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
        for transport in self._transports:
            await transport.aclose()


def _same_way(one: ConnectionSettings, other: ConnectionSettings) -> bool:
    """Whether one transport serves both: by TLS context, and by proxy, which the origin decides."""
    return (one.verify, one.origin) == (other.verify, other.origin)


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, SharedClient]] = WeakKeyDictionary()


def shared_client(conn_id: str) -> SharedClient:
    """Return the running loop's client for connection `conn_id`, to be entered: the last one to leave closes it."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    client = clients.get(conn_id)
    if client is None:
        _leave_loaded_alone()
        client = clients[conn_id] = SharedClient(conn_id)
    return client


@cache
def _leave_loaded_alone() -> None:
    """Keep the garbage collector off what the process has loaded so far, once.

    With 1,000 waits a full collection comes every 45 s. It would look through the 200,000 objects of Airflow's own
    modules each time, and block the event loop for 150 to 200 ms; without them it takes 15 to 30 ms. Only once, and
    before the first wait, since a reference cycle that is left alone is never freed.
    """
    gc.freeze()
