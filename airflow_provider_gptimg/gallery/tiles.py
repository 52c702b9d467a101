# SPDX-License-Identifier: Apache-2.0
"""Turn what the tasks of a run recorded into tiles, one for each image; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE
from airflow_provider_gptimg.gallery.recorded import Picture, Record, Submission, image_ids
from airflow_provider_gptimg.gallery.roles import Graph, Role

__all__ = ["MAX_TILES", "Credits", "Gallery"]

MAX_TILES = 5000
"""A page shows no more at once."""

_FAILED = {"failed", "upstream_failed"}
_SETTLED = {"success", "skipped", "removed"}

TaskInstance = tuple[str, int]
"""Task id and map index."""


@dataclass
class _Failure:
    """The reason for a missing image.

    :param record: The task instance that failed.
    :param instead_of: The task that did not run for that reason; None: it is `record` itself.
    """

    record: Record
    reason: str | None = None
    instead_of: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "task_id": self.record.task_id,
            "map_index": self.record.map_index,
            "try_number": self.record.try_number,
            "not_run": self.instead_of,
            "reason": self.reason,
        }


@dataclass
class _Entry:
    """An image task, or a submit that has none yet.

    :param origin: The record that named it first.
    :param name: Distinguishes it from others of the same origin.
    :param n: How many images it makes.
    :param told_by: Task instances that handled it.
    """

    origin: Record
    n: int
    prompt: str | None
    image_task: str | None = None
    name: str = ""
    pictures: dict[int, tuple[Picture, Record]] = field(default_factory=dict)
    told_by: set[TaskInstance] = field(default_factory=set)
    failure: _Failure | None = None
    submission: Submission | None = None

    @property
    def indices(self) -> Sequence[int]:
        """The images of the tile, finished or not."""
        return sorted(self.pictures) or range(1 if self.failure else self.n)

    @property
    def is_in_s3(self) -> bool:
        """True if there are pictures, all of them in S3."""
        return bool(self.pictures) and all(picture.bucket for picture, _ in self.pictures.values())

    @property
    def state(self) -> str | None:
        """State in the journal; None: it has none."""
        return self.submission.state if self.submission else None


@dataclass(frozen=True)
class Credits:
    """The recorded cost of a run's images.

    :param unknown: May have been charged: the outcome of their submits is unknown.
    """

    charged: int = 0
    refunded: int = 0
    unknown: int = 0


class Gallery:
    """The images of a run.

    Images that a submit, a wait and a transfer record are one tile; a picture in S3 wins over the hosted one.

    :param records: Of the run's task instances that make, await or mirror images.
    :param graph: Of its Dag.
    :param failed: All task instances of the run that failed, of whatever kind.
    """

    def __init__(self, records: Iterable[Record], graph: Graph | None = None, failed: Iterable[Record] = ()) -> None:
        self._graph = graph or Graph()
        self._entries: list[_Entry] = []
        self._by_image_task: dict[str, _Entry] = {}
        self._by_task: dict[str, list[_Entry]] = defaultdict(list)
        self._by_origin: dict[int, list[_Entry]] = defaultdict(list)
        records = list(records)
        # As the Dag runs: what is to be looked at first comes before what waits for it.
        before = {task_id: self._graph.count_above(task_id) for task_id in {record.task_id for record in records}}
        ordered = sorted(
            records,
            key=lambda record: (not record.role.submits, before[record.task_id], record.task_id, record.map_index),
        )
        self._failed: dict[str, list[Record]] = defaultdict(list)
        for record in (*(record for record in ordered if record.state == "failed"), *failed):
            self._failed[record.task_id].append(record)
        self._replaced = [
            (record, each) for record in ordered for each in record.submissions if _is_replaced(record, each)
        ]
        for record in ordered:
            self._add_results(record)
        for record in ordered:
            if record.state in _FAILED or (record.result is None and record.state not in _SETTLED):
                (self._add_unfinished_submit if record.role.submits else self._add_unfinished_wait)(record)
        place = {(record.task_id, record.map_index): number for number, record in enumerate(ordered)}
        self._entries.sort(key=lambda entry: place[entry.origin.task_id, entry.origin.map_index])

    def tiles(self, task_id: str | None = None, map_index: int = -1) -> list[dict[str, Any]]:
        """Return the tiles as JSON values in a stable order, at most :data:`MAX_TILES`.

        :param task_id: Only those of images that this task handled.
        :param map_index: Of that task; negative: all its instances, or the only one.
        """
        tiles = (_tile(entry, index) for entry in self._of(task_id, map_index) for index in entry.indices)
        return list(islice(tiles, MAX_TILES))

    def credits(self, task_id: str | None = None, map_index: int = -1) -> Credits:
        """Return the cost of these images, including those without a tile."""
        charged = refunded = unknown = 0
        for entry in self._of(task_id, map_index):
            images = max(entry.n, len(entry.pictures))
            credits = entry.submission.credits if entry.submission else images * CREDITS_PER_IMAGE
            if entry.state == "unknown":
                unknown += credits
            elif entry.image_task and entry.origin.role.submits:
                charged += credits
                refunded += credits if entry.state == "refunded" else 0
        for record, replaced in self._replaced:
            if task_id is None or (record.task_id == task_id and map_index in (-1, record.map_index)):
                charged += replaced.credits if replaced.image_task else 0
                refunded += replaced.credits if replaced.state == "refunded" else 0
                unknown += replaced.credits if replaced.state == "unknown" else 0
        return Credits(charged, refunded, unknown)

    def _of(self, task_id: str | None, map_index: int) -> Iterator[_Entry]:
        for entry in self._entries:
            if task_id is None or any(
                told == task_id and (map_index < 0 or index == map_index) for told, index in entry.told_by
            ):
                yield entry

    def _add_results(self, record: Record) -> None:
        """Add what a task instance returned or recorded."""
        for submission in record.submissions:
            if not _is_replaced(record, submission):
                self._add_submission(record, submission)
        if not record.submissions or record.role is not Role.BATCH:
            for image_task in record.image_tasks:
                self._tell(self._entry(image_task, record), record)
        for picture in record.pictures:
            pictures = self._entry(picture.image_task, record).pictures
            if picture.index not in pictures or not pictures[picture.index][0].bucket:
                pictures[picture.index] = (picture, record)

    def _add_submission(self, record: Record, submission: Submission) -> None:
        key = submission.image_task or f"{record.task_id}/{record.map_index}/{submission.name}"
        entry = self._entry(key, record)
        entry.image_task, entry.name, entry.n = submission.image_task, submission.name, submission.n
        entry.prompt, entry.submission = submission.prompt or record.prompt, submission
        self._tell(entry, record)
        entry.pictures |= {picture.index: (picture, record) for picture in submission.pictures}
        if submission.error and not submission.pictures:
            entry.failure = _Failure(record, submission.error)

    def _add_unfinished_submit(self, record: Record) -> None:
        """Add a submit that has nothing to show, or not yet."""
        failure = self._failure(record) if record.state in _FAILED else None
        if record.submissions:
            unfinished = [entry for entry in self._by_origin[id(record)] if not entry.pictures]
            for entry in unfinished:
                entry.failure = entry.failure or failure
            if unfinished or failure is None:
                return
        name = "batch" if record.role is Role.BATCH and record.submissions else ""
        entry = _Entry(record, record.n, record.prompt, None, name, failure=failure)
        self._entries.append(entry)
        self._tell(entry, record)

    def _add_unfinished_wait(self, record: Record) -> None:
        """Add a wait or a transfer that is running or failed; other tasks submitted its images."""
        named = [self._entry(image_task, record) for image_task in image_ids(record.fields.get("gptimg_task_id"))]
        about = named or self._from_above(record)
        for entry in about:
            self._tell(entry, record)
        if record.state not in _FAILED:
            return
        failure = self._failure(record)
        if record.state == "failed" and record.role is Role.MIRROR:
            lacking = [entry for entry in about if not entry.is_in_s3]
        else:
            # A picture that is there is fine, whatever else kept it from S3.
            lacking = [entry for entry in about if not entry.pictures]
        for entry in lacking:
            entry.failure = entry.failure or failure
        if not about and record.state == "failed":
            entry = _Entry(record, 1, None, failure=failure)
            self._entries.append(entry)
            self._tell(entry, record)

    def _from_above(self, record: Record) -> list[_Entry]:
        """Return the images of a wait whose ids Airflow has not recorded, judged by its place in the Dag."""
        for level in self._graph.levels_above(record.task_id):
            entries = [entry for task_id in sorted(level) for entry in self._by_task.get(task_id, ())]
            if not entries:
                continue
            if record.map_index < 0:
                return entries
            own = [entry for entry in entries if any((task, record.map_index) in entry.told_by for task in level)]
            return own or (entries if len(entries) == 1 else [])
        return []

    def _failure(self, record: Record) -> _Failure:
        """Return what failed: the task itself or, where that did not run, the nearest task above it that failed."""
        if record.state != "upstream_failed":
            return _Failure(record)
        for level in self._graph.levels_above(record.task_id):
            failed = [other for task_id in sorted(level) for other in self._failed.get(task_id, ())]
            if failed:
                same_index = [other for other in failed if other.map_index == record.map_index]
                return _Failure((same_index or failed)[0], instead_of=record.task_id)
        return _Failure(record, "A task before it failed", instead_of=record.task_id)

    def _entry(self, image_task: str, record: Record) -> _Entry:
        if image_task not in self._by_image_task:
            name = "" if record.role.submits else image_task
            entry = _Entry(record, record.n, record.prompt, image_task, name)
            self._by_image_task[image_task] = entry
            self._by_origin[id(record)].append(entry)
            self._entries.append(entry)
        return self._by_image_task[image_task]

    def _tell(self, entry: _Entry, record: Record) -> None:
        if not any(task_id == record.task_id for task_id, _ in entry.told_by):
            self._by_task[record.task_id].append(entry)
        if len(entry.told_by) < _MAX_TOLD_BY:
            entry.told_by.add((record.task_id, record.map_index))


def _is_replaced(record: Record, submission: Submission) -> bool:
    """Return whether another submission of the same request has its images. A successful task names it."""
    if record.role is Role.SUBMIT and record.image_tasks:
        return submission.image_task not in record.image_tasks
    return submission.replaced


_MAX_TOLD_BY = 64
"""Task instances kept for one image: a run may mirror the same image any number of times."""


def _tile(entry: _Entry, index: int) -> dict[str, Any]:
    origin = entry.origin
    tile: dict[str, Any] = {
        "id": f"{origin.task_id}:{origin.map_index}:{entry.name}:{index}",
        "state": "pending",
        "prompt": entry.prompt,
        "image_task": entry.image_task,
        "index": index,
        "of": max(len(entry.indices), entry.n),
        "task_id": origin.task_id,
        "map_index": origin.map_index,
        "try_number": origin.try_number,
        "airflow_state": origin.state,
        "waiting": "Not submitted yet" if entry.state == "not submitted" else None,
        "ratio": origin.ratio,
    }
    if index in entry.pictures:
        picture, source = entry.pictures[index]
        tile |= {
            "state": "ready",
            "source": {"task_id": source.task_id, "map_index": source.map_index},
            "uri": f"s3://{picture.bucket}/{picture.key}" if picture.bucket else None,
            "size": picture.size,
            "content_type": picture.content_type,
            "pixels": picture.pixels,
            "version": picture.version,
            "credits": CREDITS_PER_IMAGE,
        }
    if entry.failure:
        tile["failure"] = entry.failure.as_json()
        if index not in entry.pictures:
            tile["state"] = "failed"
    return tile
