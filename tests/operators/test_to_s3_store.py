# SPDX-License-Identifier: Apache-2.0
"""GptImgToS3Operator against an S3 that refuses, fails, or loses its answers."""

from __future__ import annotations

import base64
import json
import os

import boto3
import httpx
import pytest
from attempts import fails_at_once, may_be_retried
from s3_proxy import LOST, proxied_s3
from test_to_s3 import PNG, image_calls, in_bucket, transfer

from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError


@pytest.fixture
def proxy(s3):
    with proxied_s3() as proxy:
        yield proxy


@pytest.fixture
def task_id(emulator) -> str:
    return emulator.add_task(image_bytes=[PNG])


def test_one_conditional_put_with_a_checksum_makes_an_object(emulator, instance, s3, proxy, task_id):
    (result,) = instance.attempt(transfer(task_id))
    (headers,) = [headers for method, _, headers in proxy.requests if method == "PUT"]
    assert headers["if-none-match"] == "*"
    assert base64.b64decode(headers["x-amz-checksum-sha256"]).hex() == result["sha256"]
    assert proxy.seen("POST") == 0  # as a multipart upload would need


def test_replace_puts_without_a_condition(emulator, instance, s3, proxy, task_id):
    instance.attempt(transfer(task_id, replace=True))
    (headers,) = [headers for method, _, headers in proxy.requests if method == "PUT"]
    assert "if-none-match" not in headers


class TestRefusal:
    @pytest.mark.parametrize(
        "code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled"]
    )
    def test_of_a_put_fails_at_once_and_stops_the_rest(self, emulator, instance, s3, proxy, code):
        tasks = [emulator.add_task(image_bytes=[PNG] * 4) for _ in range(10)]
        proxy.fault("PUT", 403, code, times=None)
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(transfer(tasks, concurrency=2))
        assert code in str(caught.value)
        assert "s3://images/" in str(caught.value)
        assert len(image_calls(emulator)) < 10
        assert in_bucket(s3) == {}

    def test_of_a_user_without_permission(self, emulator, instance, s3, task_id, monkeypatch):
        """As moto's own access control says it."""
        server = s3.meta.endpoint_url
        common = {"endpoint_url": server, "region_name": "us-east-1"}
        iam = boto3.client("iam", aws_access_key_id="testing", aws_secret_access_key="testing", **common)
        iam.create_user(UserName="reader")
        may = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
        policy = {"Version": "2012-10-17", "Statement": [may]}
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        fields = {"conn_type": "aws", "login": key["AccessKeyId"], "password": key["SecretAccessKey"], "extra": common}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))
        httpx.post(f"{server}/moto-api/reset-auth", content="0").raise_for_status()
        try:
            with fails_at_once(GptImgRequestError) as caught:
                instance.attempt(transfer(task_id))
        finally:
            httpx.post(f"{server}/moto-api/reset-auth", content="inf").raise_for_status()
        assert "AccessDenied" in str(caught.value)
        assert key["SecretAccessKey"] not in str(caught.value)
        assert in_bucket(s3) == {}

    @pytest.mark.parametrize("pattern", ["{task_id}/{index}{ext}", "{index}{ext}"])
    def test_of_a_bucket_that_is_not_there(self, emulator, instance, s3, task_id, pattern):
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(transfer(task_id, s3_bucket="not-there", s3_key=pattern))
        assert "NoSuchBucket" in str(caught.value)
        assert "not-there" in str(caught.value)

    def test_of_an_impossible_bucket_name(self, emulator, instance, s3, task_id):
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(task_id, s3_bucket="Not A Bucket"))
        assert image_calls(emulator) == []

    def test_to_tell_what_is_there_is_no_obstacle(self, emulator, instance, s3, proxy, task_id):
        """Who may only write cannot look, but still overwrites nothing."""
        proxy.fault("GET", 403, "AccessDenied", times=None)
        proxy.fault("HEAD", 403, "", times=None)
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == [PNG]
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(transfer(task_id))
        assert "exists" in str(caught.value)

    def test_to_list_is_no_obstacle(self, emulator, instance, s3, proxy, task_id):
        proxy.fault("GET", 403, "AccessDenied", times=None)
        first, second = instance.attempt(transfer(task_id)), instance.attempt(transfer(task_id))
        assert second == [first[0] | {"skipped": True}]
        assert len(image_calls(emulator)) == 1


class TestFailure:
    @pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (400, "ExpiredToken")])
    def test_to_list_keeps_no_image_from_its_place(self, emulator, instance, s3, proxy, status, code, log):
        tasks = [emulator.add_task(n=2), emulator.add_task()]
        rule = (status, code)
        proxy.rule = lambda request: rule if "list-type" in request.query else None
        first = instance.attempt(transfer(tasks))
        assert code in log()
        assert len(in_bucket(s3)) == 3
        assert instance.attempt(transfer(tasks)) == [one | {"skipped": True} for one in first]
        assert len(image_calls(emulator)) == 3

    # An answer to HEAD has no body, and so no code.
    @pytest.mark.parametrize(
        ("method", "status", "code"),
        [
            ("HEAD", 503, ""),
            ("PUT", 503, "SlowDown"),
            ("PUT", 500, "InternalError"),
            ("PUT", 400, "RequestTimeout"),
            ("PUT", 400, "ExpiredToken"),
        ],
    )
    def test_that_may_pass_may_be_retried(self, emulator, instance, s3, proxy, hasty, task_id, method, status, code):
        proxy.fault(method, status, code, times=None)
        with may_be_retried(GptImgError) as caught:
            instance.attempt(transfer(task_id, s3_key="{index}{ext}"))
        assert "s3://images/" in str(caught.value)
        assert in_bucket(s3) == {}

    @pytest.mark.parametrize("status", [503, 500], ids=str)
    def test_that_passes_soon_is_not_noticed(self, emulator, instance, s3, proxy, task_id, status):
        proxy.fault("PUT", status, "SlowDown")
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == [PNG]

    def test_whose_reason_s3_does_not_give_says_what_to_check(self, emulator, instance, s3, proxy, task_id):
        """As with an expired token or another region's endpoint: the answer to HEAD has no body that would tell."""
        proxy.fault("HEAD", 400, "", times=None)
        with may_be_retried(GptImgError) as caught:
            instance.attempt(transfer(task_id, s3_key="{index}{ext}"))
        for hint in ("s3://images/0.png", "AWS connection", "expired token", "region", "SSECustomerKey"):
            assert hint in str(caught.value)
        assert image_calls(emulator) == []

    def test_that_is_no_s3_at_all_may_be_retried(self, emulator, instance, s3, task_id, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
        fields["extra"]["endpoint_url"] = "http://127.0.0.1:1"
        fields["extra"]["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))
        with may_be_retried(GptImgError):
            instance.attempt(transfer(task_id))

    @pytest.mark.parametrize("code", ["ConditionalRequestConflict", "BadDigest", "XAmzContentSHA256Mismatch"])
    def test_of_one_write_is_repeated(self, emulator, instance, s3, proxy, hasty, task_id, code):
        proxy.fault("PUT", 409 if code.startswith("Cond") else 400, code, times=2)
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == [PNG]
        assert len(image_calls(emulator)) == 1

    @pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
    def test_to_answer_a_write_that_was_done(self, emulator, instance, s3, proxy, task_id, times):
        """The object is there then: by this very write, so that it is no stranger's."""
        proxy.fault("PUT", *LOST, times=times)
        if times == 1:
            assert len(instance.attempt(transfer(task_id))) == 1
        else:
            with may_be_retried(GptImgError):
                instance.attempt(transfer(task_id))
            assert instance.attempt(transfer(task_id))[0]["skipped"]
        assert list(in_bucket(s3).values()) == [PNG]

    def test_of_one_image_keeps_no_other_from_its_place(self, emulator, instance, s3, proxy):
        tasks = [emulator.add_task(image_bytes=[PNG]) for _ in range(3)]
        proxy.fault("PUT", 503, "SlowDown", times=2)
        with may_be_retried(GptImgError) as caught:
            instance.attempt(transfer(tasks, concurrency=1))
        assert f"Of 3 image tasks 1 failed: {tasks[0]}" in str(caught.value)
        assert len(in_bucket(s3)) == 2


class TestAStoreWithoutConditionalWrites:
    @pytest.fixture(autouse=True)
    def _knows_none(self, proxy):
        proxy.fault("PUT", 501, "NotImplemented")

    def test_still_gets_its_object_and_the_log_warns(self, emulator, instance, s3, proxy, task_id, log):
        instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == [PNG]
        assert "no conditional writes" in log()

    def test_still_has_no_foreign_object_overwritten(self, emulator, instance, s3, proxy, task_id):
        s3.put_object(Bucket="images", Key=f"gptimg/{task_id}/0.png", Body=b"somebody else's")
        with fails_at_once(GptImgRequestError):
            instance.attempt(transfer(task_id))
        assert list(in_bucket(s3).values()) == [b"somebody else's"]
