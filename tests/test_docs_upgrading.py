# SPDX-License-Identifier: Apache-2.0
"""What the page on upgrading promises: what release 0.1 wrote is understood, here frozen as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.batch.ledger import Ledger, Standing
from airflow_provider_gptimg.batch.requests import BatchRequest
from airflow_provider_gptimg.exceptions import GptImgSubmissionUnknownError
from airflow_provider_gptimg.submission import Decision, SubmissionRecord, decide
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
PAGE = json.loads(
    f'[{{"fingerprint": "{FINGERPRINT}", "occurrence": 0, "version": 1, "credits": 4, "submitted_at": 1776816723.5, '
    '"max_tries": 2, "task_id": "gpt-image-2-x", "submitted_by": 1, "mirrored": {"created_at": null, "updated_at": '
    'null, "objects": [{"bucket": "b", "key": "k", "content_type": "image/png", "size": 1, "sha256": "0", "pixels": '
    '[1, 1], "source_url": "https://gptimg.co/a.png", "skipped": false}]}}, '
    f'{{"fingerprint": "{FINGERPRINT}", "occurrence": 1, "version": 1, "credits": 4, "submitted_at": 1776816723.5, '
    '"max_tries": 2, "task_id": "gpt-image-2-y", "submitted_by": 1}, '
    f'{{"fingerprint": "{FINGERPRINT}", "occurrence": 2, "version": 1, "credits": 4, "submitted_at": 1776816723.5, '
    '"max_tries": 2, "submitted_by": 1}]'
)


class Store(dict[str, Any]):
    """A task instance's state, as a release left it."""


def context(store: Store) -> Any:
    return {"task_state_store": store}


def test_a_requests_fingerprint_stays():
    assert REQUEST.fingerprint("gptimg_default") == FINGERPRINT


def test_a_record_is_taken_up():
    record = SubmissionRecord.from_json(RECORD)
    assert decide(record, REQUEST.fingerprint("gptimg_default"), 2, "fail") is Decision.TAKE_UP
    assert record.to_json() == RECORD


def test_a_record_with_fields_of_a_later_release_is_taken_up():
    record = SubmissionRecord.from_json({**RECORD, "version": 2, "colour": "blue"})
    assert decide(record, FINGERPRINT, 2, "fail") is Decision.TAKE_UP


@pytest.mark.parametrize("value", [None, [], "text", {"version": 2}, {**RECORD, "fingerprint": 7}])
def test_a_record_that_cannot_be_read_pays_nothing(value):
    assert decide(SubmissionRecord.from_json(value), FINGERPRINT, 2, "fail") is Decision.STOP


def test_the_records_of_a_batch_are_read():
    store = Store(gptimg_batch={"version": 1, "pages": 1}, gptimg_batch_0=PAGE)
    ledger = Ledger(context(store), "gptimg_default")
    entries = ledger.enter([BatchRequest(f"requests[{index}]", REQUEST) for index in range(4)])
    standings = [entry.standing(2, 2, "fail") for entry in entries]
    assert standings == [Standing.MIRRORED, Standing.IN_FLIGHT, Standing.UNKNOWN, Standing.PENDING]
    assert [entry.to_json() for entry in entries[:3]] == [record | {"prompt": "A lighthouse"} for record in PAGE]


@pytest.mark.parametrize(
    "store",
    [
        Store(gptimg_batch={"version": 2, "chapters": 1}),
        Store(gptimg_batch={"version": 1, "pages": 1}, gptimg_batch_0={"entries": []}),
    ],
)
def test_records_of_a_batch_that_cannot_be_read_submit_nothing(store):
    with pytest.raises(GptImgSubmissionUnknownError):
        Ledger(context(store), "gptimg_default")


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
