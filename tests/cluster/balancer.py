# SPDX-License-Identifier: Apache-2.0
"""A load balancer in front of the API servers: it skips one that does not answer, and counts calls by DAG."""

from __future__ import annotations

import itertools
import json
import re
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import httpx
from aiohttp import ClientConnectorError, web
from multidict import CIMultiDict

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
from kill_gate import Gate, Hold, _task_instance

__all__ = ["Balancer", "Stall", "step_of", "step_of_entry"]

_CHECK_INTERVAL = 2.0
"""Seconds between two health checks, and for one."""


@dataclass
class Stall(Hold):
    """A call that is executed only when it is let go, though its client has long given it up and repeated it.

    :param executed: An API server has answered it.
    """

    executed: threading.Event = field(default_factory=threading.Event)


class StallingGate(Gate):
    """A gate that can also keep a call until long after its client gave it up."""

    def stall(self, run: str, step: str) -> Stall:
        """Keep the next such call of a run, as a stalled server or proxy does."""
        stall = Stall(run, step, "request")
        self._holds.append(stall)
        return stall

    async def _stop_at(self, request: web.Request, call: str | None, where: str) -> None:
        run = call and self._run_of(request)
        for hold in self._holds:
            if isinstance(hold, Stall) and (hold.run, hold.call, hold.where) == (run, call, where):
                request["stall"] = hold
        await super()._stop_at(request, call, where)

    async def _asked(self, request: web.Request, body: bytes) -> tuple[int, CIMultiDict[str], bytes]:
        answer = await super()._asked(request, body)
        if "stall" in request:
            request["stall"].executed.set()
        return answer


class Balancer(StallingGate):
    """Passes calls on to the API servers in turn.

    Like any balancer it lets a server finish a call that its client gave up: a frozen one executes it late.

    :param upstreams: Base URLs of the API servers.
    """

    def __init__(self, upstreams: list[str]) -> None:
        super().__init__()
        self._upstreams = upstreams
        self._up = dict.fromkeys(upstreams, False)
        self._turn = itertools.cycle(upstreams)
        self._dags: dict[str, str] = {}
        self._closing = threading.Event()
        self.calls: dict[str, Counter[str]] = defaultdict(Counter)

    def __enter__(self) -> Balancer:
        super().__enter__()
        self._checks = [threading.Thread(target=self._check, args=(url,), daemon=True) for url in self._upstreams]
        for check in self._checks:
            check.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        super().__exit__()

    def both_up(self) -> bool:
        """Tell whether each server answered its last health check."""
        return all(self._up.values())

    def _check(self, url: str) -> None:
        # What workers talk to is built at its first request, which takes seconds.
        while not self._closing.wait(_CHECK_INTERVAL if self._up[url] else 0.5):
            try:
                limit = _CHECK_INTERVAL if self._up[url] else 60
                answer = httpx.get(f"{url}/execution/health", timeout=limit, trust_env=False)
                self._up[url] = answer.is_success
            except httpx.TransportError:
                self._up[url] = False

    def _call_of(self, request: web.Request, body: bytes) -> str | None:
        return step_of(request.method, request.path)

    async def _asked(self, request: web.Request, body: bytes) -> tuple[int, CIMultiDict[str], bytes]:
        order = [next(self._turn) for _ in self._upstreams]
        for url in sorted(order, key=lambda url: not self._up[url]):
            self.upstream = url
            try:
                answer = await super()._asked(request, body)
            except ClientConnectorError as error:
                refused = error
                continue
            self._count(request, answer)
            return answer
        raise refused

    def _count(self, request: web.Request, answer: tuple[int, CIMultiDict[str], bytes]) -> None:
        if "/execution/" not in request.path or "Authorization" not in request.headers:
            return
        task_instance = _task_instance(request)
        if request.path.endswith("/run") and answer[0] == httpx.codes.OK:
            self._dags[task_instance] = json.loads(answer[2])["dag_run"]["dag_id"]
        self.calls[self._dags.get(task_instance, "")][f"{request.method} {_kind(request.path)}"] += 1


def step_of(method: str, path: str) -> str | None:
    """Return which step of a submission a call of Airflow's API is; None: another call."""
    owner, _, entry = unquote(path).rpartition("/gptimg:")
    return step_of_entry(method, entry) if owner else None


def step_of_entry(method: str, entry: str) -> str | None:
    """Return which step of a submission it is to read or write an entry: read, intend, look, outcome, end, or none.

    A batch keeps its intents and outcomes in parts; the first that an attempt writes holds intents.
    """
    kind = entry.rpartition(".")[2]
    if method not in ("GET", "PUT"):
        return None
    if kind == "begun":
        return "look" if method == "GET" else None
    if ".batch." in entry:
        kind = "end" if kind == "delivered" else "intent"
    if method == "GET":
        return "read" if kind == "intent" else None
    return {"intent": "intend", "outcome": "outcome", "end": "end"}.get(kind)


def _kind(path: str) -> str:
    """Return a call's path without what differs between task instances."""
    path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "{id}", path.removeprefix("/execution"))
    path = re.sub(r"(/xcoms)(?:/[^/]+){3}", r"\1/…", path)
    return re.sub(r"(/store/ti/\{id\})/.*", r"\1/{key}", path)
