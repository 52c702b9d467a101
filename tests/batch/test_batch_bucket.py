# SPDX-License-Identifier: Apache-2.0
"""What a batch asks of its bucket before it pays, and how it makes good what is gone from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from batch_instance import Instance, batch, prompts
from s3_proxy import CUT, Refusal, S3Proxy, proxied_s3

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgRequestError


@pytest.fixture
def proxy(s3: Any) -> Iterator[S3Proxy]:
    with proxied_s3(retries={"total_max_attempts": 1}) as proxy:
        yield proxy


def refuse_lists(proxy: S3Proxy, refusal: Refusal) -> None:
    proxy.rule = lambda request: refusal if "list-type" in request.query else None


def lists(proxy: S3Proxy) -> int:
    return sum("list-type" in request.target for request in proxy.requests)


def submits(emulator: Any) -> int:
    return sum(call.method == "POST" for call in emulator.calls)


def fail_with_a_low_balance(emulator: Any, instance: Instance) -> None:
    """Let two of three requests be mirrored, then top up."""
    emulator.set_balance(4)
    with pytest.raises(AirflowFailException, match="2 are mirrored"):
        instance.run(batch(prompts(3)))
    emulator.set_balance(1000)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"s3_bucket": "nosuch"}, "s3_bucket='nosuch'"),
        ({"s3_bucket": None, "s3_key": "s3://nosuch/{task_id}{ext}"}, "s3_key='s3://nosuch/{task_id}{ext}'"),
    ],
)
def test_a_bucket_that_is_not_there_is_refused(
    emulator: Any, instance: Instance, s3: Any, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(AirflowFailException) as caught:
        instance.run(batch(prompts(3), **arguments))
    assert type(caught.value.__cause__) is GptImgRequestError
    assert str(caught.value).startswith(f"{named} names a bucket that does not exist")
    assert not emulator.calls


@pytest.mark.parametrize(
    "refusal", [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")], ids=lambda refusal: refusal[1]
)
def test_a_bucket_of_another_region_is_refused(
    emulator: Any, instance: Instance, proxy: S3Proxy, refusal: Refusal
) -> None:
    refuse_lists(proxy, refusal)
    with pytest.raises(AirflowFailException, match=rf"s3_bucket='images' .*{refusal[1]}.*region_name"):
        instance.run(batch(prompts(3)))
    assert not emulator.calls


@pytest.mark.parametrize(
    "refusal", [(503, "SlowDown"), (400, "ExpiredToken"), (405, "MethodNotAllowed"), CUT], ids=lambda r: r[1][:25]
)
def test_a_list_that_fails_for_once_does_not_matter(
    emulator: Any, instance: Instance, proxy: S3Proxy, refusal: Refusal
) -> None:
    proxy.fault("GET", *refusal)
    assert instance.run(batch(prompts(3)))["mirrored"] == 3


def test_no_right_to_list_does_not_matter(emulator: Any, instance: Instance, proxy: S3Proxy) -> None:
    refuse_lists(proxy, (403, "AccessDenied"))
    fail_with_a_low_balance(emulator, instance)
    assert instance.clear().run(batch(prompts(3)))["mirrored"] == 3
    assert submits(emulator) == 4


@pytest.mark.parametrize("is_large", [False, True], ids=["small folder", "large folder"])
def test_an_object_that_is_gone_is_mirrored_again(
    emulator: Any, instance: Instance, stored: Any, proxy: S3Proxy, s3: Any, deferrable: bool, is_large: bool
) -> None:
    fail_with_a_low_balance(emulator, instance)
    before = stored()
    s3.delete_object(Bucket="images", Key=min(before))
    proxy.requests.clear()
    if is_large:
        truncated = (200, "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")
        proxy.fault("GET", *truncated, times=2)

    again = instance.clear()
    summary = again.run(batch(prompts(3), deferrable=deferrable))

    assert (summary["mirrored"], summary["taken_up"], again.xcoms["credits"]) == (3, 2, 2)
    objects = stored()
    assert len(objects) == 3
    assert before.items() <= objects.items()
    assert len(emulator.tasks) == 3


def test_many_objects_are_looked_for_in_one_request(emulator: Any, instance: Instance, proxy: S3Proxy) -> None:
    operator = batch(prompts(20))
    instance.run(operator)
    proxy.requests.clear()

    assert instance.retry().run(operator)["mirrored"] == 20

    assert (lists(proxy), len(proxy.requests)) == (2, 2), "whether the bucket is there, and what is in it"


@pytest.mark.parametrize("code", ["AccessDenied", "AccessControlListNotSupported"])
def test_a_batch_that_s3_refuses_buys_no_more(
    emulator: Any, instance: Instance, stored: Any, proxy: S3Proxy, deferrable: bool, code: str
) -> None:
    """And what was bought is delivered once S3 takes it."""
    proxy.rule = lambda request: (403, code) if request.method == "PUT" else None

    with pytest.raises(AirflowFailException, match=code) as caught:
        instance.run(batch(prompts(60), max_in_flight=5, deferrable=deferrable))

    bought = len(emulator.tasks)
    assert bought == 5
    assert "Of 60 requests 0 are mirrored, 5 failed, 0 have an unknown outcome and 55 were not submitted" in str(
        caught.value
    )
    assert "10 credits are paid for" in str(caught.value)

    proxy.rule = lambda request: None
    assert instance.clear().run(batch(prompts(60), max_in_flight=20))["taken_up"] == 5
    assert submits(emulator) == 60
    assert len(stored()) == 60


def test_wrong_credentials_are_refused_before_paying(emulator: Any, instance: Instance, proxy: S3Proxy) -> None:
    proxy.rule = lambda request: (403, "InvalidAccessKeyId")
    with pytest.raises(AirflowFailException, match="InvalidAccessKeyId"):
        instance.run(batch(prompts(3)))
    assert not emulator.calls
