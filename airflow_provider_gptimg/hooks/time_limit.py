# SPDX-License-Identifier: Apache-2.0
"""Bound a call with httpx from its first byte to its last, by httpcore's trace events.

Seen with httpcore 1.0.9; `tests/unit/hooks/test_both_clients.py` holds it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import httpx

__all__ = ["TimeLimit"]


class TimeLimit:
    """End a call when its time is up by closing its connection. httpx itself restarts its time-out at each read.

    Use it as a context around the whole call, and pass `extensions={"trace": limit.trace}` to httpx.

    :param seconds: From entering the context.
    :param before_send: Called when the connection is made, right before the first byte; what it raises is raised.
    """

    def __init__(self, seconds: float, before_send: Callable[[], None] | None = None) -> None:
        self.is_over: bool = False
        self.only_asked_proxy: bool = False
        """True if only the CONNECT to a proxy went out: then the call itself was not sent."""
        self._seconds = seconds
        self._before_send = before_send
        self._stream: Any = None
        self._started = 0.0

    def __enter__(self) -> TimeLimit:
        self._started = time.monotonic()
        self._watch = _watch_of(os.getpid())
        self._watch.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.remove(self)

    @property
    def ends_at(self) -> float:
        """When its time is up, by the monotonic clock."""
        return self._started + self._seconds

    def allow(self, seconds: float) -> None:
        """Let the call take so many seconds from its start, rather than those that it was begun with."""
        self._seconds = seconds

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Take the connection that the call uses, once it is made; httpx calls this as its `trace` extension.

        httpcore logs `info` afterwards at level DEBUG. What a server wrote is taken out of it: its headers may echo
        the key.
        """
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            if self.is_over:
                raise httpx.ConnectTimeout(f"no connection in {self._seconds:g} s")
            self.take(info["return_value"])
        elif event.endswith(".send_request_headers.started"):
            self.only_asked_proxy = info["request"].method == b"CONNECT"
            if self._before_send is not None and not self.only_asked_proxy:
                self._before_send()
        elif event.endswith(".receive_response_headers.complete"):
            info["return_value"] = info["return_value"][:2]  # HTTP version and status
        if event.endswith(".failed"):
            info["exception"] = type(info["exception"]).__name__

    def take(self, stream: Any) -> None:
        """Close this connection when time is up; needed for a kept connection, which is not made again.

        :param stream: `response.extensions["network_stream"]`.
        """
        self._stream = stream

    def end(self) -> None:
        """Close the connection: the time is up."""
        self.is_over = True
        if self._stream is not None:
            with suppress(Exception):  # closed already, say: one call must not keep the others from their end
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class _Watch:
    """Ends the calls of a process whose time is up, with one thread for all: a thread for each call costs more."""

    def __init__(self) -> None:
        self._limits: set[TimeLimit] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0

    def add(self, limit: TimeLimit) -> None:
        with self._changed:
            self._limits.add(limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gptimg-time-limit", daemon=True)
                self._thread.start()
            elif limit.ends_at < self._wakes_at:
                self._changed.notify()

    def remove(self, limit: TimeLimit) -> None:
        with self._changed:
            self._limits.discard(limit)

    def _run(self) -> None:
        with self._changed:
            while self._limits:
                now = time.monotonic()
                for limit in [limit for limit in self._limits if limit.ends_at <= now]:
                    self._limits.discard(limit)
                    limit.end()
                self._wakes_at = min((limit.ends_at for limit in self._limits), default=now)
                self._changed.wait(max(0.0, self._wakes_at - now))
            self._thread = None


@lru_cache(maxsize=1)
def _watch_of(pid: int) -> _Watch:
    """Return the watch of process `pid`: a forked one has no thread, and perhaps a lock that nobody opens."""
    return _Watch()
