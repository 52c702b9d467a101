# SPDX-License-Identifier: Apache-2.0
"""Parse the API's answers into image tasks and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from airflow_provider_gptimg.api.calls import Call
from airflow_provider_gptimg.api.tasks import (
    COMPLETED,
    FAILED,
    MAX_IMAGES,
    PROCESSING,
    Image,
    ImageTask,
    check_task_id,
)
from airflow_provider_gptimg.api.texts import clean
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
)

__all__ = ["Answer", "NoAnswer", "decode", "judge_probe", "unanswered"]

_USUAL_START = "gpt-image-2-"
_PASSING = (408, 409, 425)
"""Statuses with which the API refuses a poll for a moment only."""


@dataclass(frozen=True)
class Answer:
    """One complete HTTP answer.

    :param headers: By lower-case name.
    :param payload: The body read as JSON; None if it is not JSON.
    :param received_at: Unix seconds by the local clock.
    :param flaw: Why the body was not read: too large, say. None if it was.
    """

    status: int
    headers: Mapping[str, str]
    payload: Any
    received_at: float
    flaw: str | None = None


@dataclass(frozen=True)
class NoAnswer:
    """No complete answer came.

    :param sent: Whether the request may have reached the API; False only if it certainly did not.
    """

    reason: str
    sent: bool


def decode(call: Call, answer: Answer) -> ImageTask:
    """Parse an HTTP answer into an image task.

    :raises GptImgError: As the table of errors in the docs says.
    """
    if 200 <= answer.status < 300:
        try:
            return _read_task(call, answer)
        except GptImgProtocolError as error:
            if call.is_submit:
                raise _unknown(
                    f"it was answered with HTTP {answer.status}, but {error.message}", answer, error.code
                ) from error
            error.message = f"The answer to the poll is not understood: {error.message}"
            error.http_status, error.request_id = answer.status, _request_id(answer)
            raise
    raise _read_error(call, answer)


def unanswered(call: Call, outcome: NoAnswer | None) -> GptImgError:
    """Build the error for a call that got no answer."""
    reason = outcome.reason if outcome else "nothing was heard"
    if call.is_submit and (outcome is None or outcome.sent):
        return _unknown(f"no answer came: {reason}")
    return GptImgServerError(f"gptimg could not be reached: {reason}")


def judge_probe(outcome: Answer | NoAnswer) -> tuple[bool, str]:
    """Return whether the answer to :func:`probe_call` accepts the connection, and why in words."""
    if not isinstance(outcome, Answer):
        return False, f"Host unreachable: {outcome.reason}"
    if outcome.status == 429:
        return (
            False,
            "The API limits the rate of requests just now and did not look at the key: try again later",
        )
    envelope = _error_envelope(outcome) if outcome.status >= 400 else None
    if envelope is None:
        rejected = outcome.status in (401, 403)
        return False, (
            f"This is not the gpt-image-2 API{', or a gateway before it rejected the key' if rejected else ''}: "
            f"HTTP {outcome.status} without its JSON envelope. Check the host{' and the key' if rejected else ''}"
        )
    if outcome.status in (401, 403):
        return False, f"The API rejected the key in the field API key: {envelope.message} (HTTP {outcome.status})"
    if outcome.status in (400, 404, 422):
        return True, "The API accepted the key"
    return False, f"The API answered, but did not look at the key: {envelope.message} (HTTP {outcome.status})"


@dataclass(frozen=True)
class _Envelope:
    message: str
    code: str | None
    request_id: str | None


def _unknown(what: str, answer: Answer | None = None, code: str | None = None) -> GptImgSubmissionUnknownError:
    return GptImgSubmissionUnknownError(
        f"The submit was sent, but {what}",
        code=code,
        http_status=answer.status if answer else None,
        request_id=_request_id(answer) if answer else None,
    )


def _read_error(call: Call, answer: Answer) -> GptImgError:
    status = answer.status
    envelope = _error_envelope(answer)
    if status == 429:  # whoever said so, it was not accepted
        message = envelope.message if envelope else "too many requests"
        return GptImgRateLimitError(
            f"gptimg limits the rate: {message}",
            retry_after=_retry_after(answer),
            code=envelope.code if envelope else None,
            http_status=status,
            request_id=_request_id(answer),
        )
    if envelope is None:
        if call.is_submit:
            return _unknown(f"the answer did not come from the API ({_no_envelope(answer)}: a proxy?)", answer)
        return GptImgProtocolError(
            f"The answer did not come from the API ({_no_envelope(answer)}): a gateway, firewall or proxy answered, or "
            "the connection's host is another",
            http_status=status,
            request_id=_request_id(answer),
        )
    details: dict[str, Any] = {
        "code": envelope.code,
        "http_status": status,
        "request_id": envelope.request_id,
    }
    if status in (401, 403):
        return GptImgAuthError(f"gptimg rejected the connection's key: {envelope.message}", **details)
    if status == 402:
        return GptImgInsufficientCreditsError(f"Not enough credits, nothing was charged: {envelope.message}", **details)
    if status == 404 and call.task_id:
        missing = GptImgTaskNotFoundError(
            f"gptimg knows no image task {call.task_id} for this key: {envelope.message}", **details
        )
        if not call.task_id.startswith(_USUAL_START):
            missing.add_hint(f"Ids begin with {_USUAL_START!r}: pass the XCom of a submit, as in submit.output")
        return missing
    if status in _PASSING and not call.is_submit:
        return GptImgServerError(f"gptimg did not answer the poll: {envelope.message}", **details)
    if 400 <= status < 500:
        return GptImgRequestError(f"gptimg refused the request: {envelope.message}", **details)
    if status >= 500:
        return GptImgServerError(f"gptimg failed: {envelope.message}", **details)
    if call.is_submit:
        return _unknown(f"it was answered with HTTP {status}", answer)
    return GptImgProtocolError(f"gptimg answered with HTTP {status}", **details)


def _no_envelope(answer: Answer) -> str:
    return answer.flaw or "no JSON envelope"


def _error_envelope(answer: Answer) -> _Envelope | None:
    """Return the API's error envelope, nested or flat; None if the answer is not the API's.

    A bare `{"message": …}` or a numeric code is how gateways speak, so it does not count.
    """
    payload = answer.payload
    if not isinstance(payload, dict) or answer.status < 200 or 300 <= answer.status < 400:
        return None
    error = payload.get("error")
    fields = error if isinstance(error, dict) else payload
    code = fields.get("code", payload.get("code"))
    if not isinstance(code, str) or not code:
        code = None
    if code is None and payload.get("success") is not False:
        return None
    message = fields.get("message")
    if not isinstance(message, str):
        message = error if isinstance(error, str) else "no message"
    return _Envelope(
        message=clean(message) or "no message",
        code=clean(code) if code else None,
        request_id=_request_id(answer),
    )


def _request_id(answer: Answer) -> str | None:
    payload = answer.payload if isinstance(answer.payload, dict) else {}
    error = payload.get("error")
    for fields in (payload, error if isinstance(error, dict) else {}, answer.headers):
        value = fields.get("request_id") or fields.get("x-request-id")
        if isinstance(value, str):
            return clean(value)
    return None


def _retry_after(answer: Answer) -> float | None:
    value = answer.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        until = _http_date(value)
        if until is None:
            return None
        seconds = until - _answered_at(answer)
    return min(max(seconds, 0.0), 86400.0) if seconds == seconds else None  # NaN is none


@lru_cache(maxsize=8)  # thousands of waits are answered in the same second
def _http_date(value: str | None) -> float | None:
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _answered_at(answer: Answer) -> float:
    """Return the time of the answer, by the API's own clock if it has a Date header, else by the local one."""
    return _http_date(answer.headers.get("date")) or answer.received_at


def _read_task(call: Call, answer: Answer) -> ImageTask:
    payload = answer.payload
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, dict) or payload.get("success") is False:
        envelope = _error_envelope(answer)
        raise GptImgProtocolError(
            f"it is an error: {envelope.message}"
            if envelope
            else answer.flaw or "the body is not the API's JSON envelope with an image task",
            code=envelope.code if envelope else None,
        )
    found = data.get("task_id") or (None if call.is_submit else call.task_id)
    status = data.get("status")
    if call.is_submit and not (isinstance(status, str) and status):
        # An accepted submit is paid for: its id is all that is needed, so nothing else may spoil it.
        status = PROCESSING
    try:
        task_id = check_task_id(found)
    except GptImgRequestError:
        raise GptImgProtocolError("the image task in it has no usable task_id") from None
    if call.task_id is not None and call.task_id not in (task_id, data.get("id")):
        raise GptImgProtocolError(f"it speaks of image task {task_id}, not of {call.task_id}")
    if not isinstance(status, str) or not status:
        raise GptImgProtocolError(f"image task {task_id} has no status")
    images = _read_images(data, may_be_wrong=call.is_submit)
    if status == COMPLETED and not images and not call.is_submit:
        raise GptImgProtocolError(f"image task {task_id} is completed without images")
    error, error_code = _read_failure(data) if status == FAILED else (None, None)
    created_at = _text(data, "created_at")
    return ImageTask(
        task_id=call.task_id or task_id,
        status=clean(status, 40),
        id=_text(data, "id"),
        type=_text(data, "type"),
        provider=_text(data, "provider"),
        model=_text(data, "model"),
        media_url=_url(data, "media_url"),
        images=images,
        created_at=created_at,
        updated_at=_text(data, "updated_at"),
        error=error,
        error_code=error_code,
        age=_age(created_at, answer),
    )


def _text(data: Mapping[str, Any], name: str) -> str | None:
    value = data.get(name)
    return clean(value) if isinstance(value, str) else None


def _url(data: Mapping[str, Any], name: str) -> str | None:
    # As it is: its query may be what opens it.
    value = data.get(name)
    return value if isinstance(value, str) else None


def _read_images(data: Mapping[str, Any], may_be_wrong: bool) -> tuple[Image, ...]:
    images: list[Image] = []
    listed = data.get("images")
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, str):
            entry = {"url": entry}
        if isinstance(entry, dict) and (url := _url(entry, "url")):
            images.append(Image(url=url, content_type=_text(entry, "content_type")))
    if len(images) > MAX_IMAGES:
        if may_be_wrong:
            return ()
        raise GptImgProtocolError(f"it lists {len(images)} images, and a task has at most {MAX_IMAGES}")
    if not images and (media_url := _url(data, "media_url")):
        images.append(Image(url=media_url))
    return tuple(images)


def _read_failure(data: Mapping[str, Any]) -> tuple[str, str | None]:
    error = data.get("error")
    if isinstance(error, dict):
        code = _text(error, "code")
        message = _text(error, "message") or code or "no reason given"
        return message, code or None
    return clean(error) if isinstance(error, str) and error else "no reason given", None


def _age(created_at: str | None, answer: Answer) -> float | None:
    """Return the task's age; created and answered are both read from the API's clock where it has one."""
    if created_at is None:
        return None
    try:
        created = datetime.fromisoformat(created_at)
    except ValueError:
        return None
    if created.tzinfo is None:
        created = created.replace(tzinfo=UTC)
    return max(0.0, _answered_at(answer) - created.timestamp())
