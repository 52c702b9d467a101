# SPDX-License-Identifier: Apache-2.0
"""Image tasks, their pictures, and the credits they move."""

from __future__ import annotations

import string
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.emulator.pictures import CONTENT_TYPES, draw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

__all__ = ["CREDITS_PER_IMAGE", "LedgerEntry", "Picture", "Task", "new_pictures", "new_task_id"]

CREDITS_PER_IMAGE = 2

_PREFIX = "gpt-image-2-"
_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 21


@dataclass(frozen=True)
class LedgerEntry:
    """One movement of credits at a moment (Unix seconds): a `charge`, or the `refund` of a failed task."""

    user: str
    kind: str
    credits: int
    task_id: str
    at: float


@dataclass(frozen=True)
class Picture:
    """One image of a task: its file name, what it is declared to be, and how to get its bytes."""

    name: str
    content_type: str
    read: Callable[[], bytes]


@dataclass
class Task:
    """An image task. What the emulator hands out is a copy, which later events do not change.

    `request` is the JSON body it was submitted with; `created_at` and `finished_at` are Unix seconds.
    `outcome` is the status it will end with (None: unknown yet), `due_poll` the poll it will end at.
    `polls` counts the GETs that were answered with this task, at the moments `poll_times` (Unix seconds).
    `charged` and `refunded` are credits.
    """

    task_id: str
    user: str
    prompt: str
    n: int
    request: dict[str, Any]
    type: str
    created_at: float
    pictures: tuple[Picture, ...]
    image_urls: tuple[str, ...] | None = None
    outcome: str | None = None
    error: str | dict[str, Any] | None = None
    due_poll: int | None = None
    status: str = "processing"
    finished_at: float | None = None
    charged: int = 0
    refunded: int = 0
    polls: int = 0
    poll_times: list[float] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The task id without the model's name in front."""
        return self.task_id.removeprefix(_PREFIX)

    @property
    def images(self) -> list[bytes]:
        """The images' bytes; none unless the task is completed."""
        return [picture.read() for picture in self.pictures] if self.status == "completed" else []


def new_task_id(chance: random.Random) -> str:
    """Return an id as the API makes them."""
    return _PREFIX + "".join(chance.choices(_ID_LETTERS, k=_ID_LENGTH))


def new_pictures(
    chance: random.Random,
    task_id: str,
    prompt: str,
    n: int,
    *,
    aspect_ratio: str | None = None,
    formats: Sequence[str] = ("png",),
    contents: Sequence[bytes] | None = None,
    content_type: str | None = None,
) -> tuple[Picture, ...]:
    """Return `n` pictures, in each of the formats in turn: drawn when first read, or the given contents."""
    pictures = []
    for index in range(n):
        image_format = formats[index % len(formats)]
        if contents is None:
            read = partial(draw, prompt, index + 1, n, task_id, aspect_ratio, image_format)
        else:
            read = partial(bytes, contents[index % len(contents)])
        name = f"{uuid.UUID(int=chance.getrandbits(128), version=4)}.{image_format}"
        pictures.append(Picture(name, content_type or CONTENT_TYPES[image_format], read))
    return tuple(pictures)
