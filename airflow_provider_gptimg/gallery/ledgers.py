# SPDX-License-Identifier: Apache-2.0
"""Read submissions from what a batch and a submit keep in the state of their task instance; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE
from airflow_provider_gptimg.batch.ledger import Entry, page_key
from airflow_provider_gptimg.gallery.recorded import Picture, Submission, mirrored_picture

__all__ = ["STATE_KEYS", "read_submissions"]

STATE_KEYS = "gptimg_"
"""What the keys start with."""

_PAGE = re.compile(re.escape(page_key(0)[:-1]) + r"(\d{1,6})")


def read_submissions(values: Mapping[str, Any], try_number: int) -> list[Submission]:
    """Return the submissions of a task instance; nothing of what cannot be read.

    :param values: By key in the state store.
    :param try_number: Of the latest attempt, to which errors of earlier ones mean nothing.
    """
    pages = {int(found[1]): page for key, page in values.items() if (found := _PAGE.fullmatch(key))}
    return [each for number in sorted(pages) for each in _read_page(number, pages[number], try_number)]


def _read_page(page_number: int, page: Any, try_number: int) -> Iterator[Submission]:
    for number, value in enumerate(page if isinstance(page, list) else ()):
        try:
            yield _read_entry(Entry.from_json(value, page_number, None), f"{page_number}.{number}", try_number)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # people may edit the state store


def _read_entry(entry: Entry, name: str, try_number: int) -> Submission:
    objects = (entry.mirrored or {}).get("objects") or ()
    pictures = [_read_object(entry.task_id, index, fact) for index, fact in enumerate(objects) if fact]
    failed = entry.error if entry.failed_by == try_number else None
    error = str(failed.get("message") or "It failed") if failed else None
    credits = int(entry.submission.credits) if entry.submission else 0
    if not entry.submission:
        state = "not submitted"
    elif not entry.task_id:
        state = "unknown"
    else:
        state = "refunded" if entry.is_refunded else "accepted"
    n = min(max(1, credits // CREDITS_PER_IMAGE), MAX_IMAGES)
    return Submission(
        name,
        entry.task_id or None,
        n,
        entry.prompt or None,
        tuple(filter(None, pictures)),
        error,
        state,
        min(credits, MAX_IMAGES * CREDITS_PER_IMAGE),
    )


def _read_object(image_task: str, index: int, fact: Mapping[str, Any]) -> Picture | None:
    uri = f"s3://{fact['bucket']}/{fact['key']}"
    return mirrored_picture({**fact, "uri": uri, "task_id": image_task, "index": index})
