# SPDX-License-Identifier: Apache-2.0
"""The emulator's own HTTP interface, for tests in another process than the emulator."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from aiohttp import web

from airflow_provider_gptimg.emulator.server import Call, Server
from airflow_provider_gptimg.emulator.tasks import Task

__all__ = ["control_routes"]

_DONE = {"success": True}


def control_routes(server: Server) -> list[web.RouteDef]:
    """Return the routes below `/_emulator`; they need no key, since the server listens on loopback only."""

    async def ledger(request: web.Request) -> web.Response:
        return web.json_response([asdict(entry) for entry in server.state.ledger])

    async def tasks(request: web.Request) -> web.Response:
        return web.json_response([_task_shown(task) for task in server.state.tasks])

    async def calls(request: web.Request) -> web.Response:
        return web.json_response([_call_shown(call) for call in list(server.calls)])

    async def order_fault(request: web.Request) -> web.Response:
        try:
            order = json.loads(await request.read())
            server.faults.add(**order)
        except (TypeError, ValueError) as error:
            return web.json_response({"success": False, "error": str(error)}, status=400)
        return web.json_response(_DONE)

    async def clear_faults(request: web.Request) -> web.Response:
        server.faults.clear()
        return web.json_response(_DONE)

    async def release(request: web.Request) -> web.Response:
        server.holds.release()
        return web.json_response(_DONE)

    async def reset(request: web.Request) -> web.Response:
        server.holds.release()
        server.reset()
        return web.json_response(_DONE)

    return [
        web.get("/_emulator/ledger", ledger),
        web.get("/_emulator/tasks", tasks),
        web.get("/_emulator/calls", calls),
        web.post("/_emulator/faults", order_fault),
        web.delete("/_emulator/faults", clear_faults),
        web.post("/_emulator/release", release),
        web.post("/_emulator/reset", reset),
    ]


def _task_shown(task: Task) -> dict[str, Any]:
    """Return what a test may ask of a task; the images themselves are at the image host."""
    names = ("task_id", "user", "status", "type", "prompt", "n", "request", "error", "created_at")
    more = ("finished_at", "charged", "refunded", "polls", "poll_times")
    shown = {name: getattr(task, name) for name in (*names, *more)}
    shown["images"] = [picture.name for picture in task.pictures] if task.status == "completed" else []
    return shown


def _call_shown(call: Call) -> dict[str, Any]:
    shown = {name: getattr(call, name) for name in ("method", "path", "query", "at", "connection", "status")}
    # Whether a key came is a fair question; which one is nobody's business, should it be a real one.
    shown["headers"] = {name: "***" if name == "authorization" else value for name, value in call.headers.items()}
    shown["body"] = call.body.decode("utf-8", "replace")
    return shown
