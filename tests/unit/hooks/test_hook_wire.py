# SPDX-License-Identifier: Apache-2.0
"""Answers that are no HTTP, or hardly: whoever waits in the triggerer meets them as whoever waits on a worker."""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from raw_server import RawServer, raw_server

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
)
from airflow_provider_gptimg.hooks.gptimg import GptImgHook

KEY = "sk-a-key-of-mine"
TASK = json.dumps({"success": True, "data": {"task_id": "gpt-image-2-x", "status": "processing"}}).encode()
NEVER = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again without a pause."""
    monkeypatch.setattr("airflow_provider_gptimg.api.protocol.backoff", lambda *_: 0.0)


@pytest.fixture(params=[False, True], ids=["worker", "triggerer"])
def poll(request: pytest.FixtureRequest) -> Callable[[GptImgHook], ImageTask]:
    def on_worker(hook: GptImgHook) -> ImageTask:
        return hook.get_task("gpt-image-2-x")

    def in_triggerer(hook: GptImgHook) -> ImageTask:
        return asyncio.run(hook.aget_task("gpt-image-2-x"))

    return in_triggerer if request.param else on_worker


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    @contextmanager
    def serve(*lines: str, body: bytes = b"") -> Iterator[RawServer]:
        # The server closes after each answer: a poll that is sent again must not go out on the old connection.
        closes = ["connection: close"] if lines[0].startswith("HTTP/") else []
        head = "\r\n".join([*lines, *closes, "", ""]).encode()
        with raw_server(lambda connection: connection.sendall(head + body)) as server:
            fields = {"conn_type": "gptimg", "host": server.base_url, "password": KEY, "extra": {"timeout": 5}}
            monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
            yield server

    return serve


def test_what_is_no_http_is_an_answer_that_failed(serve, poll):
    with serve("garbage"), pytest.raises(GptImgError) as caught:
        poll(GptImgHook())
    assert isinstance(caught.value, GptImgServerError)


def test_a_long_header_is_read(serve, poll):
    length = f"content-length: {len(TASK)}"
    with serve("HTTP/1.1 200 OK", "x-policy: " + "p" * 20_000, length, body=TASK):
        assert poll(GptImgHook()).task_id == "gpt-image-2-x"


@pytest.mark.parametrize("line", [f"authorization  Bearer {KEY}", f"x: \x01 Bearer {KEY}"], ids=["name", "value"])
def test_a_header_that_quotes_the_key_brings_it_nowhere(serve, poll, caplog, line):
    with serve("HTTP/1.1 200 OK", line, "content-length: 0"):
        with pytest.raises(GptImgError) as polled:
            poll(GptImgHook())
        with pytest.raises(GptImgSubmissionUnknownError) as submitted:
            GptImgHook().submit("A fox")
        accepted, words = GptImgHook().test_connection()
    assert not accepted
    traces = ["".join(traceback.format_exception(caught.value)) for caught in (polled, submitted)]
    for said in (*traces, repr(polled.value.as_dict()), repr(submitted.value.as_dict()), words, caplog.text):
        assert KEY not in said


def test_a_moment_beyond_all_calendars_is_none(serve, poll):
    with (
        serve("HTTP/1.1 429 Too Many Requests", f"retry-after: {NEVER}", "content-length: 0"),
        pytest.raises(GptImgRateLimitError) as caught,
    ):
        poll(GptImgHook())
    assert caught.value.retry_after is None


def test_a_page_of_a_gateway_has_its_request_id(serve, poll):
    with (
        serve("HTTP/1.1 401 Unauthorized", "x-request-id: req_1", "content-length: 0"),
        pytest.raises(GptImgProtocolError) as caught,
    ):
        poll(GptImgHook())
    assert caught.value.request_id == "req_1"


def test_a_proxy_that_hangs_up_leaves_no_outcome_unknown(monkeypatch):
    """The submit itself never went out."""

    def hang_up(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    fields = {"conn_type": "gptimg", "host": "https://gptimg.example", "password": KEY, "extra": {"timeout": 5}}
    monkeypatch.setenv("AIRFLOW_CONN_GPTIMG_DEFAULT", json.dumps(fields))
    with raw_server(hang_up) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.base_url)
        hook = GptImgHook()
        request = hook._prepare_submit(ImageRequest.check("A fox"), None)
        with pytest.raises(GptImgServerError):
            hook._submit_prepared(request, max_attempts=1)
        assert [head.split(b" ")[0] for head in proxy.requests] == [b"CONNECT"]
