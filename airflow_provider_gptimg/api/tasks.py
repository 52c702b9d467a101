# SPDX-License-Identifier: Apache-2.0
"""An image task: its statuses, its images and its cost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeGuard

from airflow_provider_gptimg.api.texts import clean
from airflow_provider_gptimg.exceptions import GptImgProtocolError, GptImgRequestError

__all__ = [
    "COMPLETED",
    "CREDITS_PER_IMAGE",
    "FAILED",
    "MAX_IMAGES",
    "PROCESSING",
    "Image",
    "ImageTask",
    "check_task_id",
    "is_task_id",
]

PROCESSING = "processing"
COMPLETED = "completed"
FAILED = "failed"
CREDITS_PER_IMAGE = 2
MAX_IMAGES = 4
"""Images that a task may have."""

_LONGEST_URL = 16 * 1024

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,254}")


def is_task_id(value: object) -> TypeGuard[str]:
    """Return whether `value` can be part of a URL's path as it is."""
    return isinstance(value, str) and _TASK_ID.fullmatch(value) is not None and ".." not in value


def check_task_id(task_id: object) -> str:
    """Return `task_id` if it can be part of a URL's path as it is.

    :raises GptImgRequestError: It is not a text, is empty, or has characters that would change the URL.
    """
    if task_id == "None":
        raise GptImgRequestError(
            "gptimg_task_id='None' is what a template renders that finds nothing: pass the XCom of the task that "
            "submits, as in gptimg_task_id=submit.output"
        )
    if is_task_id(task_id):
        return task_id
    if isinstance(task_id, str) and task_id.startswith(("[", "{", "(", "Lazy")):
        raise GptImgRequestError(
            f"gptimg_task_id={task_id!r:.120} is a list or a finished task that a template has turned into text: pass "
            "the output itself, as in gptimg_task_id=submit.output"
        )
    raise GptImgRequestError(
        f"gptimg_task_id={task_id!r:.120} is not an image task's id: letters, digits, '-', '_', '.' and '~' "
        "are allowed. Pass the XCom of a GptImgSubmitOperator, as in gptimg_task_id=submit.output"
    )


@dataclass(frozen=True)
class Image:
    """One hosted image.

    :param url: Where the vendor hosts it; needs no key.
    :param content_type: What the API says it is, e.g. `image/png`; None where it does not say.
    """

    url: str
    content_type: str | None = None


@dataclass(frozen=True)
class ImageTask:
    """An image task as the API last described it.

    :param task_id: What one polls with.
    :param status: `processing`, `completed`, `failed`, or what else the API says; anything but the
        last two means "not finished yet".
    :param created_at: When the API accepted it, as the API wrote it (ISO 8601).
    :param error: Why it failed, in words; None unless it did.
    :param error_code: The API's code for that, if it gave one.
    :param age: Seconds from its acceptance to this answer by the API's own clock; None where unknown.
    """

    task_id: str
    status: str
    id: str | None = None
    type: str | None = None
    provider: str | None = None
    model: str | None = None
    media_url: str | None = None
    images: tuple[Image, ...] = ()
    created_at: str | None = None
    updated_at: str | None = None
    error: str | None = None
    error_code: str | None = None
    age: float | None = None

    @property
    def is_final(self) -> bool:
        """True if the status will not change any more."""
        return self.status in (COMPLETED, FAILED)

    @property
    def seconds(self) -> float | None:
        """Seconds that the generation took, by the API's own clock; None unless it is final and says so."""
        if not self.is_final or not self.created_at or not self.updated_at:
            return None
        try:
            taken = datetime.fromisoformat(self.updated_at) - datetime.fromisoformat(self.created_at)
        except (ValueError, TypeError):  # TypeError: one of them without a time zone
            return None
        return max(0.0, taken.total_seconds())

    @property
    def credits(self) -> int:
        """Credits that its images cost: 2 each, as documented."""
        return CREDITS_PER_IMAGE * len(self.images)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ImageTask | None:
        """Return the completed task that :meth:`as_dict` wrote; None if `entry` is not one.

        :param entry: From anywhere, so it is bounded and cleaned as an answer of the API is.
        :raises GptImgRequestError: Its `task_id` is not an id.
        :raises GptImgProtocolError: It has more images, or a longer URL, than a task can have.
        """
        task_id = check_task_id(entry.get("task_id"))
        listed = entry.get("images")
        if entry.get("status") != COMPLETED or not isinstance(listed, Sequence) or isinstance(listed, str):
            return None
        if len(listed) > MAX_IMAGES:
            raise GptImgProtocolError(
                f"The finished task {task_id} lists {len(listed)} images, and a task has at most {MAX_IMAGES}"
            )
        images = []
        for image in listed:
            if not isinstance(image, Mapping) or not isinstance(image.get("url"), str):
                return None
            images.append(Image(image["url"], _text(image, "content_type")))
        media_url = entry.get("media_url")
        media_url = media_url if isinstance(media_url, str) else None
        if any(len(url) > _LONGEST_URL for url in (*(image.url for image in images), media_url or "")):
            raise GptImgProtocolError(f"The finished task {task_id} has a URL of more than {_LONGEST_URL} characters")
        texts: dict[str, Any] = {
            name: _text(entry, name) for name in ("id", "type", "provider", "model", "created_at", "updated_at")
        }
        if not images:
            return None
        return cls(
            task_id=task_id,
            status=COMPLETED,
            images=tuple(images),
            media_url=media_url,
            **texts,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the finished task as it goes to XCom: plain JSON values."""
        return {
            "task_id": self.task_id,
            "id": self.id,
            "status": self.status,
            "type": self.type,
            "provider": self.provider,
            "model": self.model,
            "media_url": self.media_url,
            "images": [{"url": image.url, "content_type": image.content_type} for image in self.images],
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "credits": self.credits,
        }


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    return clean(value) if isinstance(value, str) else None
