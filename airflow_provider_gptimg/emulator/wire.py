# SPDX-License-Identifier: Apache-2.0
"""The JSON of requests, tasks and errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_gptimg.emulator.tasks import Task

__all__ = [
    "ApiError",
    "Submission",
    "error_code",
    "error_envelope",
    "polled",
    "read_submission",
    "refuse_key_in_query",
    "submitted",
]

MODEL = "gpt-image-2"
KEY_PARAMETERS = frozenset({"api_key", "apikey", "key", "token", "access_token"})
MOST_IMAGES = 4
MOST_REFERENCES = 4

_RATIO = re.compile(r"[1-9][0-9]{0,5}:[1-9][0-9]{0,5}", re.ASCII)
_CODES = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    402: "INSUFFICIENT_CREDITS",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    422: "INVALID_REQUEST",
    429: "RATE_LIMITED",
    500: "INTERNAL_ERROR",
    503: "SERVICE_UNAVAILABLE",
}


class ApiError(Exception):
    """The API refuses: HTTP status, stable code, and a sentence for a person."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code: str = code or error_code(status)
        self.headers: dict[str, str] = dict(headers or {})


@dataclass(frozen=True)
class Submission:
    """A submit's body that passed the checks; `body` is all of it, with the fields unknown here."""

    prompt: str
    n: int
    aspect_ratio: str | None
    with_references: bool
    body: dict[str, Any]


def error_code(status: int) -> str:
    """Return the code that goes with an HTTP status when nothing more is known."""
    return _CODES.get(status, f"HTTP_{status}")


def read_submission(raw: bytes, references_field: str) -> Submission:
    """Read and check a submit's body; raise `ApiError` (400) saying what is wrong with it."""
    try:
        body = json.loads(raw)
    except ValueError:
        raise ApiError(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ApiError(400, "prompt must be text, and not blank.")
    n = body.get("n", 1)
    if type(n) is not int or not 1 <= n <= MOST_IMAGES:
        raise ApiError(400, f"n must be a whole number from 1 to {MOST_IMAGES}.")
    ratio = body.get("aspect_ratio", "1:1")
    if not isinstance(ratio, str) or not _RATIO.fullmatch(ratio):
        raise ApiError(400, "aspect_ratio must be two whole numbers, like 16:9.")
    references = body.get(references_field, [])
    if not isinstance(references, list) or not all(isinstance(item, str) for item in references):
        raise ApiError(400, f"{references_field} must be a list of URLs.")
    if len(references) > MOST_REFERENCES:
        raise ApiError(400, f"{references_field} may hold {MOST_REFERENCES} images at most.")
    return Submission(prompt, n, ratio, bool(references), body)


def refuse_key_in_query(parameters: Mapping[str, str]) -> None:
    """Raise `ApiError` (400) when the query string has a parameter that could hold a key."""
    for name in parameters:
        if name.lower() in KEY_PARAMETERS:
            raise ApiError(
                400,
                f"The query parameter {name} is not allowed: send the key as a bearer token, "
                "and rotate a key that was part of a URL.",
                "API_KEY_IN_QUERY",
            )


def submitted(task: Task) -> dict[str, Any]:
    """Return the answer to a submit."""
    data = _described(task)
    data.update(status="processing", media_url=None, images=[], created_at=_moment(task.created_at))
    return {"success": True, "data": data}


def polled(task: Task, images_at: str) -> dict[str, Any]:
    """Return the answer to a poll; `images_at` is the URL below which the images are."""
    images: list[dict[str, str]] = []
    if task.status == "completed":
        urls = task.image_urls
        if urls is None:
            urls = tuple(f"{images_at}/{picture.name}" for picture in task.pictures)
        images = [
            {"url": url, "content_type": picture.content_type} for url, picture in zip(urls, task.pictures, strict=True)
        ]
    data = _described(task)
    data.update(
        status=task.status,
        media_url=images[0]["url"] if images else None,
        images=images,
        error=task.error if task.status == "failed" else None,
        created_at=_moment(task.created_at),
        updated_at=_moment(task.created_at if task.finished_at is None else task.finished_at),
    )
    return {"success": True, "data": data}


def error_envelope(code: str, message: str, request_id: str | None) -> dict[str, Any]:
    """Return the body of an error; without a request id if that is elsewhere."""
    envelope: dict[str, Any] = {"success": False, "error": {"code": code, "message": message}}
    if request_id is not None:
        envelope["request_id"] = request_id
    return envelope


def _described(task: Task) -> dict[str, Any]:
    return {
        "id": task.id,
        "task_id": task.task_id,
        "status": None,
        "provider": MODEL,
        "model": MODEL,
        "type": task.type,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
