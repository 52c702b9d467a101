# SPDX-License-Identifier: Apache-2.0
"""The hook against the emulator, over sockets: what each fault comes to, how often is asked, and what it costs."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from raw_server import raw_server

from airflow_provider_gptimg import polling
from airflow_provider_gptimg.api import protocol
from airflow_provider_gptimg.api.answers import Answer
from airflow_provider_gptimg.api.calls import poll_call, submit_call
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.hooks import gptimg as module
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.sandbox.rest import until

ALWAYS = {"times": None}
MOST = protocol.MAX_ATTEMPTS


@pytest.fixture
def hook(emulator) -> GptImgHook:
    return GptImgHook()


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The seconds that the hook would have slept, without sleeping them."""
    slept: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(time=time.time, sleep=slept.append))
    monkeypatch.setattr(protocol, "backoff", lambda *told: 0.001)
    return slept


def posts(emulator) -> list[Any]:
    return [call for call in emulator.calls if call.method == "POST"]


def spent(emulator) -> int:
    return sum(entry.credits for entry in emulator.ledger if entry.kind == "charge")


class TestSubmit:
    def test_returns_the_accepted_task(self, emulator, hook):
        task = hook.submit("a cat", aspect_ratio="16:9", n=3, extra_body={"seed": 7})
        assert task.status == "processing"
        assert emulator.task(task.task_id).request == {
            "prompt": "a cat",
            "aspect_ratio": "16:9",
            "n": 3,
            "seed": 7,
        }
        assert spent(emulator) == 6

    def test_references_go_into_the_field_that_the_connection_names(self, emulator, hook, connect):
        connect(emulator, reference_images_field="refs")
        task = hook.submit("a cat", reference_images=["https://a.example/x.png", "data:image/png;base64,AA=="])
        assert emulator.task(task.task_id).request["refs"] == [
            "https://a.example/x.png",
            "data:image/png;base64,AA==",
        ]

    def test_a_prompt_arrives_as_it_was_written(self, emulator, hook):
        prompt = 'Ein „Käse“ \u2028 "quoted" \\ {{ not jinja }} 🧀\n'
        assert emulator.task(hook.submit(prompt).task_id).prompt == prompt

    @pytest.mark.parametrize(
        "arguments",
        [
            {"prompt": " "},
            {"n": 5},
            {"aspect_ratio": "wide"},
            {"reference_images": ["http://a.example/x"]},
            {"reference_images": ["https://a.example/x"] * 5},
            {"extra_body": {"n": 4}},
            {"on_unknown_submission": "retry"},
        ],
        ids=lambda arguments: next(iter(arguments)),
    )
    def test_sends_nothing_that_is_refused(self, emulator, hook, arguments):
        with pytest.raises(GptImgRequestError):
            hook.submit(**{"prompt": "a cat", **arguments})
        assert emulator.calls == []

    @pytest.mark.parametrize("fields", [{"host": "http://gptimg.co"}, {"host": "https://a@b"}], ids=str)
    def test_sends_nothing_over_an_unsafe_connection(self, emulator, hook, connect, fields):
        connect(emulator, **fields)
        with pytest.raises(GptImgRequestError):
            hook.submit("a cat")
        assert emulator.calls == []

    def test_sends_nothing_without_a_key(self, emulator, hook, connect):
        connect(emulator, password="")
        with pytest.raises(GptImgAuthError):
            hook.submit("a cat")
        assert emulator.calls == []

    def test_a_wrong_ca_bundle_is_a_wrong_connection(self, emulator, hook, connect):
        connect(emulator, verify="/no/such/bundle.pem")
        with pytest.raises(GptImgRequestError, match="verify"):
            hook.submit("a cat")

    def test_shows_how_to_find_out_after_an_unknown_outcome(self, emulator, hook):
        emulator.fault("submit", "lost_after")
        with pytest.raises(GptImgSubmissionUnknownError) as error:
            hook.submit("a cat", n=3)
        assert "6 credits" in str(error.value)
        assert time.strftime("%Y-%m-%d", time.gmtime()) in str(error.value)
        assert "transaction log" in str(error.value)

    def test_a_submit_is_never_on_a_connection_that_was_or_will_be_used(self, emulator, hook, naps):
        """A server may close an idle connection just as a request goes out on it: then nobody knows."""
        emulator.fault("submit", 503, times=2)
        for _ in range(3):
            task = hook.submit("a cat")
            hook.get_task(task.task_id)
        connections = [call.connection for call in emulator.calls]
        assert len(posts(emulator)) == 5
        assert all(connections.count(call.connection) == 1 for call in posts(emulator))

    def test_nor_is_it_on_one_that_is_kept_by_the_same_client(self, emulator, hook):
        """Whatever the hook did with its client before."""
        from airflow_provider_gptimg.api.requests import ImageRequest
        from airflow_provider_gptimg.hooks.http import exchange, sync_client

        task_id = emulator.add_task()
        submit = submit_call(ImageRequest.check("a cat"), "image_urls")
        with sync_client(hook.settings) as client:
            for call in (poll_call(task_id), poll_call(task_id), submit, poll_call(task_id)):
                assert isinstance(exchange(client, hook.settings, call), Answer)
        (post,) = posts(emulator)
        after = emulator.calls[emulator.calls.index(post) + 1 :]
        assert all(call.connection != post.connection for call in after)


TASK = {"success": True, "data": {"task_id": "gpt-image-2-x", "status": "processing"}}
NOT_A_TASK = {"success": True, "data": {}}

# fault, its options, the error (None: it goes well), POSTs, credits spent
SUBMIT_FAULTS = [
    (400, {}, GptImgRequestError, 1, 0),
    (401, {}, GptImgAuthError, 1, 0),
    (402, {}, GptImgInsufficientCreditsError, 1, 0),
    (403, {}, GptImgAuthError, 1, 0),
    (404, {}, GptImgRequestError, 1, 0),
    (422, {}, GptImgRequestError, 1, 0),
    (422, {"envelope": "flat"}, GptImgRequestError, 1, 0),
    (422, {"envelope": "header"}, GptImgRequestError, 1, 0),
    (429, {}, None, 2, 2),
    (429, {"times": 4}, None, 5, 2),
    (429, ALWAYS, GptImgRateLimitError, MOST, 0),
    (500, {}, None, 2, 2),
    (500, ALWAYS, GptImgServerError, MOST, 0),
    (503, {"envelope": "flat", **ALWAYS}, GptImgServerError, MOST, 0),
    ("html", {}, GptImgSubmissionUnknownError, 1, 0),
    ("html", {"status": 200}, GptImgSubmissionUnknownError, 1, 0),
    ("html", {"status": 401}, GptImgSubmissionUnknownError, 1, 0),
    ("html", {"status": 413}, GptImgSubmissionUnknownError, 1, 0),
    ("html", {"status": 504}, GptImgSubmissionUnknownError, 1, 0),
    ("html", {"status": 429, **ALWAYS}, GptImgRateLimitError, MOST, 0),
    ("empty", {}, GptImgSubmissionUnknownError, 1, 0),
    ("empty", {"status": 204}, GptImgSubmissionUnknownError, 1, 0),
    ("empty", {"status": 502}, GptImgSubmissionUnknownError, 1, 0),
    ("redirect", {"status": 301}, GptImgSubmissionUnknownError, 1, 0),
    ("redirect", {"status": 302}, GptImgSubmissionUnknownError, 1, 0),
    ("redirect", {"status": 307}, GptImgSubmissionUnknownError, 1, 0),
    ("redirect", {"status": 308}, GptImgSubmissionUnknownError, 1, 0),
    ("body", {"body": json.dumps(NOT_A_TASK)}, GptImgSubmissionUnknownError, 1, 0),
    ("body", {"body": json.dumps(TASK)[:30]}, GptImgSubmissionUnknownError, 1, 0),
    ("body", {"body": json.dumps(TASK), "status": 201}, None, 1, 0),
    ("body", {"body": json.dumps(TASK), "content_type": "text/plain"}, None, 1, 0),
    ("body", {"body": b"\xff\xfe\x00", "headers": {"Content-Encoding": "gzip"}}, GptImgSubmissionUnknownError, 1, 0),
    ("lost_before", {}, GptImgSubmissionUnknownError, 1, 0),
    ("lost_after", {}, GptImgSubmissionUnknownError, 1, 2),
    ("cut_after", {}, GptImgSubmissionUnknownError, 1, 2),
    ("hang_before", {}, GptImgSubmissionUnknownError, 1, 0),
    ("hang_after", {}, GptImgSubmissionUnknownError, 1, 2),
    ("fail", {}, None, 1, 2),
]


def fault_id(value: Any) -> str:
    return (
        "-".join(map(str, value.values()))[:40] if isinstance(value, dict) else getattr(value, "__name__", str(value))
    )


def options_at(emulator, fault: Any, options: dict[str, Any]) -> dict[str, Any]:
    """A redirect leads to the emulator itself, which would see it followed."""
    return {"location": f"{emulator.base_url}/elsewhere", **options} if fault == "redirect" else options


@pytest.mark.parametrize(("fault", "options", "error_type", "count", "credits"), SUBMIT_FAULTS, ids=fault_id)
def test_a_fault_on_a_submit(emulator, hook, naps, connect, fault, options, error_type, count, credits):
    connect(emulator, timeout=1 if "hang" in str(fault) else 20)
    emulator.fault("submit", fault, **options_at(emulator, fault, options))
    if error_type is None:
        assert hook.submit("a cat").task_id
    else:
        with pytest.raises(GptImgError) as error:
            hook.submit("a cat")
        assert type(error.value) is error_type
    assert len(posts(emulator)) == count
    assert spent(emulator) == credits
    assert len(emulator.calls) == count, "nothing else was asked for"
    assert len(naps) == count - 1


# fault, its options, the error (None: it goes well), GETs
POLL_FAULTS = [
    (400, {}, GptImgRequestError, 1),
    (401, {}, GptImgAuthError, 1),
    (403, {}, GptImgAuthError, 1),
    (404, {}, GptImgTaskNotFoundError, 1),
    (429, {}, None, 2),
    (429, ALWAYS, GptImgRateLimitError, MOST),
    (500, {"times": 2}, None, 3),
    (500, ALWAYS, GptImgServerError, MOST),
    ("html", {}, None, 2),
    ("html", ALWAYS, GptImgProtocolError, MOST),
    ("html", {"status": 404, **ALWAYS}, GptImgProtocolError, MOST),
    ("html", {"status": 401}, None, 2),
    ("html", {"status": 403, **ALWAYS}, GptImgProtocolError, MOST),
    (409, {}, None, 2),
    (425, ALWAYS, GptImgServerError, MOST),
    ("empty", ALWAYS, GptImgProtocolError, MOST),
    ("redirect", ALWAYS, GptImgProtocolError, MOST),
    ("redirect", {"status": 308, **ALWAYS}, GptImgProtocolError, MOST),
    ("body", {"body": json.dumps(NOT_A_TASK), **ALWAYS}, GptImgProtocolError, MOST),
    ("body", {"body": json.dumps(TASK), **ALWAYS}, GptImgProtocolError, MOST),
    ("body", {"body": b"no gzip", "headers": {"Content-Encoding": "gzip"}, **ALWAYS}, GptImgProtocolError, MOST),
    ("lost_before", {}, None, 2),
    ("lost_before", ALWAYS, GptImgServerError, MOST),
    ("lost_after", ALWAYS, GptImgServerError, MOST),
    ("cut_after", {}, None, 2),
    ("cut_after", ALWAYS, GptImgServerError, MOST),
    ("hang_before", ALWAYS, GptImgServerError, MOST),
    ("hang_after", {"times": 4}, None, MOST),
]


def ask(hook: GptImgHook, task_id: str) -> Any:
    return hook.get_task(task_id)


def ask_async(hook: GptImgHook, task_id: str) -> Any:
    return asyncio.run(hook.aget_task(task_id))


@pytest.mark.parametrize("get_task", [ask, ask_async])
class TestGetTask:
    @pytest.mark.parametrize(("fault", "options", "error_type", "count"), POLL_FAULTS, ids=fault_id)
    def test_a_fault(self, emulator, hook, naps, connect, get_task, fault, options, error_type, count):
        connect(emulator, timeout=0.5 if "hang" in str(fault) else 20)
        task_id = emulator.add_task()
        emulator.fault("poll", fault, **options_at(emulator, fault, options))
        if error_type is None:
            assert get_task(hook, task_id).task_id == task_id
        else:
            with pytest.raises(GptImgError) as error:
                get_task(hook, task_id)
            assert type(error.value) is error_type
        # aiohttp asks a second time by itself when a connection is closed on it.
        most = 2 * count if get_task is ask_async and "lost" in str(fault) else count
        assert count <= len(emulator.calls) <= most
        assert not posts(emulator)

    def test_says_what_the_api_says(self, emulator, hook, get_task):
        task = get_task(hook, emulator.add_task(n=2, formats=("png", "webp")))
        assert task.is_final
        assert [image.content_type for image in task.images] == ["image/png", "image/webp"]

    def test_a_task_of_another_user_is_not_there(self, emulator, hook, get_task):
        emulator.add_key("another-users-key", user="other")
        with pytest.raises(GptImgTaskNotFoundError):
            get_task(hook, emulator.add_task(user="other"))

    @pytest.mark.parametrize("task_id", ["../generate", "a/b", "", "x?api_key=1"])
    def test_sends_no_id_that_would_change_the_url(self, emulator, hook, get_task, task_id):
        with pytest.raises(GptImgRequestError):
            get_task(hook, task_id)
        assert emulator.calls == []

    def test_a_host_that_is_not_there(self, emulator, hook, naps, connect, get_task):
        connect(emulator, host="http://127.0.0.1:1")
        with pytest.raises(GptImgServerError):
            get_task(hook, "gpt-image-2-x")

    def test_a_name_that_is_not_there(self, emulator, hook, naps, connect, get_task):
        connect(emulator, host="https://no-such-host.invalid")
        with pytest.raises(GptImgServerError):
            get_task(hook, "gpt-image-2-x")


def test_a_host_that_is_not_there_got_no_submit(emulator, hook, naps, connect):
    connect(emulator, host="http://127.0.0.1:1")
    with pytest.raises(GptImgServerError):
        hook.submit("a cat")
    assert len(naps) == MOST - 1


def test_tls_that_fails_means_that_nothing_was_submitted(emulator, hook, naps, connect):
    """The emulator speaks no TLS, so the handshake fails, before any request."""
    connect(emulator, host=emulator.base_url.replace("http://", "https://"))
    with pytest.raises(GptImgServerError):
        hook.submit("a cat")
    assert emulator.calls == []


ANSWER = json.dumps({"success": True, "data": {"task_id": "t", "status": "processing"}}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"


def drip(connection, what: bytes, seconds: float = 20) -> None:
    """Send the same bytes again and again: long enough for a test that gives up in time to have done so."""
    for _ in range(int(seconds / 0.05)):
        connection.sendall(what)
        time.sleep(0.05)


def drips_interim_answers(connection):
    drip(connection, b"HTTP/1.1 102 Processing\r\n\r\n")
    connection.sendall(HEAD % len(ANSWER) + b"\r\n" + ANSWER)


def drips_headers(connection):
    connection.sendall(HEAD % len(ANSWER) + b"X-Long: ")
    drip(connection, b"x")
    connection.sendall(b"\r\n\r\n" + ANSWER)


def drips_the_body(connection):
    connection.sendall(HEAD % (400 + len(ANSWER)) + b"\r\n")
    drip(connection, b" ")
    connection.sendall(ANSWER)


def stalls_in_the_head(connection):
    connection.sendall(HEAD % len(ANSWER))
    time.sleep(20)
    connection.sendall(b"\r\n" + ANSWER)


def stalls_in_the_body(connection):
    connection.sendall(HEAD % len(ANSWER) + b"\r\n" + ANSWER[:20])
    time.sleep(20)
    connection.sendall(ANSWER[20:])


def is_larger_than_any_answer(connection):
    connection.sendall(HEAD % (6 * 1024**2 + len(ANSWER)) + b"\r\n")
    for _ in range(6 * 16):
        connection.sendall(b" " * 65536)
    connection.sendall(ANSWER)


def _arrived(server: Any, number: int) -> bool:
    """Whether so many requests came, also where the client gave up before the server had read the last."""
    until(lambda: len(server.requests) >= number, 60, f"{number} requests", pause=0.01)
    return len(server.requests) == number


SLOW = [drips_interim_answers, drips_headers, drips_the_body, stalls_in_the_head, stalls_in_the_body]


@pytest.mark.parametrize("answer", [*SLOW, is_larger_than_any_answer], ids=lambda answer: answer.__name__)
class TestSlowAnswers:
    """Each would be a good answer for who waits long enough, or reads on."""

    def timeout(self, answer) -> float:
        return 0.5 if answer in SLOW else 20

    def test_leave_a_submit_unknown(self, emulator, hook, connect, answer):
        with raw_server(answer) as server:
            connect(emulator, host=server.base_url, timeout=self.timeout(answer))
            with pytest.raises(GptImgSubmissionUnknownError):
                hook.submit("a cat")
            assert _arrived(server, 1)

    @pytest.mark.parametrize("get_task", [ask, ask_async])
    def test_end_a_poll(self, emulator, hook, naps, connect, monkeypatch, answer, get_task):
        with raw_server(answer) as server:
            connect(emulator, host=server.base_url, timeout=self.timeout(answer))
            with pytest.raises(GptImgServerError if answer in SLOW else GptImgProtocolError):
                get_task(hook, "t")
            assert _arrived(server, MOST)


def submit(hook: GptImgHook, prompt: str) -> Any:
    return hook.submit(prompt)


def limits_the_rate_with(tail: bytes):
    def answer(connection):
        connection.sendall(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 90\r\n" + tail)

    return answer


@pytest.mark.parametrize(
    "tail",
    [
        b"Content-Length: 50\r\n\r\n{",
        b"Content-Length: 7\r\nContent-Encoding: gzip\r\n\r\nnotgzip",
        b"Content-Length: 6291456\r\n\r\n" + b" " * 6291456,
    ],
    ids=["cut", "not-decodable", "too-large"],
)
@pytest.mark.parametrize("call", [submit, ask, ask_async])
def test_a_rate_limit_is_one_whatever_its_body(emulator, hook, connect, tail, call):
    with raw_server(limits_the_rate_with(tail)) as server:
        connect(emulator, host=server.base_url)
        with pytest.raises(GptImgRateLimitError) as caught:
            call(hook, "t")
    assert caught.value.retry_after == 90


def test_an_answer_that_takes_nearly_all_the_time_counts(emulator, hook, connect):
    """Its images are paid for."""
    connect(emulator, timeout=4)
    emulator.latency = 2
    assert hook.submit("a cat").task_id


class TestWait:
    def test_returns_the_completed_task(self, emulator, hook):
        task = hook.wait(emulator.add_task(polls=3), poll_interval=0.01, first_poll_after=0)
        assert task.status == "completed"
        assert len(emulator.calls) == 3

    def test_asks_at_once(self, emulator, hook, naps):
        hook.wait(emulator.add_task())
        assert naps == []

    def test_raises_what_failed(self, emulator, hook):
        task_id = emulator.add_task(status="failed", error={"code": "UNLUCKY", "message": "no luck"})
        with pytest.raises(GptImgTaskFailedError, match="no luck") as error:
            hook.wait(task_id)
        assert error.value.code == "UNLUCKY"

    def test_gives_up_at_its_timeout_after_one_more_question(self, emulator, hook):
        task_id = emulator.add_task(status="processing")
        with pytest.raises(GptImgTimeoutError):
            hook.wait(task_id, timeout=0.6, poll_interval=10)
        assert emulator.task(task_id).polls == 2

    def test_what_is_finished_at_the_last_question_is_finished(self, emulator, hook):
        task_id = emulator.add_task(polls=2)
        assert hook.wait(task_id, timeout=0.6, poll_interval=10).status == "completed"

    @pytest.mark.parametrize("timeout", ["1", None, -1, True])
    def test_refuses_what_is_no_timeout(self, emulator, hook, timeout):
        with pytest.raises(GptImgRequestError, match="timeout="):
            hook.wait(emulator.add_task(), timeout=timeout)
        assert emulator.calls == []

    def test_an_unknown_task_is_asked_for_until_it_cannot_be_new(self, emulator, hook, monkeypatch):
        monkeypatch.setattr(polling, "UNSEEN_FOR", 0.1)
        with pytest.raises(GptImgTaskNotFoundError):
            hook.wait("gpt-image-2-unknown", poll_interval=0.02)
        _, *others = emulator.calls
        assert others
        assert {call.status for call in emulator.calls} == {404}

    @pytest.mark.parametrize(
        ("fault", "options"),
        [
            (429, {}),
            (500, {}),
            (408, {}),
            (409, {}),
            (425, {}),
            (404, {}),
            ("html", {}),
            ("html", {"status": 401}),
            ("html", {"status": 403}),
            ("html", {"status": 404}),
            ("empty", {}),
            ("empty", {"status": 403}),
            ("redirect", {}),
            ("body", {"body": "{}"}),
            ("body", {"body": b" " * (5 << 20)}),
            ("body", {"body": '{"message": "Forbidden"}', "status": 403}),
            ("lost_before", {}),
            ("cut_after", {}),
        ],
        ids=fault_id,
    )
    def test_rides_out_what_does_not_end_a_wait(self, emulator, hook, fault, options):
        emulator.fault("poll", fault, times=3, **options_at(emulator, fault, options))
        task = hook.wait(emulator.add_task(), poll_interval=0.01)
        assert task.status == "completed"
        assert len(emulator.calls) == 4

    @pytest.mark.parametrize(
        ("fault", "error_type"),
        [
            (400, GptImgRequestError),
            (401, GptImgAuthError),
            (402, GptImgInsufficientCreditsError),
            (403, GptImgAuthError),
            (422, GptImgRequestError),
        ],
    )
    def test_the_apis_own_word_ends_it(self, emulator, hook, fault, error_type):
        emulator.fault("poll", fault, times=None)
        with pytest.raises(error_type):
            hook.wait(emulator.add_task())
        assert len(emulator.calls) == 1

    def test_its_time_out_names_the_last_answer_that_was_not_the_apis(self, emulator, hook):
        emulator.fault("poll", "html", times=None, status=403)
        with pytest.raises(GptImgTimeoutError, match=r"firewall.*HTTP 403"):
            hook.wait(emulator.add_task(), timeout=0.2, poll_interval=0.05)

    def test_a_rejected_key_ends_it(self, emulator, hook, connect):
        connect(emulator, password="no-such-key-anywhere")
        with pytest.raises(GptImgAuthError):
            hook.wait("gpt-image-2-x")
        assert len(emulator.calls) == 1

    def test_goes_by_the_connection(self, emulator, hook, connect):
        connect(emulator, poll_interval=0.01, first_poll_after=0)
        assert hook.wait(emulator.add_task(polls=5)).status == "completed"

    @pytest.mark.parametrize("argument", [{"poll_interval": 0}, {"poll_interval": "soon"}, {"first_poll_after": -1}])
    def test_refuses_to_poll_at_no_time(self, emulator, hook, argument):
        with pytest.raises(GptImgRequestError):
            hook.wait("gpt-image-2-x", **argument)
        assert emulator.calls == []


class TestTestConnection:
    """Four cases, and nothing is charged."""

    def test_key_accepted(self, emulator, hook):
        assert hook.test_connection() == (True, "The API accepted the key")
        assert spent(emulator) == 0
        assert not posts(emulator)

    def test_key_rejected(self, emulator, hook, connect):
        connect(emulator, password="no-such-key-anywhere")
        accepted, words = hook.test_connection()
        assert not accepted
        assert "rejected the key in the field API key" in words
        assert "no-such-key-anywhere" not in words

    def test_host_unreachable(self, emulator, hook, connect):
        connect(emulator, host="http://127.0.0.1:1")
        accepted, words = hook.test_connection()
        assert not accepted
        assert words.startswith("Host unreachable: http://127.0.0.1:1: ConnectError")

    def test_https_to_a_host_that_speaks_http_says_what_to_write(self, emulator, hook, connect):
        connect(emulator, host=emulator.base_url.removeprefix("http://"))
        accepted, words = hook.test_connection()
        assert not accepted
        assert "write http:// before it in the connection" in words

    @pytest.mark.parametrize("fault", ["html", "empty", "redirect"])
    def test_not_this_api(self, emulator, hook, fault):
        emulator.fault("any", fault)
        accepted, words = hook.test_connection()
        assert not accepted
        assert "not the gpt-image-2 API" in words
        assert len(emulator.calls) == 1

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"password": ""}, "no API key"),
            ({"host": "http://gptimg.co"}, "clear"),
            ({"verify": "/no/such/bundle.pem"}, "verify"),
            ({"poll_interval": "soon"}, "poll_interval"),
        ],
        ids=str,
    )
    def test_a_wrong_field_is_named(self, emulator, hook, connect, fields, words):
        connect(emulator, **fields)
        accepted, said = hook.test_connection()
        assert not accepted
        assert words in said
        assert "gptimg_default" not in said, "Airflow tests a form under a random id"
        assert emulator.calls == []

    @pytest.mark.parametrize(
        ("name", "way_out"), [("poll_intervall", "did you mean 'poll_interval'?"), ("q", "the known ones are final_")]
    )
    def test_a_misspelt_extra_is_told(self, emulator, hook, connect, name, way_out):
        connect(emulator, **{name: 6})
        accepted, words = hook.test_connection()
        assert accepted
        assert words.startswith(f"The API accepted the key; {name!r} in the extra has no effect: {way_out}")


def test_only_what_dag_authors_and_airflow_call_is_public():
    authors = {"submit", "get_task", "aget_task", "wait", "settings", "test_connection", "get_conn"}
    airflow = {"conn_name_attr", "default_conn_name", "conn_type", "hook_name", "get_ui_field_behaviour"}
    assert {name for name in vars(GptImgHook) if not name.startswith("_")} == authors | airflow


class TestRotatedKey:
    def rotate(self, emulator, connect) -> None:
        emulator.revoke_key(emulator.api_key)
        emulator.add_key("the-rotated-key", user="default")
        connect(emulator, password="the-rotated-key")

    def test_is_picked_up_by_a_submit(self, emulator, hook, connect):
        assert hook.settings
        self.rotate(emulator, connect)
        assert hook.submit("a cat").task_id
        assert (len(posts(emulator)), spent(emulator)) == (2, 2)

    def test_is_picked_up_while_waiting(self, emulator, hook, connect):
        assert hook.settings
        self.rotate(emulator, connect)
        assert hook.wait(emulator.add_task(polls=2), poll_interval=0.01, first_poll_after=0).is_final
        assert len(emulator.calls) == 3

    def test_a_key_that_stays_rejected_is_tried_once(self, emulator, hook):
        emulator.revoke_key(emulator.api_key)
        with pytest.raises(GptImgAuthError):
            hook.submit("a cat")
        assert len(posts(emulator)) == 1
