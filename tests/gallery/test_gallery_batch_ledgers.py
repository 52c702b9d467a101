# SPDX-License-Identifier: Apache-2.0
"""What the gallery reads of a batch's journal."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_gptimg.gallery import ledgers
from airflow_provider_gptimg.gallery.recorded import Submission
from airflow_provider_gptimg.gallery.roles import Role

SENT = {"sent": 1, "occurrence": 0, "prompt": "A lamp", "fingerprint": "f", "credits": 4, "at": 1.0, "max_tries": 0}
ACCEPTED = {"outcome": 1, "task_id": "t"}
FACT = {"bucket": "b", "key": "k.png", "size": 5, "content_type": "image/png", "sha256": "0" * 64, "pixels": [1, 2]}
OBJECTS = {"task_id": "t", "objects": {"objects": [{**FACT, "source_url": "https://x", "skipped": False}]}}


def read_submissions(values: dict[str, Any], try_number: int) -> list[Submission]:
    return [each for each in ledgers.read_submissions(values, try_number, Role.BATCH) if not each.replaced]


def failed(message: str) -> dict[str, Any]:
    return {"failed": {"message": message}, "requests": [["f", 0, "A lamp"]]}


def batch(*facts: dict[str, Any], attempt: int = 1) -> dict[str, Any]:
    return {f"gptimg:{attempt}.batch.0": {"version": 2, "facts": list(facts)}}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([SENT], ("unknown", None, 4, None)),
        ([SENT, ACCEPTED], ("accepted", "t", 4, None)),
        ([SENT, ACCEPTED, failed("It was late")], ("accepted", "t", 4, "It was late")),
        ([SENT, ACCEPTED, failed("It failed"), {"refunded": "t"}], ("refunded", "t", 4, "It failed")),
        ([SENT, {"outcome": 1, "refused": "429"}], ("not submitted", None, 0, None)),
        ([failed("Not submitted: low balance")], ("not submitted", None, 0, "Not submitted: low balance")),
    ],
)
def test_a_request_of_a_batch(facts: list[dict[str, Any]], expected: tuple[Any, ...]) -> None:
    (submission,) = read_submissions(batch(*facts), 1)
    assert (submission.state, submission.image_task, submission.credits, submission.error) == expected
    assert submission.prompt == "A lamp"


def test_errors_of_earlier_attempts_mean_nothing() -> None:
    (submission,) = read_submissions(batch(SENT, ACCEPTED, failed("It was late")), 2)
    assert submission.error is None


def test_pictures_are_those_of_the_latest_submission() -> None:
    again = batch({**SENT, "sent": 1}, {"outcome": 1, "task_id": "t2"}, attempt=2)
    first = batch(SENT, ACCEPTED, OBJECTS)
    (submission,) = read_submissions(first, 1)
    assert [(picture.bucket, picture.key) for picture in submission.pictures] == [("b", "k.png")]
    (submission,) = read_submissions({**first, **again}, 2)
    assert (submission.image_task, submission.pictures) == ("t2", ())


@pytest.mark.parametrize(
    "value",
    [
        5,
        {},
        {"version": 2},
        {"version": 2, "facts": [5]},
        {"version": 2, "facts": [{}]},
        {"version": 2, "facts": [{"sent": [], "fingerprint": [], "occurrence": {}}]},
        {"version": 2, "facts": [{"failed": 5, "requests": [[1]]}]},
    ],
)
def test_people_may_write_into_the_state_of_a_task(value: Any) -> None:
    assert read_submissions({"gptimg:1.batch.0": value}, 1) == []


@pytest.mark.parametrize(
    "objects",
    [{"objects": [5]}, {"objects": 5}, {"objects": [{"bucket": "b"}]}, 5],
)
def test_objects_that_cannot_be_read_are_not_shown(objects: Any) -> None:
    known = read_submissions(batch(SENT, ACCEPTED, {"task_id": "t", "objects": objects}), 1)
    assert not [picture for submission in known for picture in submission.pictures if picture.key]
