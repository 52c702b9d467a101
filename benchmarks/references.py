# SPDX-License-Identifier: Apache-2.0
"""What the trigger is measured against, as triggers of their own: nothing, a bare aiohttp session, a bare socket.

All three spread their first polls over one interval, so they show what polling costs at its smoothest.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp
from airflow.triggers.base import BaseTrigger, TriggerEvent

__all__ = ["AiohttpWait", "EmptyWait", "HandWrittenWait", "always_false"]


async def always_false(response: Any) -> bool:
    """Say "not finished yet"; the response check that `HttpEventTrigger` needs."""
    return False


@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])


class EmptyWait(BaseTrigger):
    """Waits without polling: what a trigger costs Airflow itself."""

    def __init__(self, url: str, key: str, poll_interval: float) -> None:
        super().__init__()
        self.url = url
        self.key = key
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"url": self.url, "key": self.key, "poll_interval": self.poll_interval}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def poll(self) -> str:
        await asyncio.sleep(3600)
        return "processing"

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(random.uniform(0, self.poll_interval))
        while await self.poll() == "processing":
            await asyncio.sleep(self.poll_interval)
        yield TriggerEvent({"status": "finished"})


class AiohttpWait(EmptyWait):
    """One session for all: the reference."""

    session: ClassVar[aiohttp.ClientSession | None] = None

    async def poll(self) -> str:
        cls = type(self)
        if cls.session is None:
            cls.session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_tls_context(), keepalive_timeout=75)
            )
        headers = {"authorization": f"Bearer {self.key}", "accept": "application/json"}
        async with cls.session.get(self.url, headers=headers) as response:
            response.raise_for_status()
            answer = await response.json()
        status: str = answer["data"]["status"]
        return status


class HandWrittenWait(EmptyWait):
    """A GET written to a kept-alive connection by hand: the limit, for it knows of HTTP only what this needs."""

    idle: ClassVar[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = []

    async def poll(self) -> str:
        url = urlsplit(self.url)
        if self.idle:
            reader, writer = self.idle.pop()
        else:
            context = _tls_context() if url.scheme == "https" else None
            reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context)
        writer.write(
            f"GET {url.path} HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {self.key}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        answer = json.loads(await reader.readexactly(length))
        self.idle.append((reader, writer))
        status: str = answer["data"]["status"]
        return status
