# SPDX-License-Identifier: Apache-2.0
"""Read submissions from the journal of a task instance; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE
from airflow_provider_gptimg.batch.entries import Entry
from airflow_provider_gptimg.batch.ledger import read_entries
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.gallery.recorded import Picture, Submission, mirrored_picture
from airflow_provider_gptimg.gallery.roles import Role
from airflow_provider_gptimg.journal.attempt import FIRST_RELEASE_KEY
from airflow_provider_gptimg.journal.entries import Submitted, read_first_release

__all__ = ["STATE_KEYS", "read_submissions"]

STATE_KEYS = "gptimg"
"""Prefix of the keys."""

_PREFIX = "gptimg:"
_INTENT = re.compile(re.escape(_PREFIX) + r"(\d{1,6})\.(\d{1,6})\.intent")
_MOST_ATTEMPTS = 1000


def read_submissions(values: Mapping[str, Any], try_number: int, role: Role) -> list[Submission]:
    """Return the submissions of a task instance; skip what cannot be read.

    :param values: By key in the state store.
    :param try_number: Number of the latest attempt; errors of earlier ones are left out.
    """
    try:
        return list((_of_batch if role is Role.BATCH else _of_submit)(values, try_number))
    except (GptImgError, AttributeError, KeyError, TypeError, ValueError):
        return []  # people may edit the state store


def _of_submit(values: Mapping[str, Any], try_number: int) -> Iterator[Submission]:
    sent = []
    if (record := values.get(FIRST_RELEASE_KEY)) is not None:
        sent.append(read_first_release(record))
    for attempt, post in sorted((int(found[1]), int(found[2])) for key in values if (found := _INTENT.fullmatch(key))):
        name = f"{attempt}.{post}"
        facts = (values.get(f"{_PREFIX}{name}.{fact}") for fact in ("intent", "outcome", "end"))
        sent.append(Submitted.read(name, *facts))
    # One request was sent, however often: the last submission that may have come to something has its images.
    counted = [each for each in sent if each.refused is None]
    for each in counted:
        # The name leaves out the attempt, so that the tile stays the same over retries.
        yield _submission("", each, is_refunded=each.refunded, replaced=each is not counted[-1])


def _submission(name: str, sent: Submitted, *, is_refunded: bool, replaced: bool, **known: Any) -> Submission:
    state = "refunded" if is_refunded else "accepted" if sent.task_id else "unknown"
    credits = min(int(sent.credits), MAX_IMAGES * CREDITS_PER_IMAGE)
    n = max(1, credits // CREDITS_PER_IMAGE)
    return Submission(name, sent.task_id, n, state=state, credits=credits, replaced=replaced, **known)


def _of_batch(values: Mapping[str, Any], try_number: int) -> Iterator[Submission]:
    entries = read_entries(
        lambda name: values.get(_PREFIX + name), attempts=min(try_number, _MOST_ATTEMPTS), first_release=values.get
    )
    for entry in entries:
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # an unreadable entry must not hide the others
            yield from list(_of_request(entry, try_number))


def _of_request(entry: Entry, try_number: int) -> Iterator[Submission]:
    name = f"{entry.fingerprint[:16]}.{entry.occurrence}"
    prompt = entry.prompt or None
    error = None
    if entry.error is not None and entry.failed_by == try_number:
        error = str(entry.error.get("message") or "It failed")
    counted = [sent for sent in entry.submissions if sent.refused is None]
    for sent in counted:
        objects = (entry.mirrored.get(sent.task_id or "") or {}).get("objects") or ()
        pictures = [_read_object(sent.task_id or "", index, fact) for index, fact in enumerate(objects) if fact]
        yield _submission(
            name,
            sent,
            is_refunded=sent.task_id in entry.refunded,
            replaced=sent is not counted[-1],
            prompt=prompt,
            pictures=tuple(filter(None, pictures)),
            error=error,
        )
    if not counted:
        yield Submission(name, None, 1, prompt, error=error, state="not submitted")


def _read_object(image_task: str, index: int, fact: Mapping[str, Any]) -> Picture | None:
    uri = f"s3://{fact['bucket']}/{fact['key']}"
    return mirrored_picture({**fact, "uri": uri, "task_id": image_task, "index": index})
