# SPDX-License-Identifier: Apache-2.0
"""`Emulator`: the stand-in for Python code; its server runs on a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import Future
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from aiohttp import web

from airflow_provider_gptimg.emulator.control import control_routes
from airflow_provider_gptimg.emulator.faults import Faults
from airflow_provider_gptimg.emulator.server import Call, Server
from airflow_provider_gptimg.emulator.state import State
from airflow_provider_gptimg.emulator.tasks import LedgerEntry, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

__all__ = ["Emulator"]

_HOST = "127.0.0.1"
_REFERENCES_FIELD = "image_urls"


class Emulator:
    """A gpt-image-2 API on a loopback port; used in a `with` block, or between `start()` and `stop()`.

    :param port: TCP port on 127.0.0.1; 0 takes a free one.
    :param api_key: The key of the user `default`.
    :param credits: That user's balance at the start.
    :param durations: Shortest and longest time of a generation, in seconds.
    :param speed: How many times faster than `durations` generations are.
    :param seed: Makes ids, durations and chances repeatable; None: different each time.
    :param fail_rate: Share of accepted generations that fail and are refunded, 0 to 1.
    :param rate_limit_rate: Share of API calls that are answered 429, 0 to 1.
    :param reference_images_field: Name of the reference images' field in a submit's body.
    :param record_calls: False keeps no `calls`, for long runs.
    :param extra: The extra of `connection_json` and `connection_uri`, such as `{"poll_interval": 1}`.
    :param clock: Returns Unix seconds; generations end by it. Give your own to decide what time it is.
    """

    def __init__(
        self,
        port: int = 0,
        api_key: str = "gptimg-emulator-key",
        credits: int = 1000,
        durations: tuple[float, float] = (45.0, 60.0),
        speed: float = 1.0,
        seed: int | None = None,
        *,
        fail_rate: float = 0.0,
        rate_limit_rate: float = 0.0,
        reference_images_field: str = _REFERENCES_FIELD,
        record_calls: bool = True,
        extra: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.api_key = api_key
        self._state = State(
            api_key=api_key,
            credits=credits,
            durations=durations,
            speed=speed,
            fail_rate=fail_rate,
            seed=seed,
            clock=clock,
        )
        self._server = Server(
            self._state,
            Faults(),
            reference_images_field=reference_images_field,
            rate_limit_rate=rate_limit_rate,
            record_calls=record_calls,
            seed=seed,
        )
        self._extra = dict(extra or {})
        if reference_images_field != _REFERENCES_FIELD:
            self._extra.setdefault("reference_images_field", reference_images_field)
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self) -> Emulator:
        """Listen; raise `OSError` when the port is taken. After a `stop()`, port and state are as before."""
        if self._thread is not None:
            raise RuntimeError("the emulator is running already")
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(listening)), name="gptimg-emulator", daemon=True
        )
        self._thread.start()
        try:
            self._port = listening.result()
        except BaseException:
            self._thread = self._loop = None
            raise
        return self

    def stop(self) -> None:
        """Close all connections, answered or not, and stop listening."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = self._loop = None

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _run(self, listening: Future[int]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        # A client that goes away cancels its request, or held requests would wait for ever.
        runner = web.AppRunner(
            self._server.application(control_routes(self._server)),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.1,
        )
        try:
            await runner.setup()
            await web.TCPSite(runner, _HOST, self._port, backlog=1024).start()
            listening.set_result(runner.addresses[0][1])
        except BaseException as error:
            await runner.cleanup()
            listening.set_exception(error)
            return
        await self._stopping.wait()
        await runner.cleanup()

    @property
    def base_url(self) -> str:
        """The URL to put into the connection's host."""
        if not self._port:
            raise RuntimeError("the emulator has no address before it is started")
        return f"http://{_HOST}:{self._port}"

    @property
    def connection_json(self) -> str:
        """The Airflow connection to this emulator, as JSON; a value for `AIRFLOW_CONN_GPTIMG_DEFAULT`."""
        return json.dumps(
            {"conn_type": "gptimg", "host": self.base_url, "password": self.api_key, "extra": self._extra}
        )

    @property
    def connection_uri(self) -> str:
        """The same as a URI."""
        scheme, _, address = self.base_url.partition("://")
        uri = f"gptimg://:{quote(self.api_key, safe='')}@{address}/{scheme}"
        return f"{uri}?{urlencode({'__extra__': json.dumps(self._extra)})}" if self._extra else uri

    def add_key(self, key: str, credits: int = 100, user: str = "other") -> None:
        """Add a key. All keys of a user share balance and tasks, so `credits` counts only for a new user."""
        self._state.add_key(key, credits, user)

    def revoke_key(self, key: str) -> None:
        """Refuse the key from now on; raise `KeyError` when it is unknown."""
        self._state.revoke_key(key)

    def balance(self, user: str = "default") -> int:
        """Return the user's credits; raise `KeyError` for an unknown user."""
        return self._state.balance(user)

    def set_balance(self, n: int, user: str = "default") -> None:
        """Set the user's credits; the ledger does not show it."""
        self._state.set_balance(n, user)

    def add_task(
        self,
        prompt: str = "a cat",
        n: int = 1,
        status: str = "completed",
        duration: float | None = None,
        polls: int | None = None,
        error: str | dict[str, Any] | None = None,
        created_at: float | datetime | None = None,
        formats: Sequence[str] = ("png",),
        image_bytes: bytes | Sequence[bytes] | None = None,
        content_type: str | None = None,
        image_urls: Sequence[str] | None = None,
        user: str = "default",
    ) -> str:
        """Make a task without a submit, and free of charge; return its task id.

        :param n: Number of images, unless a list of `image_bytes` or `image_urls` says how many there are.
        :param status: What it ends as; any text, for ends that the API does not document. `processing` completes if
            `duration` or `polls` says when; else it waits for `finish()`.
        :param duration: Seconds from now until it ends, divided by the emulator's speed.
        :param polls: It ends at this poll (1: the first) instead of by the clock.
        :param error: It ends as failed, with this error.
        :param created_at: Unix seconds or an aware datetime; None: now.
        :param formats: `png`, `jpeg` or `webp` for each image in turn.
        :param image_bytes: Served as they are in place of drawn images.
        :param content_type: What the API and the image host declare, in place of the format's own.
        :param image_urls: What the API names in place of the image host's URLs.
        """
        task = self._state.add_task(
            user=user,
            prompt=prompt,
            n=n,
            status=status,
            duration=duration,
            polls=polls,
            error=error,
            created_at=created_at.timestamp() if isinstance(created_at, datetime) else created_at,
            formats=formats,
            image_bytes=image_bytes,
            content_type=content_type,
            image_urls=image_urls,
        )
        return task.task_id

    def finish(self, task_id: str, status: str = "completed", error: str | dict[str, Any] | None = None) -> None:
        """End a processing task now; raise `ValueError` when it has ended already."""
        self._state.finish(task_id, status, error)

    def task(self, task_id: str) -> Task:
        """Return the task as it is now; raise `KeyError` for an unknown id."""
        return self._state.task(task_id)

    @property
    def tasks(self) -> list[Task]:
        """All users' tasks as they are now, oldest first."""
        return self._state.tasks

    @property
    def ledger(self) -> list[LedgerEntry]:
        """Every charge and refund so far, in order."""
        return self._state.ledger

    @property
    def calls(self) -> list[Call]:
        """Every HTTP request seen so far, in order."""
        return list(self._server.calls)

    def fault(self, on: str, what: int | str, times: int | None = 1, **options: Any) -> None:
        """Let the next `times` calls go wrong (None: all, until `clear_faults()`); faults queue up in order.

        :param on: `submit`, `poll`, `image` or `any` of them.
        :param what: The documentation of the emulator has a table of the faults and their options.
        """
        self._server.faults.add(on, what, times, **options)

    def clear_faults(self) -> None:
        """Forget the faults that have not struck yet."""
        self._server.faults.clear()

    def waiting(self, what: str | None = None) -> int:
        """Return how many requests `hang_before`, `hang_after` or `stall` (None: any of them) holds now."""
        return self._server.holds.waiting(what)

    def release(self) -> None:
        """Let the held requests continue."""
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._server.release(), self._loop).result()

    @property
    def latency(self) -> float:
        """Seconds added to each answer of the API."""
        return self._server.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        self._server.latency = seconds

    @property
    def image_latency(self) -> float:
        """Seconds added to each answer of the image host."""
        return self._server.image_latency

    @image_latency.setter
    def image_latency(self, seconds: float) -> None:
        self._server.image_latency = seconds

    def reset(self) -> None:
        """Go back to the start: no tasks, faults, calls or ledger, the first key and balance, no latency."""
        self.release()
        self._server.reset()
