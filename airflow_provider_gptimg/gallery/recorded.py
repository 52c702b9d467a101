# SPDX-License-Identifier: Apache-2.0
"""Read what a task instance recorded about images, from values that anybody may have written; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.api.tasks import COMPLETED, CREDITS_PER_IMAGE, is_task_id
from airflow_provider_gptimg.gallery.roles import Role

__all__ = ["Picture", "Record", "Submission", "image_ids", "mirrored_picture"]


@dataclass(frozen=True)
class Picture:
    """The place of an image's bytes.

    :param url: Where the vendor hosts it.
    :param bucket: Of its object in S3, likewise `key`; None: it has none.
    :param version: Changes when the bytes do.
    :param pixels: Width and height.
    """

    image_task: str
    index: int
    url: str | None = None
    bucket: str | None = None
    key: str | None = None
    size: int | None = None
    content_type: str | None = None
    version: str | None = None
    pixels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Submission:
    """One request, as a journal or a batch's ledger has recorded it.

    :param name: Distinguishes it from others of the same task instance.
    :param image_task: None: it has not been accepted.
    :param state: `accepted`, `refunded`, `unknown` or `not submitted`.
    :param credits: What it costs once accepted.
    :param error: Why it has no images.
    :param replaced: A later submission of the same request has its images; only its credits count.
    """

    name: str
    image_task: str | None
    n: int
    prompt: str | None = None
    pictures: tuple[Picture, ...] = ()
    error: str | None = None
    state: str = "accepted"
    credits: int = 0
    replaced: bool = False


@dataclass(frozen=True)
class Record:
    """A task instance, as Airflow knows it.

    :param state: Airflow's; None: not scheduled yet.
    :param fields: Its rendered template fields; empty where Airflow keeps them no longer.
    :param result: What it returned; None: nothing, or nothing yet.
    :param prompt: Of what it submitted; None: unknown.
    :param charged: Credits that its latest attempt was charged; 0: none, or unknown.
    :param submissions: As far as they are recorded apart from its result.
    :param has_own_journal: No other task can write into its journal; into one in Variables it can.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    role: Role = Role.SUBMIT
    fields: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    prompt: str | None = None
    charged: int = 0
    submissions: tuple[Submission, ...] = ()
    has_own_journal: bool = True

    @property
    def n(self) -> int:
        """Number of images requested, as far as it is known."""
        # Airflow drops the fields of older runs.
        n = str(self.fields.get("n", self.charged // CREDITS_PER_IMAGE))
        return int(n) if n in ("1", "2", "3", "4") else 1

    @property
    def ratio(self) -> float | None:
        """Width by height that it asked for; None: it left that to the API, or it is not known."""
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", str(self.fields.get("aspect_ratio")))
        return int(found[1]) / int(found[2]) if found and int(found[2]) else None

    @property
    def image_tasks(self) -> list[str]:
        """The ids of the image tasks that its result names, each once."""
        told: dict[str, None] = {}
        for entry in self._results:
            if self.role.submits and is_task_id(entry):
                told[entry] = None
            elif isinstance(entry, Mapping) and isinstance(entry.get("task_id"), str):
                told[entry["task_id"]] = None
        return list(told)

    @property
    def pictures(self) -> Iterator[Picture]:
        """The pictures that its result names."""
        for entry in self._results:
            if not isinstance(entry, Mapping) or not isinstance(image_task := entry.get("task_id"), str):
                continue
            if picture := mirrored_picture(entry):
                yield picture
            elif entry.get("status") == COMPLETED and isinstance(images := entry.get("images"), list):
                for index, image in enumerate(images[:MAX_IMAGES]):
                    if isinstance(image, Mapping) and isinstance(url := image.get("url"), str):
                        yield Picture(image_task, index, url=url, content_type=_text(image.get("content_type")))

    def find(self, image_task: str, index: int) -> Picture | None:
        """Return the picture with this image task and index; None: there is none."""
        recorded = (picture for each in self.submissions if not each.replaced for picture in each.pictures)
        for picture in chain(self.pictures, recorded):
            if (picture.image_task, picture.index) == (image_task, index):
                return picture
        return None

    @cached_property
    def _results(self) -> list[Any]:
        return self.result if isinstance(self.result, list) else [self.result]


def mirrored_picture(entry: Mapping[str, Any]) -> Picture | None:
    """Return the picture of a mirrored object, as XComs have it; None if it cannot be read."""
    uri, image_task, index, size = (entry.get(name) for name in ("uri", "task_id", "index", "size"))
    if not (isinstance(uri, str) and isinstance(image_task, str) and type(index) is int and index >= 0):
        return None
    scheme, _, place = uri.partition("://")
    bucket, _, key = place.partition("/")
    if scheme != "s3" or not bucket or not key:
        return None
    return Picture(
        image_task,
        index,
        bucket=bucket,
        key=key,
        size=size if type(size) is int and size >= 0 else None,
        content_type=_text(entry.get("content_type")),
        version=_text(entry.get("sha256")),
        pixels=_pixels(entry.get("pixels")),
    )


def image_ids(value: Any) -> list[str]:
    """Return the ids of image tasks in an operator's rendered argument: one, or a list of them."""
    entries = value if isinstance(value, list) else [value]
    ids = (entry.get("task_id") if isinstance(entry, Mapping) else entry for entry in entries)
    return list(dict.fromkeys(filter(is_task_id, ids)))


def _pixels(value: Any) -> tuple[int, int] | None:
    match value:
        case [int(width), int(height)] if 0 < width < 1 << 20 and 0 < height < 1 << 20:
            return width, height
    return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
