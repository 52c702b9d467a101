# SPDX-License-Identifier: Apache-2.0
"""With the journal in S3, on a running Airflow: submissions under way, and credits of a run and of a DAG."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from batch_watch import watch_batch

from airflow_provider_gptimg.sandbox.rest import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def test_a_submission_under_way_is_shown_before_its_task_returns(s3_gallery):
    run = s3_gallery.start("gallery_hosted", prompts=["Under way", "Another"])
    known = {s3_gallery.submitted(prompt) for prompt in ("Under way", "Another")}
    until(lambda: {tile["image_task"] for tile in s3_gallery.tiles(run)} == known, 120, "both image tasks to be known")
    assert {tile["state"] for tile in s3_gallery.tiles(run)} == {"pending"}
    assert s3_gallery.told(run)["credits"] == {"charged": 4, "refunded": 0, "unknown": 0}
    for image_task in known:
        s3_gallery.emulator.finish(image_task)
    assert run.wait() == "success"


def test_a_batch_under_way_shows_each_request_and_its_credits_are_told(s3_gallery):
    began = datetime.now(UTC)
    run = watch_batch(s3_gallery)
    amounts = {"charged": 6, "refunded": 2, "reused": 0, "unknown": 0, "net": 4}
    told = s3_gallery.told(run, "spending")
    assert told == {"by": "task", "rows": [{"name": "batch", **amounts}], "total": amounts}
    told = s3_gallery.told(run, "spending", user="otto", days="30")
    assert told["total"] == amounts
    assert (len(told["rows"]), told["runs"], told["cut"]) == (30, 1, False)
    (of_the_day,) = [row for row in told["rows"] if row["net"]]
    days = {f"{moment:%Y-%m-%d}" for moment in (began, datetime.now(UTC))}
    assert of_the_day.pop("name") in days
    assert of_the_day == amounts


@pytest.mark.parametrize(("user", "status"), [("admin", 200), ("vera", 200), ("otto", 403), (None, 401)])
def test_who_may_not_see_a_dag_sees_nothing_of_its_credits(s3_gallery, user, status):
    run = s3_gallery.start("gallery_private", prompt="What did it cost?")
    s3_gallery.emulator.finish(s3_gallery.submitted("What did it cost?"))
    assert run.wait() == "success"
    with s3_gallery.http(user) as client:
        for query in ({}, {"run_id": run.run_id}):
            answer = client.get("/gptimg/dags/gallery_private/spending", params=query)
            assert answer.status_code == status
            assert ("charged" in answer.text) is (status == 200)
            if status == 403:
                # Nor by way of a DAG that this person may see.
                other = client.get("/gptimg/dags/gallery_batch/spending", params=query | {"run_id": run.run_id})
                assert other.json()["rows"] == []
