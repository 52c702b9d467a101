# SPDX-License-Identifier: Apache-2.0
"""What the gallery reads from the journals of submits and batches."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_gptimg.gallery.ledgers import read_submissions
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.roles import Role
from airflow_provider_gptimg.gallery.tiles import Credits, Gallery


def journal(**entries: Any) -> dict[str, Any]:
    """Return a journal as it is in the state store: `a1_1_intent={…}` is the intent of the first attempt's POST."""
    return {f"gptimg:{name[1:].replace('_', '.')}": entry for name, entry in entries.items()}


def intent(credits: int = 2) -> dict[str, Any]:
    return {"fingerprint": "f", "credits": credits, "at": 1.0, "max_tries": 0}


def submit(state: str, values: dict[str, Any], **known: Any) -> Gallery:
    submissions = tuple(read_submissions(values, 2, Role.SUBMIT))
    return Gallery([Record("submit", -1, state, 2, prompt="A cat", submissions=submissions, **known)])


def seen(gallery: Gallery) -> list[tuple[str, str | None]]:
    return [(tile["state"], tile["image_task"]) for tile in gallery.tiles()]


def test_a_submit_under_way_is_known_before_it_returns():
    running = submit("deferred", journal(a1_1_intent=intent(4), a1_1_outcome={"task_id": "t1"}))
    assert seen(running) == [("pending", "t1"), ("pending", "t1")]
    assert running.credits() == Credits(charged=4)


def test_what_was_refused_is_not_charged():
    values = journal(
        a1_1_intent=intent(), a1_1_outcome={"refused": "429"}, a1_2_intent=intent(), a1_2_outcome={"task_id": "t1"}
    )
    assert submit("running", values).credits() == Credits(charged=2)
    assert submit("failed", journal(a1_1_intent=intent(), a1_1_outcome={"refused": "402"})).credits() == Credits()


def test_a_failed_generation_is_refunded_and_its_successor_is_the_one_tile():
    values = journal(
        a1_1_intent=intent(),
        a1_1_outcome={"task_id": "t1"},
        a1_1_end={"refunded": True},
        a2_1_intent=intent(),
        a2_1_outcome={"task_id": "t2"},
    )
    again = submit("running", values)
    assert seen(again) == [("pending", "t2")]
    assert again.credits() == Credits(charged=4, refunded=2)
    failed = submit("failed", {name: entry for name, entry in values.items() if ":1." in name})
    assert seen(failed) == [("failed", "t1")]
    assert failed.credits() == Credits(charged=2, refunded=2)


def test_an_unknown_outcome_is_said_to_be_unknown():
    unknown = submit("failed", journal(a1_1_intent=intent(8)))
    assert seen(unknown) == [("failed", None)]
    assert unknown.credits() == Credits(unknown=8)


def test_the_result_of_a_task_says_which_submission_counts():
    values = journal(
        a1_1_intent=intent(), a1_1_outcome={"task_id": "t1"}, a2_1_intent=intent(), a2_1_outcome={"task_id": "t2"}
    )
    taken_up = submit("success", values, result="t1")
    assert seen(taken_up) == [("pending", "t1")]
    assert taken_up.credits() == Credits(charged=4)


def test_a_record_of_the_first_release_is_read():
    record = {"fingerprint": "f", "credits": 6, "submitted_at": 1.0, "max_tries": 0, "task_id": "t1"}
    assert submit("running", {"gptimg_submission": record}).credits() == Credits(charged=6)


@pytest.mark.parametrize("role", [Role.SUBMIT, Role.BATCH])
@pytest.mark.parametrize("odd", [None, 5, "x", [], [5], {}, {"credits": "x"}, {"facts": 5}])
@pytest.mark.parametrize(
    "key", ["gptimg:1.1.intent", "gptimg:1.batch.0", "gptimg:1.batch", "gptimg_batch", "gptimg_submission", "gptimg:x"]
)
def test_odd_entries_break_nothing(role, odd, key):
    values = {key: odd, "gptimg_batch_0": odd}
    record = Record("task", -1, "failed", 1, role, submissions=tuple(read_submissions(values, 1, role)))
    assert len(Gallery([record]).tiles()) <= 4
