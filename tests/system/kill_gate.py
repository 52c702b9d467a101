# SPDX-License-Identifier: Apache-2.0
"""A gate between Airflow's workers and its API server, which stops a task exactly where it is to be killed."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientConnectorError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

# Of one connection each; and answers are to be readable here.
_NOT_PASSED_ON = (
    "accept-encoding",
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "transfer-encoding",
)


@dataclass
class Hold:
    """A call that a task is to be stopped at.

    :param run: The DAG run's conf holds this as `name`.
    :param call: As :func:`call_name` says.
    :param where: `request`: Airflow does not know of the call; `answer`: it does, and the task does not.
    """

    run: str
    call: str
    where: str
    reached: threading.Event = field(default_factory=threading.Event)
    way_on: Future[bool] = field(default_factory=Future)

    def let_go(self) -> None:
        """Pass the call, or its answer, on."""
        self.way_on.set_result(True)

    def drop(self) -> None:
        """Forget the call: whoever made it is dead."""
        self.way_on.set_result(False)


class Gate:
    """A proxy for the calls that workers make to Airflow's API server.

    :param store_latency: Seconds added to each call about a task's state store, on both ways.
    """

    def __init__(self, store_latency: float = 0.0) -> None:
        self.upstream = ""
        self._store_latency = store_latency
        self._runs: dict[str, str] = {}
        self._holds: list[Hold] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gate", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port.result()}"

    def __enter__(self) -> Gate:
        self._thread.start()
        self._port.result()
        return self

    def __exit__(self, *_: object) -> None:
        for hold in self._holds:
            hold.drop()
        assert self._loop
        assert self._stopping
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def hold(self, run: str, call: str, where: str) -> Hold:
        """Stop the next such call of a run."""
        hold = Hold(run, call, where)
        self._holds.append(hold)
        return hold

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port.set_result(runner.addresses[0][1])
        async with ClientSession(
            # A kept connection may be closed by the server just as a call goes out on it.
            connector=TCPConnector(force_close=True),
            timeout=ClientTimeout(120),
            skip_auto_headers=["Accept-Encoding"],
        ) as self._session:
            await self._stopping.wait()
            await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.Response:
        body = await request.read()
        call = self._call_of(request, body)
        latency = self._store_latency if "/store/ti/" in request.path else 0.0
        await asyncio.sleep(latency)
        await self._stop_at(request, call, "request")
        try:
            status, headers, content = await self._asked(request, body)
        except ClientConnectorError:
            return web.Response(status=502)
        if request.path.endswith("/run") and status == 200:
            self._runs[_task_instance(request)] = (json.loads(content)["dag_run"]["conf"] or {}).get("name", "")
        await asyncio.sleep(latency)
        await self._stop_at(request, call, "answer")
        return web.Response(status=status, headers=headers, body=content)

    def _call_of(self, request: web.Request, body: bytes) -> str | None:
        return call_name(request.method, request.path, body)

    def _run_of(self, request: web.Request) -> str | None:
        return self._runs.get(_task_instance(request))

    async def _asked(self, request: web.Request, body: bytes) -> tuple[int, CIMultiDict[str], bytes]:
        """Return what the API server answers."""
        url = URL(self.upstream + request.raw_path, encoded=True)
        headers = _end_to_end(request.headers)
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            return answer.status, _end_to_end(answer.headers), await answer.read()

    async def _stop_at(self, request: web.Request, call: str | None, where: str) -> None:
        if call is None:
            return
        run = self._run_of(request)
        for hold in self._holds:
            if (hold.run, hold.call, hold.where) == (run, call, where):
                self._holds.remove(hold)
                hold.reached.set()
                if not await asyncio.wrap_future(hold.way_on) and request.transport:
                    request.transport.close()
                    raise ConnectionResetError
                return


def call_name(method: str, path: str, body: bytes) -> str | None:
    """Return what a call is to a submission: a step of its journal, or the XCom with the result; None: nothing."""
    if method == "POST" and "/xcoms/" in path and path.endswith("/return_value"):
        return "push the result"
    owner, _, entry = path.rpartition("/gptimg:")
    kind = entry.rpartition(".")[2] if owner else None
    if method == "GET":
        return {"intent": "read the journal", "begun": "look for a later attempt"}.get(kind or "")
    if method != "PUT":
        return None
    if kind == "outcome" and not json.loads(body)["value"].get("task_id"):
        return None
    return {"intent": "write the intent", "outcome": "write the task id", "end": "note the delivery"}.get(kind or "")


def _task_instance(request: web.Request) -> str:
    """Return the id of the task instance that calls, as its token says."""
    claims = request.headers["Authorization"].split(".")[1]
    subject: str = json.loads(base64.urlsafe_b64decode(claims + "=="))["sub"]
    return subject


def _end_to_end(headers: Any) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _NOT_PASSED_ON)
