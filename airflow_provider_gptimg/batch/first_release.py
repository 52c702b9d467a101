# SPDX-License-Identifier: Apache-2.0
"""Read the pages in which release 0.1 kept a batch; nothing writes them any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_gptimg.batch.facts import Fact, Get, unreadable
from airflow_provider_gptimg.journal.entries import read_first_release

__all__ = ["HEADER_KEY", "read_pages"]

HEADER_KEY = "gptimg_batch"


def read_pages(get: Get) -> tuple[list[tuple[int, Fact]], Fact | None]:
    """Return the facts in the pages, each with the number of its attempt, and the note of a delivery.

    :raises GptImgSubmissionUnknownError: A page cannot be read.
    """
    header = get(HEADER_KEY)
    if header is None:
        return [], None
    if not isinstance(header, Mapping) or not isinstance(header.get("pages"), int):
        raise unreadable(HEADER_KEY)
    facts: list[tuple[int, Fact]] = []
    passed_over, delivered = [], header.get("delivered_max_tries")
    for page in range(header["pages"]):
        key = f"{HEADER_KEY}_{page}"
        records = get(key) or []
        if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
            raise unreadable(key)
        for number, record in enumerate(records):
            facts += _facts(record, f"{page}/{number}")
            if delivered is not None and not _is_delivered(record, delivered):
                passed_over.append(record.get("task_id"))
    return facts, None if delivered is None else {"max_tries": delivered, "passed_over": passed_over}


def _facts(record: Mapping[str, Any], number: str) -> Iterator[tuple[int, Fact]]:
    attempt, request = record.get("submitted_by", 0), [record.get("fingerprint"), record.get("occurrence", 0)]
    if "submitted_at" in record:
        sent = read_first_release(record)
        yield attempt, {"sent": number, "occurrence": request[1], "prompt": record.get("prompt", ""), **sent.intent()}
        if sent.task_id:
            yield attempt, {"outcome": number, "task_id": sent.task_id}
            if record.get("mirrored"):
                yield attempt, {"task_id": sent.task_id, "objects": record["mirrored"]}
    if record.get("error"):
        yield (
            record.get("failed_by", 0),
            {"failed": record["error"], "requests": [[*request, record.get("prompt", "")]]},
        )
        if record["error"].get("type") == "GptImgTaskFailedError" and record.get("task_id"):
            yield attempt, {"refunded": record["task_id"]}


def _is_delivered(record: Mapping[str, Any], delivered: int) -> bool:
    passed_over = record.get("passed_over")
    return record.get("max_tries", 0) <= delivered and (passed_over is None or passed_over < delivered)
