# SPDX-License-Identifier: Apache-2.0
"""Read submissions from what a batch and a submit keep in the state of their task instance; pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE
from airflow_provider_gptimg.batch.entries import Entry
from airflow_provider_gptimg.batch.ledger import read_entries
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.gallery.recorded import Picture, Submission, mirrored_picture

__all__ = ["STATE_KEYS", "read_submissions"]

STATE_KEYS = "gptimg"
"""What the keys start with."""


def read_submissions(values: Mapping[str, Any], try_number: int) -> list[Submission]:
    """Return the submissions of a task instance; nothing of what cannot be read.

    :param values: By key in the state store.
    :param try_number: Of the latest attempt, to which errors of earlier ones mean nothing.
    """
    submissions = []
    with suppress(GptImgError):  # people may edit the state store
        for entry in read_entries(lambda name: values.get(f"gptimg:{name}"), try_number, values.get):
            with suppress(AttributeError, KeyError, TypeError, ValueError):
                submissions.append(_read_entry(entry, try_number))
    return submissions


def _read_entry(entry: Entry, try_number: int) -> Submission:
    sent = next((sent for sent in reversed(entry.submissions) if sent.refused is None), None)
    task_id = (sent and sent.task_id) or None
    objects = entry.mirrored[task_id]["objects"] if task_id in entry.mirrored else ()
    pictures = [_read_object(task_id, index, fact) for index, fact in enumerate(objects) if task_id and fact]
    failed = entry.error if entry.failed_by == try_number else None
    if sent is None:
        state = "not submitted"
    elif task_id is None:
        state = "unknown"
    else:
        state = "refunded" if task_id in entry.refunded else "accepted"
    credits = int(sent.credits) if sent else 0
    return Submission(
        f"{entry.fingerprint}.{entry.occurrence}",
        task_id,
        min(max(1, credits // CREDITS_PER_IMAGE), MAX_IMAGES),
        entry.prompt or None,
        tuple(filter(None, pictures)),
        str(failed.get("message") or "It failed") if failed else None,
        state,
        min(credits, MAX_IMAGES * CREDITS_PER_IMAGE),
    )


def _read_object(image_task: str, index: int, fact: Mapping[str, Any]) -> Picture | None:
    uri = f"s3://{fact['bucket']}/{fact['key']}"
    return mirrored_picture({**fact, "uri": uri, "task_id": image_task, "index": index})
