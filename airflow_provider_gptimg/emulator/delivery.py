# SPDX-License-Identifier: Apache-2.0
"""Faults on the wire: foreign, late, cut and missing answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_gptimg.emulator.wire import error_code, error_envelope

if TYPE_CHECKING:
    from airflow_provider_gptimg.emulator.faults import Fault

__all__ = ["Holds", "deliver", "foreign_answer", "lose"]

_PAGE = "<!DOCTYPE html><html><head><title>{0}</title></head><body><center><h1>{0}</h1></center></body></html>\n"
_CHUNK = 64 * 1024


class Holds:
    """The requests held without an answer, until someone releases them. Lives on the server's event loop."""

    def __init__(self) -> None:
        self._held: dict[asyncio.Future[None], str] = {}

    def waiting(self, what: str | None = None) -> int:
        """Return how many requests are held by that fault (None: by any)."""
        return sum(what in (None, name) for name in list(self._held.values()))

    def release(self) -> None:
        """Let all of them continue."""
        while self._held:
            future, _ = self._held.popitem()
            future.set_result(None)

    async def hold(self, what: str, seconds: float | None) -> None:
        """Wait for the release, for `seconds` at most; ends with a cancellation when the client goes."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held[future] = what
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            self._held.pop(future, None)


def foreign_answer(fault: Fault, request_id: str) -> web.Response | None:
    """Return the answer that comes in place of the API's own; None when the fault lets the API work."""
    options = fault.options
    if isinstance(fault.what, int):
        return _error(fault.what, options, request_id)
    match fault.what:
        case "html":
            return _page(options["status"])
        case "empty":
            return web.Response(status=options["status"])
        case "redirect":
            return web.Response(status=options["status"], headers={"Location": options["location"]})
        case "body":
            body = options["body"].encode() if isinstance(options["body"], str) else options["body"]
            headers = {"Content-Type": options["content_type"], **options["headers"]}
            return web.Response(status=options["status"], body=body, headers=headers)
        case "wrong_type":
            headers = {"Content-Type": "image/png"}
            return web.Response(body=_PAGE.format("Not an image").encode(), headers=headers)
        case "gone":
            return _page(404)
    return None


def lose(request: web.Request) -> web.Response:
    """Close the connection; the response returned never reaches anybody."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def deliver(request: web.Request, answer: web.Response, fault: Fault, holds: Holds) -> web.StreamResponse:
    """Send the API's answer the way the fault wants it."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    half = len(body) // 2
    match fault.what:
        case "lost_after":
            return lose(request)
        case "hang_after":
            await holds.hold("hang_after", fault.options["seconds"])
        case "cut_after" | "short":
            return await _broken_off(request, answer, body[:half], len(body))
        case "long_length":
            return await _broken_off(request, answer, body, fault.options["length"] or len(body) + 1)
        case "stall":
            stream = await _begun(request, answer, body[:half], len(body))
            await holds.hold("stall", fault.options["seconds"])
            await stream.write(body[half:])
            return stream
        case "endless":
            stream = await _begun(request, answer, body, None)
            while True:
                await stream.write(bytes(_CHUNK))
                # A client that reads fast enough would never let anyone else have the loop.
                await asyncio.sleep(0)
    return answer


async def _begun(request: web.Request, answer: web.Response, start: bytes, length: int | None) -> web.StreamResponse:
    """Send the status, the headers and the body's start; a length of None means chunked."""
    stream = web.StreamResponse(status=answer.status)
    stream.content_type = answer.content_type
    if length is None:
        stream.enable_chunked_encoding()
    else:
        stream.content_length = length
    await stream.prepare(request)
    await stream.write(start)
    return stream


async def _broken_off(request: web.Request, answer: web.Response, start: bytes, length: int) -> web.StreamResponse:
    stream = await _begun(request, answer, start, length)
    if request.transport is not None:
        request.transport.close()
    return stream


def _error(status: int, options: dict[str, Any], request_id: str) -> web.Response:
    """Return the API's error envelope, with code and request id where `envelope` wants them."""
    code = options["code"] or error_code(status)
    message = options["message"] or f"This is the emulator's HTTP {status}."
    request_id = options["request_id"] or request_id
    headers = {}
    if options["retry_after"] is not None:
        headers["Retry-After"] = str(options["retry_after"])
    if options["envelope"] in (None, "header"):
        headers["x-request-id"] = request_id
    if options["envelope"] == "flat":
        body = {"success": False, "code": code, "message": message, "request_id": request_id}
    else:
        body = error_envelope(code, message, None if options["envelope"] == "header" else request_id)
    return web.json_response(body, status=status, headers=headers)


def _page(status: int) -> web.Response:
    title = f"{status} {web.Response(status=status).reason}"
    return web.Response(status=status, text=_PAGE.format(title), content_type="text/html")
