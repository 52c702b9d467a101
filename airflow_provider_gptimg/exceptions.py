# SPDX-License-Identifier: Apache-2.0
"""The errors of this provider, by who has to act.

GptImgError
├── GptImgRequestError             400, 422, or refused before sending: change the DAG
├── GptImgAuthError                401, 403, or no key: change the connection
├── GptImgInsufficientCreditsError 402: top up
├── GptImgTaskNotFoundError        404 on an image task
├── GptImgRateLimitError           429: wait `retry_after` seconds
├── GptImgServerError              5xx, or no answer to a poll: try again
├── GptImgSubmissionUnknownError   a submit whose outcome cannot be known: a person decides
├── GptImgTaskFailedError          the generation failed; its credits were refunded
│   └── GptImgContentPolicyError   refused for what it asks for: change the prompt
├── GptImgTimeoutError             not finished in time; the image task goes on
├── GptImgProtocolError            an answer that is not understood
└── GptImgMediaError               an image that is not what it should be
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "GptImgAuthError",
    "GptImgContentPolicyError",
    "GptImgError",
    "GptImgInsufficientCreditsError",
    "GptImgMediaError",
    "GptImgProtocolError",
    "GptImgRateLimitError",
    "GptImgRequestError",
    "GptImgServerError",
    "GptImgSubmissionUnknownError",
    "GptImgTaskFailedError",
    "GptImgTaskNotFoundError",
    "GptImgTimeoutError",
]


class GptImgError(Exception):
    """Base of all errors of this provider.

    :param message: What happened and what to do about it; never holds the API key.
    :param code: The API's stable error code, if it gave one.
    :param http_status: The status of the HTTP answer, if there was one.
    :param request_id: The API's id of the request, for the vendor's support.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message: str = message
        self.code = code
        self.http_status = http_status
        self.request_id = request_id

    def __str__(self) -> str:
        details = []
        if self.http_status is not None:
            details.append(f"HTTP {self.http_status}")
        if self.code:
            details.append(f"code={self.code}")
        if self.request_id:
            details.append(f"request_id={self.request_id}")
        return f"{self.message} ({', '.join(details)})" if details else self.message

    def add_hint(self, hint: str) -> None:
        """Add a sentence to the message."""
        message = self.message.rstrip(". ")
        self.message = f"{message}{' ' if message.endswith(('!', '?')) else '. '}{hint}"

    def as_dict(self) -> dict[str, Any]:
        """Return the error as a small JSON fact, which :func:`from_dict` reads back."""
        fact: dict[str, Any] = {"type": type(self).__name__, "message": self.message}
        fact.update(
            (name, value)
            for name, value in (
                ("code", self.code),
                ("http_status", self.http_status),
                ("request_id", self.request_id),
                ("retry_after", getattr(self, "retry_after", None)),
            )
            if value is not None
        )
        return fact


class GptImgRequestError(GptImgError):
    """The request is wrong: HTTP 400 or 422, or refused before anything was sent."""


class GptImgAuthError(GptImgError):
    """The key is missing, or the API rejected it: HTTP 401 or 403 in its envelope."""


class GptImgInsufficientCreditsError(GptImgError):
    """The balance is too low: HTTP 402. Nothing was charged."""


class GptImgTaskNotFoundError(GptImgError):
    """The API does not know the image task, or it belongs to another user: HTTP 404."""


class GptImgRateLimitError(GptImgError):
    """Too many requests: HTTP 429, still so after bounded waiting.

    :param retry_after: Seconds to wait as the API said, or None where it did not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after


class GptImgServerError(GptImgError):
    """The API could not answer now: HTTP 5xx (to a poll also 408, 409 or 425) in its envelope, or no answer."""


class GptImgSubmissionUnknownError(GptImgError):
    """A submit was sent, and nobody knows whether it was accepted: credits may have been charged."""


class GptImgTaskFailedError(GptImgError):
    """The generation failed. The API refunds its credits in full."""


class GptImgContentPolicyError(GptImgTaskFailedError):
    """The generation was refused for what the prompt asks: content policy, moderation, safety. It would be again."""


class GptImgTimeoutError(GptImgError):
    """The image task did not finish within `timeout`. It continues; the next attempt waits for it again.

    :param last_status: The status that the API reported last; None if it reported none.
    """

    def __init__(self, message: str, *, last_status: str | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.last_status = last_status


class GptImgProtocolError(GptImgError):
    """An answer that is not understood."""


class GptImgMediaError(GptImgError):
    """An image that is not from an allowed host, not an image, cut, or too large."""


def from_dict(fact: Any) -> GptImgError:
    """Return the error that :meth:`GptImgError.as_dict` wrote down.

    :param fact: What `as_dict` returned, perhaps in another release of this provider.
    """
    fact = fact if isinstance(fact, dict) else {}
    error_type = globals().get(str(fact.get("type")))
    details: dict[str, Any] = {name: fact[name] for name in ("code", "http_status", "request_id") if name in fact}
    message = str(fact.get("message") or "the trigger reported an error without a message")
    if not (isinstance(error_type, type) and issubclass(error_type, GptImgError)):
        return GptImgError(message, **details)
    if error_type is GptImgRateLimitError:
        details["retry_after"] = fact.get("retry_after")
    return error_type(message, **details)
