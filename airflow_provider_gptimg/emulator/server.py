# SPDX-License-Identifier: Apache-2.0
"""The API and its image host over HTTP: who may call, what they asked, what they get."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from aiohttp import web

from airflow_provider_gptimg.emulator import delivery, wire
from airflow_provider_gptimg.emulator.state import InsufficientCreditsError, State, UnknownTaskError
from airflow_provider_gptimg.emulator.wire import ApiError

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from airflow_provider_gptimg.emulator.faults import Fault, Faults

__all__ = ["Call", "Server"]

SUBMIT_PATH = "/api/v1/images/generate"
POLL_PATH = "/api/v1/images/task/{task_id}"
IMAGES_PATH = "/gpt-image-2-outputs"

log: logging.Logger = logging.getLogger("airflow_provider_gptimg.emulator")

Work = Callable[[web.Request, "Fault | None"], Awaitable[web.Response]]


@dataclass(slots=True)
class Call:
    """One HTTP request as it came in, and the status of the answer; None when no whole answer was sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    at: float
    connection: int
    status: int | None = None


class Server:
    """The handlers of the emulated API, and what can be turned while it runs."""

    def __init__(
        self,
        state: State,
        faults: Faults,
        *,
        reference_images_field: str,
        rate_limit_rate: float,
        record_calls: bool,
        seed: int | None,
    ) -> None:
        if not 0 <= rate_limit_rate <= 1:
            raise ValueError(f"rate_limit_rate must be from 0 to 1, not {rate_limit_rate!r}")
        self.state = state
        self.faults = faults
        self.holds: delivery.Holds = delivery.Holds()
        self.calls: list[Call] = []
        self.latency: float = 0.0
        self.image_latency: float = 0.0
        self._references_field = reference_images_field
        self._rate_limit_rate = rate_limit_rate
        self._record_calls = record_calls
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 -- nothing here is secret
        self._connections: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()
        self._numbers = count(1)

    def application(self, control: Iterable[web.RouteDef] = ()) -> web.Application:
        """Return the aiohttp application that serves the API and its images.

        :param control: Routes beside those of the API.
        """
        # Without a limit: reference images may come inside the body, as data: URLs.
        app = web.Application(client_max_size=0)
        app.add_routes(control)
        for method, path, kind, work in (
            ("POST", SUBMIT_PATH, "submit", self._submit),
            ("GET", POLL_PATH, "poll", self._poll),
            ("GET", IMAGES_PATH + "/{name}", "image", self._image),
        ):
            app.router.add_route(method, path, self._endpoint(kind, work))
            app.router.add_route("*", path, self._endpoint(None, _refuse_method(method)))
        app.router.add_route("*", r"/{path:[\s\S]*}", self._endpoint(None, _refuse_path))
        return app

    async def release(self) -> None:
        """Let the requests that a fault holds continue."""
        self.holds.release()

    def reset(self) -> None:
        """Forget all that happened and was ordered; latencies and random numbers are as at the start."""
        self.faults.clear()
        self.state.reset()
        self.calls.clear()
        self.latency = self.image_latency = 0.0
        self._random.seed(self._seed)

    def _endpoint(self, kind: str | None, work: Work) -> Handler:
        """Return a handler that sees a request through: recorded, struck by its fault, answered, logged."""

        async def serve(request: web.Request) -> web.StreamResponse:
            started = time.perf_counter()
            call = self._recorded(request)
            status: int | None = None
            try:
                call.body = await request.read()
                fault = self.faults.take(kind)
                response = await self._answered(request, kind, work, fault)
                lost = fault is not None and fault.what in ("lost_before", "lost_after")
                status = call.status = None if lost else response.status
            finally:
                if log.isEnabledFor(logging.DEBUG):
                    seconds = time.perf_counter() - started
                    log.debug("%s %s %s %.3f s", call.method, call.path, status or "lost", seconds)
            return response

        return serve

    async def _answered(
        self, request: web.Request, kind: str | None, work: Work, fault: Fault | None
    ) -> web.StreamResponse:
        if fault and fault.what == "lost_before":
            return delivery.lose(request)
        if fault and fault.what == "hang_before":
            await self.holds.hold("hang_before", fault.options["seconds"])
        answer = delivery.foreign_answer(fault, self._request_id()) if fault else None
        if answer is None:
            try:
                answer = await work(request, fault)
            except ApiError as error:
                answer = self._refusal(error)
        # After the work, not before: a client that gives up here leaves a task behind that is paid for.
        if latency := self.image_latency if kind == "image" else self.latency:
            await asyncio.sleep(latency)
        return await delivery.deliver(request, answer, fault, self.holds) if fault else answer

    async def _submit(self, request: web.Request, fault: Fault | None) -> web.Response:
        user = self._admitted(request)
        submission = wire.read_submission(await request.read(), self._references_field)
        fails = fault is not None and fault.what == "fail"
        try:
            task = self.state.submit(
                user,
                prompt=submission.prompt,
                n=submission.n,
                request=submission.body,
                aspect_ratio=submission.aspect_ratio,
                with_references=submission.with_references,
                fails=fails,
                error=fault.options["error"] if fault and fails else None,
            )
        except InsufficientCreditsError as error:
            raise ApiError(402, str(error)) from None
        return web.json_response(wire.submitted(task))

    async def _poll(self, request: web.Request, fault: Fault | None) -> web.Response:
        user = self._admitted(request)
        try:
            task = self.state.poll(user, request.match_info["task_id"])
        except UnknownTaskError:
            raise ApiError(404, "There is no such task.", "TASK_NOT_FOUND") from None
        # The address the client reached us by, so that it may be another name of this machine.
        return web.json_response(wire.polled(task, f"{request.scheme}://{request.host}{IMAGES_PATH}"))

    async def _image(self, request: web.Request, fault: Fault | None) -> web.Response:
        picture = self.state.picture(request.match_info["name"])
        if picture is None:
            return web.Response(status=404, text="404 Not Found\n")
        body = await asyncio.to_thread(picture.read)
        return web.Response(body=body, headers={"Content-Type": picture.content_type})

    def _admitted(self, request: web.Request) -> str:
        """Return the user whose key the request carries; raise `ApiError` when it may not come in."""
        wire.refuse_key_in_query(request.query)
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "A bearer token is required.")
        user = self.state.user_of(key.strip())
        if user is None:
            raise ApiError(401, "The key is unknown or revoked.")
        if self._rate_limit_rate and self._random.random() < self._rate_limit_rate:
            raise ApiError(429, "Too many requests.", headers={"Retry-After": "1"})
        return user

    def _refusal(self, error: ApiError) -> web.Response:
        request_id = self._request_id()
        return web.json_response(
            wire.error_envelope(error.code, error.message, request_id),
            status=error.status,
            headers={**error.headers, "x-request-id": request_id},
        )

    def _request_id(self) -> str:
        return f"req_{self._random.getrandbits(64):016x}"

    def _recorded(self, request: web.Request) -> Call:
        # The path as it came over the wire: decoded, it could hold line breaks and tear the log's lines.
        call = Call(
            method=request.method,
            path=request.rel_url.raw_path,
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=b"",
            at=time.time(),
            connection=self._connection(request),
        )
        if self._record_calls:
            self.calls.append(call)
        return call

    def _connection(self, request: web.Request) -> int:
        transport = request.transport
        if transport is None:
            return 0
        if transport not in self._connections:
            self._connections[transport] = next(self._numbers)
        return self._connections[transport]


def _refuse_method(allowed: str) -> Work:
    async def refuse(request: web.Request, fault: Fault | None) -> web.Response:
        raise ApiError(405, f"Only {allowed} is allowed here.", headers={"Allow": allowed})

    return refuse


async def _refuse_path(request: web.Request, fault: Fault | None) -> web.Response:
    raise ApiError(404, "There is nothing at this path.")
