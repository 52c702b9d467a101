# SPDX-License-Identifier: Apache-2.0
"""What S3 may do to a mirror: deny, throttle, lose answers. Clear errors, retried where that helps."""

from __future__ import annotations

from typing import Any

import pytest
from mirroring_images import picture
from s3_proxy import CUT, LOST, Refusal

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgError

DENIED = (403, "AccessDenied")


def keys(s3: Any) -> list[str]:
    return [found["Key"] for found in s3.list_objects_v2(Bucket="images").get("Contents", ())]


def downloads(emulator: Any) -> int:
    return sum("outputs" in call.path for call in emulator.calls)


def is_list(request: Any) -> bool:
    return "list-type" in request.query


@pytest.mark.parametrize(
    "refusal",
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (409, "ConditionalRequestConflict"),
        (400, "BadDigest"),
        (400, "XAmzContentSHA256Mismatch"),
        CUT,
    ],
    ids=lambda refusal: refusal[1][:25],
)
def test_a_failure_that_passes_is_ridden_out(emulator, s3, proxy, mirror, hasty, refusal):
    content = picture()
    proxy.fault("PUT", *refusal)
    (mirrored,) = mirror(emulator.add_task(image_bytes=content))
    assert s3.get_object(Bucket="images", Key=mirrored["key"])["Body"].read() == content
    assert downloads(emulator) == 1


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (400, "ExpiredToken"), CUT], ids=lambda r: r[1][:25])
def test_a_failure_that_lasts_is_left_to_airflows_retries(emulator, s3, proxy, mirror, hasty, refusal):
    proxy.fault("PUT", *refusal, times=None)
    with pytest.raises(GptImgError, match=r"S3 does not take s3://images/gptimg/.*/0\.png") as caught:
        mirror(emulator.add_task())
    assert type(caught.value) is GptImgError
    if refusal is not CUT:
        assert refusal[1] in str(caught.value)
    assert not keys(s3)


@pytest.mark.parametrize(
    "refusal", [DENIED, (403, "InvalidAccessKeyId"), (400, "InvalidStorageClass")], ids=lambda r: r[1]
)
def test_a_refusal_fails_at_once(emulator, s3, proxy, mirror, refusal):
    proxy.fault("PUT", *refusal, times=None)
    with pytest.raises(AirflowFailException, match=f"s3://images/gptimg/.*{refusal[1]}"):
        mirror(emulator.add_task())


def test_an_object_that_is_refused_keeps_no_other_from_its_place(emulator, s3, proxy, mirror):
    task_ids = [emulator.add_task() for _ in range(6)]
    locked = f"/images/gptimg/{task_ids[0]}/"
    proxy.rule = lambda request: DENIED if request.method == "PUT" and request.path.startswith(locked) else None
    with pytest.raises(AirflowFailException, match=f"{task_ids[0]}.*AccessDenied.*Of 6 image tasks 1 failed"):
        mirror(task_ids, concurrency=1)
    assert len(keys(s3)) == 5


def test_a_refusal_ends_the_downloads(emulator, s3, proxy, mirror):
    proxy.fault("PUT", *DENIED, times=None)
    with pytest.raises(AirflowFailException, match="Of 20 image tasks 20 failed"):
        mirror([emulator.add_task(n=2) for _ in range(20)])
    assert downloads(emulator) <= 8  # four under way, and those that began before the first refusal was known


def test_a_bucket_that_is_not_there_is_found_out_before_any_download(emulator, s3, mirror):
    with pytest.raises(AirflowFailException, match="NoSuchBucket"):
        mirror(emulator.add_task(), s3_bucket="elsewhere")
    assert not downloads(emulator)


def test_an_object_whose_answer_was_lost_is_known_again(emulator, s3, proxy, mirror):
    content = picture()
    proxy.fault("PUT", *LOST)
    (mirrored,) = mirror(emulator.add_task(image_bytes=content))
    assert s3.get_object(Bucket="images", Key=mirrored["key"])["Body"].read() == content
    assert downloads(emulator) == 1


@pytest.mark.parametrize("declared", ["image/png", "image/jpeg", None])
def test_it_works_without_permission_to_list(emulator, s3, proxy, mirror, declared):
    """S3 then says 403 for what is not there; a second run downloads nothing all the same."""

    def rule(request: Any) -> Refusal | None:
        if is_list(request) or (request.method == "HEAD" and request.path.removeprefix("/images/") not in keys(s3)):
            return DENIED
        return None

    proxy.rule = rule
    task_ids = [emulator.add_task(n=2, content_type=declared), emulator.add_task(content_type=declared)]
    first_run = mirror(task_ids)
    before = downloads(emulator)
    assert mirror(task_ids) == [{**mirrored, "skipped": True} for mirrored in first_run]
    assert downloads(emulator) == before == 3


@pytest.mark.parametrize("declared", ["image/png", "image/webp", "text/html"])
def test_a_second_run_downloads_nothing_whatever_was_declared(emulator, s3, proxy, mirror, declared):
    task_id = emulator.add_task(n=3, content_type=declared)
    mirror(task_id)
    proxy.requests.clear()
    before = downloads(emulator)
    assert all(mirrored["skipped"] for mirrored in mirror(task_id))
    assert downloads(emulator) == before
    assert len(proxy.requests) == 4  # one that lists, and a look at each


def test_new_images_cost_one_request_to_look_for_all_of_them(emulator, s3, proxy, mirror):
    mirror([emulator.add_task(n=2) for _ in range(5)])
    assert (proxy.seen("GET"), proxy.seen("HEAD"), proxy.seen("PUT")) == (1, 0, 10)


def test_a_folder_of_thousands_is_not_read_through(emulator, s3, proxy, mirror):
    truncated = (200, "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")
    proxy.fault("GET", *truncated)
    mirror([emulator.add_task() for _ in range(3)])
    assert sum("list-type" in request.target for request in proxy.requests) == 4


def test_a_store_without_conditional_writes_is_asked_first(emulator, s3, proxy, mirror):
    refused = (501, "NotImplemented")
    proxy.rule = lambda request: refused if "if-none-match" in request.headers else None
    task_id = emulator.add_task()
    (mirrored,) = mirror(task_id)
    assert not mirrored["skipped"]
    s3.put_object(Bucket="images", Key=mirrored["key"], Body=b"something else")
    with pytest.raises(AirflowFailException, match="exists and is not this image"):
        mirror(task_id)


def test_an_object_whose_checksum_is_denied_is_downloaded_and_compared(emulator, s3, proxy, mirror):
    """So it is with a KMS key that we may encrypt with, but not decrypt."""
    denied_checksums = "x-amz-checksum-mode"
    proxy.rule = lambda request: DENIED if denied_checksums in request.headers else None
    task_id = emulator.add_task()
    first_run = mirror(task_id)
    assert mirror(task_id) == [{**mirrored, "skipped": True} for mirrored in first_run]
