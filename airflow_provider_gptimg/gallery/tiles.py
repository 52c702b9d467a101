# SPDX-License-Identifier: Apache-2.0
"""What there is to see of a run: one tile an image, whichever of its tasks told of it; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.api.tasks import COMPLETED, CREDITS_PER_IMAGE

__all__ = ["MAX_TILES", "Listed", "Picture", "Record", "find_picture", "make_tiles", "mirrored_picture"]

MAX_TILES = 5000
"""More than that no page shows at once, and no person looks through."""

# A rendered XCom may be text that describes it.
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]*")
_FAILED = {"failed", "upstream_failed"}
_SETTLED = {"success", "skipped", "removed"}


@dataclass(frozen=True)
class Picture:
    """Where the bytes of an image are.

    :param url: Where the vendor hosts it.
    :param bucket: Of its object in S3, likewise `key`; None: it has none.
    :param version: Changes when the bytes do.
    """

    image_task: str
    index: int
    url: str | None = None
    bucket: str | None = None
    key: str | None = None
    size: int | None = None
    content_type: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Listed:
    """One request of a batch.

    :param name: Tells it from the batch's others.
    :param image_task: None: it has not been submitted.
    :param error: Why it has no images.
    """

    name: str
    image_task: str | None
    n: int
    prompt: str | None = None
    pictures: tuple[Picture, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Record:
    """What Airflow knows of a task instance.

    :param state: Airflow's; None: not scheduled yet.
    :param fields: Its rendered template fields; empty where Airflow keeps them no longer.
    :param result: What it returned; None: nothing, or nothing yet.
    :param prompt: Of what it submitted; None: unknown.
    :param listed: The requests of a batch.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    operator: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    result: Any = None
    prompt: str | None = None
    listed: tuple[Listed, ...] = ()

    @property
    def submits(self) -> bool:
        """Whether it asks for images, rather than waits for them."""
        return "Batch" in self.operator or not self.operator.endswith(("Sensor", "ToS3Operator"))


def find_picture(record: Record, image_task: str, index: int) -> Picture | None:
    """Return the picture that a task instance names; None if it names none such."""
    listed = (picture for listed in record.listed for picture in listed.pictures)
    for picture in chain(_pictures(record), listed):
        if (picture.image_task, picture.index) == (image_task, index):
            return picture
    return None


@dataclass
class _Entry:
    """An image task, or a submit that has none yet.

    :param origin: The record that told of it first.
    :param name: Tells it from others of the same origin.
    :param n: How many images it makes.
    :param failure: The record that says why there are none, or none in S3; `reason`: why, where that is known.
    """

    origin: Record
    n: int
    prompt: str | None
    image_task: str | None = None
    name: str = ""
    pictures: dict[int, tuple[Picture, Record]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    failure: Record | None = None
    reason: str | None = None

    @property
    def indices(self) -> Sequence[int]:
        """Which images there are, or are to be."""
        return sorted(self.pictures) or range(1 if self.failure else self.n)

    @property
    def is_in_s3(self) -> bool:
        """Whether there are pictures, all of them in S3."""
        return bool(self.pictures) and all(picture.bucket for picture, _ in self.pictures.values())


def mirrored_picture(entry: Mapping[str, Any]) -> Picture | None:
    """Return the picture that a mirrored object, as XComs tell of one, stands for; None if it stands for none."""
    uri, image_task, index, size = (entry.get(name) for name in ("uri", "task_id", "index", "size"))
    if not (isinstance(uri, str) and isinstance(image_task, str) and isinstance(index, int) and index >= 0):
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
        size=size if isinstance(size, int) else None,
        content_type=_text(entry.get("content_type")),
        version=_text(entry.get("sha256")),
    )


def make_tiles(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the tiles of a run as JSON values, in an order that stays; of very many, the first :data:`MAX_TILES`.

    Images that a submit, a wait and a transfer tell of are one tile; a picture in S3 wins over the hosted one.
    """
    ordered = sorted(records, key=lambda record: (not record.submits, record.task_id, record.map_index))
    run = _Run()
    for record in ordered:
        run.add_results(record)
    for record in ordered:
        if record.state in _FAILED or (record.result is None and record.state not in _SETTLED):
            (run.add_unfinished_submit if record.submits else run.add_unfinished_wait)(record)
    place = {(record.task_id, record.map_index): number for number, record in enumerate(ordered)}
    run.entries.sort(key=lambda entry: place[entry.origin.task_id, entry.origin.map_index])
    tiles = (_tile(entry, index) for entry in run.entries for index in entry.indices)
    return list(islice(tiles, MAX_TILES))


class _Run:
    """The image tasks of a run, as one record after another tells of them."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self._by_image_task: dict[str, _Entry] = {}

    def add_results(self, record: Record) -> None:
        """Take in what a task instance returned."""
        for image_task in _image_tasks(record):
            self._entry(image_task, record).records.append(record)
        for picture in _pictures(record):
            pictures = self._by_image_task[picture.image_task].pictures
            if picture.index not in pictures or not pictures[picture.index][0].bucket:
                pictures[picture.index] = (picture, record)
        for listed in record.listed:
            entry = self._entry(listed.image_task or f"{record.task_id}/{record.map_index}/{listed.name}", record)
            entry.image_task, entry.name, entry.n = listed.image_task, listed.name, listed.n
            entry.prompt = listed.prompt
            entry.records.append(record)
            entry.pictures |= {picture.index: (picture, record) for picture in listed.pictures}
            if listed.error and not listed.pictures:
                entry.failure, entry.reason = record, listed.error

    def add_unfinished_submit(self, record: Record) -> None:
        """Take in a submit that has nothing to show, or not yet."""
        failure = record if record.state in _FAILED else None
        if record.listed:
            unfinished = [entry for entry in self.entries if entry.origin is record and not entry.pictures]
            for entry in unfinished:
                entry.failure = entry.failure or failure
            if unfinished or failure is None:
                return
        name = "batch" if record.listed else ""
        self.entries.append(
            _Entry(record, _count(record), record.prompt, None, name, records=[record], failure=failure)
        )

    def add_unfinished_wait(self, record: Record) -> None:
        """Take in a wait or a transfer that goes on or has failed: it is about what others have submitted."""
        about = [self._entry(image_task, record) for image_task in _ids(record.fields.get("gptimg_task_id"))]
        if not about:
            # What was mapped is rendered to text that names no ids: then it is about its neighbours.
            group = record.task_id.rpartition(".")[0]
            about = [entry for entry in self.entries if entry.origin.task_id.rpartition(".")[0] == group]
        for entry in about:
            entry.records.append(record)
        if record.state not in _FAILED:
            return
        if record.operator.endswith("ToS3Operator"):
            failed = [entry for entry in about if not entry.is_in_s3]
        else:
            failed = [entry for entry in about if not entry.pictures]
        for entry in failed:
            entry.failure = entry.failure or record
        if not about and record.state == "failed":
            self.entries.append(_Entry(record, 1, None, records=[record], failure=record))

    def _entry(self, image_task: str, record: Record) -> _Entry:
        if image_task not in self._by_image_task:
            name = "" if record.submits else image_task
            entry = _Entry(record, _count(record), record.prompt, image_task, name)
            self._by_image_task[image_task] = entry
            self.entries.append(entry)
        return self._by_image_task[image_task]


def _tile(entry: _Entry, index: int) -> dict[str, Any]:
    origin = entry.origin
    tile: dict[str, Any] = {
        "id": f"{origin.task_id}:{origin.map_index}:{entry.name}:{index}",
        "state": "pending",
        "prompt": entry.prompt,
        "image_task": entry.image_task,
        "index": index,
        "task_id": origin.task_id,
        "map_index": origin.map_index,
        "airflow_state": origin.state,
        "seen_by": sorted({f"{record.task_id}:{record.map_index}" for record in entry.records}),
    }
    if index in entry.pictures:
        picture, source = entry.pictures[index]
        tile |= {
            "state": "ready",
            "source": {"task_id": source.task_id, "map_index": source.map_index},
            "uri": f"s3://{picture.bucket}/{picture.key}" if picture.bucket else None,
            "size": picture.size,
            "content_type": picture.content_type,
            "version": picture.version,
            "credits": CREDITS_PER_IMAGE,
        }
    if entry.failure:
        failure = entry.failure
        tile["failure"] = {
            "task_id": failure.task_id,
            "map_index": failure.map_index,
            "try_number": failure.try_number,
            "upstream": failure.state == "upstream_failed",
            "reason": entry.reason,
        }
        if index not in entry.pictures:
            tile["state"] = "failed"
    return tile


def _count(record: Record) -> int:
    """Return how many images a submit was asked for, as far as that is known."""
    n = str(record.fields.get("n", 1))
    return int(n) if n in ("1", "2", "3", "4") else 1


def _entries(record: Record) -> Iterator[Any]:
    yield from record.result if isinstance(record.result, list) else [record.result]


def _ids(value: Any) -> Iterator[str]:
    for entry in value if isinstance(value, list) else [value]:
        image_task = entry.get("task_id") if isinstance(entry, Mapping) else entry
        if isinstance(image_task, str) and _TASK_ID.fullmatch(image_task):
            yield image_task


def _image_tasks(record: Record) -> Iterator[str]:
    """Yield the ids of the image tasks that a task instance tells of, each once."""
    told: dict[str, None] = {}
    for entry in _entries(record):
        if isinstance(entry, str) and record.submits and _TASK_ID.fullmatch(entry):
            told[entry] = None
        elif isinstance(entry, Mapping) and isinstance(entry.get("task_id"), str):
            told[entry["task_id"]] = None
    yield from told


def _pictures(record: Record) -> Iterator[Picture]:
    """Yield the pictures that a task instance's result names."""
    for entry in _entries(record):
        if not isinstance(entry, Mapping) or not isinstance(image_task := entry.get("task_id"), str):
            continue
        if picture := mirrored_picture(entry):
            yield picture
        elif entry.get("status") == COMPLETED and isinstance(images := entry.get("images"), list):
            for index, image in enumerate(images[:MAX_IMAGES]):
                if isinstance(image, Mapping) and isinstance(url := image.get("url"), str):
                    yield Picture(image_task, index, url=url, content_type=_text(image.get("content_type")))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
