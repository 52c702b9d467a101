# SPDX-License-Identifier: Apache-2.0
"""Each fault, as a client sees it that reads the socket and nothing into it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import httpx
import pytest

SUBMIT = "/api/v1/images/generate"


@pytest.fixture
def raw_submit(emulator) -> Iterator[Callable[[], tuple[socket.socket, threading.Thread, list[bytes]]]]:
    """Send a submit by hand; return its socket, and a thread that reads whatever comes until the end."""
    address = urlsplit(emulator.base_url)
    body = b'{"prompt": "x"}'
    head = (
        f"POST {SUBMIT} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {emulator.api_key}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with ExitStack() as opened:

        def submit() -> tuple[socket.socket, threading.Thread, list[bytes]]:
            connection = opened.enter_context(socket.create_connection((address.hostname, address.port)))
            connection.sendall(head.encode() + body)
            received: list[bytes] = []

            def read() -> None:
                while chunk := connection.recv(65536):
                    received.append(chunk)

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            return connection, reader, received

        yield submit


def test_nothing_goes_wrong_unasked_and_faults_come_in_order(emulator, api):
    emulator.fault("submit", 503)
    emulator.fault("poll", 500)
    emulator.fault("any", 429, times=2)
    task_id = emulator.add_task()
    assert [api.submit().status_code for _ in range(2)] == [503, 429]
    assert [api.poll(task_id).status_code for _ in range(3)] == [500, 429, 200]
    assert api.submit().status_code == 200


def test_faults_without_an_end_end_when_cleared(emulator, api):
    emulator.fault("submit", 503, times=None)
    assert [api.submit().status_code for _ in range(3)] == [503] * 3
    emulator.clear_faults()
    assert api.submit().status_code == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 502, 503, 504])
def test_an_error_of_the_api_leaves_the_request_unprocessed(emulator, api, status):
    emulator.fault("submit", status)
    answer = api.submit()
    body = answer.json()
    assert answer.status_code == status
    assert body == {
        "success": False,
        "error": {"code": body["error"]["code"], "message": body["error"]["message"]},
        "request_id": answer.headers["x-request-id"],
    }
    assert (emulator.tasks, emulator.ledger) == ([], [])


def test_an_error_says_what_it_was_told_to(emulator, api):
    options = {"code": "C", "message": "M", "retry_after": 7, "request_id": "R"}
    for envelope in (None, "nested", "flat", "header"):
        emulator.fault("submit", 429, envelope=envelope, **options)
    default, nested, flat, header = (api.submit() for _ in range(4))
    error = {"code": "C", "message": "M"}
    assert default.json() == nested.json() == {"success": False, "error": error, "request_id": "R"}
    assert flat.json() == {"success": False, **error, "request_id": "R"}
    assert header.json() == {"success": False, "error": error}
    in_header = [answer.headers.get("x-request-id") for answer in (default, nested, flat, header)]
    assert in_header == ["R", None, None, "R"]
    assert {answer.headers["retry-after"] for answer in (default, nested, flat, header)} == {"7"}


def test_foreign_answers(emulator, api):
    emulator.fault("submit", "html")
    emulator.fault("submit", "html", status=200)
    emulator.fault("submit", "empty")
    emulator.fault("submit", "empty", status=504)
    emulator.fault("submit", "redirect", location="http://127.0.0.1:9/", status=307)
    emulator.fault("submit", "body", body="né", status=201, content_type="text/x", headers={"X-A": "b"})
    emulator.fault("submit", "body", body=b"\xff\x00")
    page, fine_page, empty, empty_504, redirect, text, raw = (api.submit() for _ in range(7))
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert page.text.startswith("<!DOCTYPE html>")
    assert fine_page.status_code == 200
    assert (empty.status_code, empty.content) == (200, b"")
    assert (empty_504.status_code, empty_504.content) == (504, b"")
    assert (redirect.status_code, redirect.headers["location"]) == (307, "http://127.0.0.1:9/")
    assert (text.status_code, text.text, text.headers["x-a"]) == (201, "né", "b")
    assert text.headers["content-type"] == "text/x"
    assert raw.content == b"\xff\x00"
    assert emulator.ledger == []


@pytest.mark.parametrize(("what", "charged"), [("lost_before", 0), ("lost_after", 1)])
def test_a_lost_answer(emulator, raw_submit, until, what, charged):
    emulator.fault("submit", what)
    _, reader, received = raw_submit()
    reader.join(60)
    assert not reader.is_alive()
    assert received == []
    assert len(emulator.ledger) == len(emulator.tasks) == charged
    until(lambda: emulator.calls)
    assert [call.status for call in emulator.calls] == [None]
    emulator.fault("any", what)
    with closing(http.client.HTTPConnection(urlsplit(emulator.base_url).netloc)) as connection:
        connection.request("GET", "/api/v1/images/task/x")
        with pytest.raises(http.client.RemoteDisconnected):
            connection.getresponse()


def test_a_cut_answer_breaks_off_in_the_middle_of_the_body(emulator, raw_submit):
    emulator.fault("submit", "cut_after")
    _, reader, received = raw_submit()
    reader.join(60)
    head, _, body = b"".join(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    (length,) = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    assert len(body) == length // 2 > 0
    assert len(emulator.ledger) == 1


@pytest.mark.parametrize(("what", "charged"), [("hang_before", 0), ("hang_after", 1)])
def test_a_held_answer_comes_when_released(emulator, raw_submit, until, what, charged):
    emulator.fault("submit", what)
    _, reader, received = raw_submit()
    until(lambda: emulator.waiting(what) == 1)
    assert emulator.waiting() == 1
    assert emulator.waiting("stall") == 0
    assert len(emulator.ledger) == charged
    assert received == []
    emulator.release()
    reader.join(60)
    assert b"".join(received).startswith(b"HTTP/1.1 200 ")
    assert len(emulator.ledger) == 1
    assert emulator.waiting() == 0


@pytest.mark.parametrize(("what", "charged"), [("hang_before", 0), ("hang_after", 1)])
def test_a_client_need_not_wait_for_a_held_answer(emulator, raw_submit, until, what, charged):
    emulator.fault("submit", what)
    connection, _, _ = raw_submit()
    until(lambda: emulator.waiting(what) == 1)
    connection.shutdown(socket.SHUT_RDWR)
    until(lambda: emulator.waiting() == 0)
    assert len(emulator.ledger) == charged
    assert emulator.calls[0].status is None


def test_a_reset_lets_held_answers_go(emulator, raw_submit, until):
    emulator.fault("submit", "hang_after")
    _, reader, received = raw_submit()
    until(lambda: emulator.waiting() == 1)
    emulator.reset()
    reader.join(60)
    assert b"".join(received).startswith(b"HTTP/1.1 200 ")
    assert emulator.ledger == []


def test_a_held_answer_can_have_an_end_of_its_own(emulator, api):
    emulator.fault("submit", "hang_before", seconds=0.01)
    emulator.fault("submit", "hang_after", seconds=0.01)
    assert [api.submit().status_code for _ in range(2)] == [200, 200]


def test_stopping_does_not_wait_for_held_answers(emulator, raw_submit, until):
    emulator.fault("submit", "hang_after")
    _, reader, received = raw_submit()
    until(lambda: emulator.waiting())
    emulator.stop()
    reader.join(60)
    assert not reader.is_alive()
    assert received == []


def test_a_submit_can_be_accepted_and_fail(emulator, api, until):
    emulator.fault("submit", "fail", error={"code": "NO"})
    task_id = api.submit().json()["data"]["task_id"]
    assert emulator.balance() == 998
    until(lambda: emulator.task(task_id).status == "failed")
    assert api.data(task_id)["error"] == {"code": "NO"}
    assert emulator.balance() == 1000


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("short", {}, "received 50 bytes, expected 100"),
        ("cut_after", {}, "received 50 bytes, expected 100"),
        ("long_length", {}, "received 100 bytes, expected 101"),
        ("long_length", {"length": 10**12}, "received 100 bytes, expected 1000000000000"),
    ],
)
def test_an_image_that_is_not_as_long_as_it_says(emulator, api, what, options, message):
    url = api.data(emulator.add_task(image_bytes=bytes(100)))["media_url"]
    emulator.fault("image", what, **options)
    with pytest.raises(httpx.RemoteProtocolError, match=message):
        httpx.get(url)
    assert httpx.get(url).content == bytes(100)


def test_an_image_that_stalls(emulator, api, until):
    url = api.data(emulator.add_task(image_bytes=bytes(100)))["media_url"]
    emulator.fault("image", "stall", times=2)
    with httpx.stream("GET", url) as answer:
        chunks = answer.iter_raw()
        assert len(next(chunks)) == 50
        until(lambda: emulator.waiting("stall") == 1)
        emulator.release()
        assert len(b"".join(chunks)) == 50
    with httpx.stream("GET", url):
        until(lambda: emulator.waiting("stall") == 1)
    until(lambda: emulator.waiting() == 0)


def test_an_image_without_an_end(emulator, api):
    url = api.data(emulator.add_task(image_bytes=b"start"))["media_url"]
    emulator.fault("image", "endless")
    size = 0
    with httpx.stream("GET", url) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in answer.headers
        for chunk in answer.iter_raw():
            assert size or chunk.startswith(b"start")
            size += len(chunk)
            if size > 5_000_000:
                break
    assert httpx.get(url).content == b"start"


def test_an_image_that_is_none(emulator, api):
    url = api.data(emulator.add_task())["media_url"]
    emulator.fault("image", "wrong_type")
    emulator.fault("image", "gone")
    wrong, gone = httpx.get(url), httpx.get(url)
    assert (wrong.status_code, wrong.headers["content-type"]) == (200, "image/png")
    assert wrong.content.startswith(b"<!DOCTYPE html>")
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("on", "what", "options", "error"),
    [
        ("status", 500, {}, ValueError),
        ("submit", 200, {}, ValueError),
        ("submit", "explode", {}, ValueError),
        ("poll", "fail", {}, ValueError),
        ("submit", "short", {}, ValueError),
        ("any", "gone", {}, ValueError),
        ("submit", 500, {"times": 0}, ValueError),
        ("submit", 500, {"envelope": "sealed"}, ValueError),
        ("submit", "html", {"code": "X"}, TypeError),
        ("submit", 500, {"retryafter": 1}, TypeError),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(emulator, api, on, what, options, error):
    with pytest.raises(error):
        emulator.fault(on, what, **options)
    assert api.submit().status_code == 200


def test_latency_comes_after_the_work(emulator, raw_submit, api, until):
    """So that a client that gives up leaves a task behind that is paid for."""
    emulator.latency = 60
    connection, _, _ = raw_submit()
    until(lambda: emulator.ledger)
    connection.shutdown(socket.SHUT_RDWR)
    emulator.latency = 0
    url = api.data(emulator.add_task(image_bytes=b"x"))["media_url"]
    emulator.image_latency = 60
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, timeout=0.1)


def test_calls_tell_everything_a_client_sent(emulator, api):
    api.submit("né")
    api.http.get("/api/v1/images/task/a%0Ab", params={"q": "1", "r": ""})
    httpx.get(f"{emulator.base_url}/elsewhere", headers={"X-Mine": "1"})
    first, second, third = emulator.calls
    assert (first.method, first.path, first.query, first.status) == ("POST", SUBMIT, {}, 200)
    assert json.loads(first.body) == {"prompt": "né"}
    assert first.headers["authorization"] == f"Bearer {emulator.api_key}"
    assert (second.path, second.query) == ("/api/v1/images/task/a%0Ab", {"q": "1", "r": ""})
    assert (second.status, second.body) == (404, b"")
    assert (third.headers["x-mine"], third.status) == ("1", 404)
    assert first.connection == second.connection != third.connection
    assert first.at <= second.at <= third.at
