# SPDX-License-Identifier: Apache-2.0
"""What the hook refuses to send: the key in a text, and a presigned reference in the clear."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from raw_server import raw_server

from airflow_provider_gptimg.exceptions import GptImgRequestError, GptImgSubmissionUnknownError
from airflow_provider_gptimg.hooks.gptimg import GptImgHook

KEY = "gptimg-emulator-key"
OTHER = "https://a.example/x.png"


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": f"a cat {KEY}"},
        {"reference_images": [OTHER, f"https://a.example/?k={KEY}"]},
        {"extra_body": {"style": [{"a": KEY}]}},
        {"extra_body": {KEY: 1}},
        # What is wrong in another way too, where an error would show the value.
        {"prompt": [KEY]},
        {"aspect_ratio": KEY},
        {"n": KEY},
        {"reference_images": {KEY}},
        {"reference_images": [OTHER, KEY]},
        {"extra_body": [KEY]},
        {"extra_body": {1: KEY}},
        {"on_unknown_submission": KEY},
    ],
    ids=str,
)
def test_a_request_that_holds_the_key_is_refused(emulator, arguments):
    with pytest.raises(GptImgRequestError, match="'gptimg_default'") as refusal:
        GptImgHook().submit(**{"prompt": "a cat", **arguments})
    assert KEY not in str(refusal.value)
    assert emulator.calls == []


POLLS = pytest.mark.parametrize(
    "poll",
    [
        lambda hook, task_id: hook.get_task(task_id),
        lambda hook, task_id: asyncio.run(hook.aget_task(task_id)),
        lambda hook, task_id: hook.wait(task_id),
    ],
    ids=["get_task", "aget_task", "wait"],
)


@POLLS
@pytest.mark.parametrize("task_id", [KEY, f"{KEY} x", [f"{KEY}/"], {"task_id": KEY}], ids=str)
def test_so_is_a_poll(emulator, poll, task_id):
    with pytest.raises(GptImgRequestError, match="'gptimg_default'") as refusal:
        poll(GptImgHook(), task_id)
    assert KEY not in str(refusal.value)
    assert emulator.calls == []


@POLLS
@pytest.mark.parametrize("task_id", ["", "a b", "None", None, 7, ["gpt-image-2-a"], {"task_id": "a"}], ids=repr)
def test_a_poll_takes_one_id(emulator, poll, task_id):
    with pytest.raises(GptImgRequestError, match="task_id="):
        poll(GptImgHook(), task_id)
    assert emulator.calls == []


def test_what_is_too_deep_to_be_searched_for_the_key_is_refused_too(emulator):
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(GptImgRequestError, match="extra_body"):
        GptImgHook().submit("a cat", extra_body=endless)
    assert emulator.calls == []


def test_a_short_key_may_stand_in_innocent_words(emulator, connect):
    emulator.add_key("cat-key")
    connect(emulator, password="cat-key")
    assert GptImgHook().submit("a cat-keyed lock").task_id


def test_a_key_that_was_rotated_amid_a_submit_is_looked_for_too(emulator, connect, monkeypatch):
    hook = GptImgHook()
    assert hook.settings
    emulator.revoke_key(emulator.api_key)
    emulator.add_key("the-rotated-key", user="default")
    connect(emulator, password="the-rotated-key")
    with pytest.raises(GptImgRequestError, match="holds the API key"):
        hook.submit("a cat with the-rotated-key")
    assert len(emulator.calls) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_page_of_a_gateway_never_makes_a_submit_go_out_again_with_another_key(emulator, connect, status):
    hook = GptImgHook()
    assert hook.settings
    connect(emulator, password="the-rotated-key")
    emulator.fault("submit", "html", times=None, status=status)
    with pytest.raises(GptImgSubmissionUnknownError):
        hook.submit("a cat")
    assert len(emulator.calls) == 1


class TestPresigned:
    @pytest.fixture
    def aws(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def connect(**extra: Any) -> None:
            fields = {"conn_type": "aws", "login": "testing", "password": "testing", "extra": extra}
            monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(fields))

        return connect

    @pytest.mark.parametrize(
        "extra",
        [
            {},
            {"region_name": "us-east-1"},
            {"region_name": "us-west-2"},
            {"region_name": "eu-west-1"},
            {"region_name": "eu-central-1"},
            {"endpoint_url": "https://account.r2.example", "region_name": "auto"},
            {"endpoint_url": "http://127.0.0.1:9000"},
            {"config_kwargs": {"s3": {"addressing_style": "path"}}, "region_name": "us-west-2"},
        ],
        ids=str,
    )
    def test_references_are_signed_with_version_4(self, emulator, aws, extra):
        aws(**extra)
        task = GptImgHook().submit("a cat", reference_images=["s3://bucket/in/cat.png"])
        (url,) = emulator.task(task.task_id).request["image_urls"]
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
        if "config_kwargs" in extra:
            assert "amazonaws.com/bucket/in/cat.png" in url

    @pytest.mark.parametrize("endpoint", ["http://minio.corp:9000", "http://10.0.0.5:9000", "http://[fd00::5]:9000"])
    def test_a_signature_in_the_clear_is_refused(self, emulator, aws, endpoint):
        aws(endpoint_url=endpoint)
        with pytest.raises(GptImgRequestError) as refusal:
            GptImgHook().submit("a cat", reference_images=["s3://bucket/in/cat.png"])
        assert "s3://bucket/in/cat.png" in str(refusal.value)
        assert endpoint in str(refusal.value)
        assert "endpoint_url" in str(refusal.value)
        assert "X-Amz" not in str(refusal.value)
        assert emulator.calls == []


class TestProbe:
    """ "Test connection" below a path."""

    NOT_FOUND = json.dumps({"success": False, "error": {"code": "NOT_FOUND", "message": "no such route"}}).encode()

    def test_says_nothing_of_a_key_that_a_wrong_path_does_not_look_at(self, monkeypatch):
        head = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n" % len(self.NOT_FOUND)
        with raw_server(lambda to: to.sendall(head + self.NOT_FOUND)) as server:
            fields = {"conn_type": "gptimg", "host": f"{server.base_url}/v2", "password": KEY}
            monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
            accepted, words = GptImgHook().test_connection()
        assert not accepted
        assert "/v2" in words

    def test_accepts_the_key_below_the_path_of_a_gateway(self, monkeypatch):
        rejected = json.dumps({"success": False, "error": {"code": "BAD_KEY", "message": "no"}}).encode()

        def gateway(to: Any) -> None:
            good = f"Bearer {KEY}".encode() in server.requests[-1]
            status, body = (b"404 Not Found", self.NOT_FOUND) if good else (b"401 Unauthorized", rejected)
            to.sendall(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

        with raw_server(gateway) as server:
            fields = {"conn_type": "gptimg", "host": f"{server.base_url}/gptimg", "password": KEY}
            monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
            assert GptImgHook().test_connection() == (True, "The API accepted the key")
            assert len(server.requests) == 2

    @pytest.mark.parametrize(
        ("then", "said"),
        [(b"", "Host unreachable"), (b"HTTP/1.1 429 Slow Down\r\ncontent-length: 0\r\n\r\n", "rate of requests")],
        ids=["no answer", "rate limit"],
    )
    def test_does_not_accept_what_it_could_not_compare(self, monkeypatch, then, said):
        first = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n%b" % (len(self.NOT_FOUND), self.NOT_FOUND)
        with raw_server(lambda to: to.sendall(first if len(server.requests) == 1 else then)) as server:
            fields = {"conn_type": "gptimg", "host": f"{server.base_url}/v2", "password": KEY}
            monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
            accepted, words = GptImgHook().test_connection()
        assert not accepted
        assert said in words
