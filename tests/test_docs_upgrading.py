# SPDX-License-Identifier: Apache-2.0
"""What the page on upgrading promises: what release 0.1 wrote is understood, here frozen as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.journal.entries import Decision, decide, read_first_release
from airflow_provider_gptimg.waiting import read_event, read_task_ids

REQUEST = ImageRequest.check(
    "A lighthouse",
    aspect_ratio="3:2",
    n=2,
    reference_images=["s3://bucket/a.png"],
    extra_body={"quality": "high"},
)
FINGERPRINT = "9c36e8b9d2c43bb6da9ca1b43bd32f3c317be30296cc0ce5efea8da8f065c4c6"
RECORD = json.loads(
    f'{{"version": 1, "fingerprint": "{FINGERPRINT}", "credits": 4, "submitted_at": 1776816723.5, "max_tries": 2, '
    '"task_id": "gpt-image-2-x", "delivered_max_tries": null}'
)


def test_a_requests_fingerprint_stays():
    assert REQUEST.fingerprint("gptimg_default") == FINGERPRINT


def decision(record: Any) -> Decision:
    return decide([read_first_release(record)], FINGERPRINT, 2, "fail").decision


def test_a_record_is_taken_up():
    assert decision(RECORD) is Decision.TAKE_UP


def test_a_record_with_fields_of_a_later_release_is_taken_up():
    assert decision({**RECORD, "version": 2, "colour": "blue"}) is Decision.TAKE_UP


@pytest.mark.parametrize("value", [None, [], "text", {"version": 2}, {**RECORD, "fingerprint": 7}])
def test_a_record_that_cannot_be_read_pays_nothing(value):
    assert decision(value) is Decision.STOP


@pytest.mark.parametrize("event", [None, "success", {}, {"status": "completed", "task": {"id": 1}}, ["finished"]])
def test_an_event_of_another_release_is_a_sign_to_look(event):
    assert read_event(event) == "unknown"


def test_a_finished_task_in_xcom_stands_for_its_id():
    finished = json.loads(
        '{"task_id": "gpt-image-2-x", "id": "x", "status": "completed", "type": "text-to-image", "provider": "p", '
        '"model": "gpt-image-2", "media_url": "https://gptimg.co/a.png", "images": [{"url": "https://gptimg.co/a.png", '
        '"content_type": "image/png"}], "created_at": null, "updated_at": null, "credits": 2}'
    )
    task_ids, known = read_task_ids(finished)
    assert task_ids == ["gpt-image-2-x"]
    assert known["gpt-image-2-x"].as_dict() == finished
