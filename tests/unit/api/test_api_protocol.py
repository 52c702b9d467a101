# SPDX-License-Identifier: Apache-2.0
"""What is sent, what each answer means, and what is done next: without a socket, by values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_gptimg.api.answers import Answer, NoAnswer, judge_probe, read_payload
from airflow_provider_gptimg.api.calls import Call, poll_call, probe_call, submit_call
from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS, MAX_WAIT, Sleep, backoff, converse
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import Image, ImageTask
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
)

TASK_ID = "gpt-image-2-kUtpnus8fXpDKkuEjayG3"
NOW = 1_776_816_800.0

# The vendor's literal examples.
SUBMITTED = json.loads("""
{"success": true, "data": {"id": "kUtpnus8fXpDKkuEjayG3", "task_id": "gpt-image-2-kUtpnus8fXpDKkuEjayG3",
 "status": "processing", "provider": "gpt-image-2", "model": "gpt-image-2", "type": "text-to-image",
 "media_url": null, "images": [], "created_at": "2026-04-22T00:12:03.456Z"}}
""")
COMPLETED = json.loads("""
{"success": true, "data": {"id": "kUtpnus8fXpDKkuEjayG3", "task_id": "gpt-image-2-kUtpnus8fXpDKkuEjayG3",
 "status": "completed", "provider": "gpt-image-2", "model": "gpt-image-2", "type": "text-to-image",
 "media_url": "https://file.gptimg.co/gpt-image-2-outputs/f063a662-1860-4a51-bd9b-ffe75a5336a5.png",
 "images": [{"url": "https://file.gptimg.co/gpt-image-2-outputs/f063a662-1860-4a51-bd9b-ffe75a5336a5.png",
             "content_type": "image/png"}],
 "error": null, "created_at": "2026-04-22T00:12:03.456Z", "updated_at": "2026-04-22T00:13:02.789Z"}}
""")
URL = "https://file.gptimg.co/gpt-image-2-outputs/f063a662-1860-4a51-bd9b-ffe75a5336a5.png"

SUBMIT = submit_call(ImageRequest.check("a cat"), "image_urls")
POLL = poll_call(TASK_ID)
BOTH = pytest.mark.parametrize("call", [SUBMIT, POLL], ids=["submit", "poll"])


def answer(status: int = 200, payload: Any = None, **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, payload, NOW)


def task_answer(**data: Any) -> Answer:
    """Return the answer to a poll, with these fields in `data`."""
    return answer(payload={"success": True, "data": {"task_id": TASK_ID, "status": "processing", **data}})


def envelope(status: int, code: str | None = "SOME_CODE", message: str = "words", **headers: str) -> Answer:
    return answer(
        status, {"success": False, "error": {"code": code, "message": message}, "request_id": "req_1"}, **headers
    )


LOST = NoAnswer("ReadTimeout", sent=True)
NOT_SENT = NoAnswer("ConnectError", sent=False)


@dataclass
class Course:
    """What a conversation said and came to."""

    calls: int
    sleeps: list[float]
    result: ImageTask | GptImgError


def course(call: Call, *outcomes: Answer | NoAnswer, **limits: Any) -> Course:
    """Hold a conversation in which these answers come, the last one again and again."""
    conversation, calls, sleeps = converse(call, uniform=lambda low, high: high, **limits), 0, []
    step = next(conversation)
    try:
        while True:
            if isinstance(step, Sleep):
                sleeps.append(step.seconds)
                step = conversation.send(None)
            else:
                assert step is call
                calls += 1
                step = conversation.send(outcomes[min(calls, len(outcomes)) - 1])
    except StopIteration as done:
        return Course(calls, sleeps, done.value)
    except GptImgError as error:
        return Course(calls, sleeps, error)


def came_to(call: Call, outcome: Answer | NoAnswer) -> Any:
    return course(call, outcome, max_attempts=1).result


class TestWire:
    def test_a_submit(self):
        request = ImageRequest.check("a cat", n=2, aspect_ratio="1:1", reference_images=["https://a.example/x"])
        call = submit_call(request, "image_urls")
        assert (call.method, call.path, call.is_submit) == ("POST", "/api/v1/images/generate", True)
        assert call.body == {
            "prompt": "a cat",
            "n": 2,
            "aspect_ratio": "1:1",
            "image_urls": ["https://a.example/x"],
        }

    def test_a_poll(self):
        assert (POLL.method, POLL.path, POLL.body) == ("GET", f"/api/v1/images/task/{TASK_ID}", None)
        assert not POLL.is_submit

    def test_the_probe_costs_nothing(self):
        assert not probe_call().is_submit

    def test_the_answer_to_a_submit(self):
        assert came_to(SUBMIT, answer(payload=SUBMITTED, date="Wed, 22 Apr 2026 00:12:13 GMT")) == ImageTask(
            task_id=TASK_ID,
            id="kUtpnus8fXpDKkuEjayG3",
            status="processing",
            provider="gpt-image-2",
            model="gpt-image-2",
            type="text-to-image",
            created_at="2026-04-22T00:12:03.456Z",
            age=pytest.approx(9.544, abs=0.001),
        )

    def test_the_answer_to_a_poll(self):
        task = came_to(POLL, answer(payload=COMPLETED))
        assert (task.task_id, task.status, task.media_url) == (TASK_ID, "completed", URL)
        assert task.images == (Image(URL, "image/png"),)
        assert task.updated_at == "2026-04-22T00:13:02.789Z"
        assert (task.error, task.credits) == (None, 2)


class TestTolerance:
    """What is only assumed of the API may be otherwise."""

    @pytest.mark.parametrize(
        ("error", "words", "code"),
        [
            ("no luck", "no luck", None),
            ({"code": "NSFW", "message": "no luck"}, "no luck", "NSFW"),
            ({"code": "NSFW"}, "NSFW", "NSFW"),
            ({"message": "no luck", "code": 7}, "no luck", None),
            (None, "no reason given", None),
            ("", "no reason given", None),
            (["?"], "no reason given", None),
            ({}, "no reason given", None),
        ],
        ids=str,
    )
    def test_a_failed_task_says_why(self, error, words, code):
        task = came_to(POLL, task_answer(status="failed", error=error))
        assert (task.status, task.is_final, task.error, task.error_code) == ("failed", True, words, code)

    def test_a_completed_task_with_an_error_field_is_completed(self):
        assert came_to(POLL, task_answer(status="completed", media_url=URL, error="old")).error is None

    @pytest.mark.parametrize("status", ["queued", "pending", "Completed", "done"])
    def test_any_other_status_is_not_finished_yet(self, status):
        assert not came_to(POLL, task_answer(status=status)).is_final

    @pytest.mark.parametrize(
        ("data", "images"),
        [
            ({"images": [{"url": URL}]}, [(URL, None)]),
            ({"images": [{"url": URL, "content_type": 7}]}, [(URL, None)]),
            ({"images": [URL]}, [(URL, None)]),
            ({"images": [], "media_url": URL}, [(URL, None)]),
            ({"images": None, "media_url": URL}, [(URL, None)]),
            ({"media_url": URL}, [(URL, None)]),
            ({"images": [None, 7, {}, {"url": ""}, {"url": URL}]}, [(URL, None)]),
        ],
    )
    def test_images_in_other_shapes(self, data, images):
        task = came_to(POLL, task_answer(status="completed", **data))
        assert [(image.url, image.content_type) for image in task.images] == images

    def test_a_poll_need_not_repeat_the_id(self):
        assert came_to(POLL, answer(payload={"data": {"status": "queued"}})).task_id == TASK_ID

    def test_a_poll_by_the_short_id_keeps_that_id(self):
        call = poll_call("kUtpnus8fXpDKkuEjayG3")
        assert came_to(call, answer(payload=COMPLETED)).task_id == "kUtpnus8fXpDKkuEjayG3"

    @pytest.mark.parametrize(
        "data",
        [
            {"status": None},
            {"status": ""},
            {"status": 1},
            {"status": ["processing"]},
            {"status": "completed", "images": []},
            {"images": "?"},
            {"created_at": 7},
            {"created_at": "yesterday"},
        ],
        ids=str,
    )
    def test_nothing_but_its_id_counts_in_the_answer_to_a_submit(self, data):
        """It is accepted and paid for: nothing else in it may lose the id."""
        task = came_to(SUBMIT, task_answer(**data))
        assert isinstance(task, ImageTask)
        assert task.task_id == TASK_ID

    @pytest.mark.parametrize(
        ("created_at", "age"),
        [
            ("2026-04-22T00:13:20.000Z", 0.0),
            ("2026-04-22T00:12:20Z", 60.0),
            ("2026-04-22T00:12:20", 60.0),
            ("2026-04-22T02:12:20+02:00", 60.0),
            ("2026-04-22T09:00:00Z", 0.0),
            ("2026-04-22", 800.0),
            ("soon", None),
            ("", None),
            (None, None),
            (1776816740, None),
        ],
    )
    def test_age_is_read_from_the_clock_of_the_api(self, created_at, age):
        reply = answer(
            payload={"data": {"status": "processing", "created_at": created_at}}, date="Wed, 22 Apr 2026 00:13:20 GMT"
        )
        assert came_to(POLL, reply).age == age

    def test_age_without_the_date_of_the_api_goes_by_the_local_clock(self):
        created = datetime.fromtimestamp(NOW - 5, UTC).isoformat()
        assert came_to(POLL, task_answer(created_at=created)).age == 5.0


class TestNotUnderstood:
    """A 2xx answer that is not a task."""

    PAYLOADS = (
        None,
        [],
        [1],
        "task",
        7,
        {},
        {"success": True},
        {"success": True, "data": None},
        {"success": True, "data": []},
        {"success": True, "data": TASK_ID},
        {"success": False, "data": {"task_id": TASK_ID, "status": "processing"}},
        {"success": False, "error": {"code": "INSUFFICIENT_CREDITS", "message": "no"}},
        {"success": True, "data": {"task_id": 7, "status": "processing"}},
        {"success": True, "data": {"task_id": "../../x", "status": "processing"}},
        {"success": True, "data": {"task_id": ["x"], "status": "processing"}},
    )

    @pytest.mark.parametrize("status", [200, 201, 202, 204])
    @pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: json.dumps(payload)[:40])
    def test_on_a_poll_is_a_protocol_error(self, payload, status):
        error = came_to(POLL, answer(status, payload))
        assert type(error) is GptImgProtocolError
        assert error.http_status == status

    @pytest.mark.parametrize("status", [200, 201, 202, 204])
    @pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: json.dumps(payload)[:40])
    def test_on_a_submit_leaves_the_outcome_unknown(self, payload, status):
        error = came_to(SUBMIT, answer(status, payload))
        assert type(error) is GptImgSubmissionUnknownError
        assert error.http_status == status

    @pytest.mark.parametrize(
        "data",
        [
            {"task_id": "gpt-image-2-another", "status": "processing"},
            {"task_id": TASK_ID},
            {"task_id": TASK_ID, "status": ""},
            {"task_id": TASK_ID, "status": 7},
            {"task_id": TASK_ID, "status": "completed"},
            {"task_id": TASK_ID, "status": "completed", "images": [{"content_type": "image/png"}]},
        ],
        ids=lambda data: json.dumps(data)[-40:],
    )
    def test_a_poll_must_speak_of_its_task_and_its_status(self, data):
        assert type(came_to(POLL, answer(payload={"success": True, "data": data}))) is GptImgProtocolError

    @pytest.mark.parametrize("id_", ["", None])
    def test_a_submit_must_bring_an_id_to_poll_with(self, id_):
        reply = answer(payload={"success": True, "data": {"task_id": id_, "id": "k", "status": "processing"}})
        assert type(came_to(SUBMIT, reply)) is GptImgSubmissionUnknownError


class TestErrors:
    """The table of errors: HTTP status, with the API's envelope, to class."""

    STATUSES = (
        (400, GptImgRequestError),
        (401, GptImgAuthError),
        (402, GptImgInsufficientCreditsError),
        (403, GptImgAuthError),
        (405, GptImgRequestError),
        (409, GptImgRequestError),
        (413, GptImgRequestError),
        (422, GptImgRequestError),
        (429, GptImgRateLimitError),
        (500, GptImgServerError),
        (502, GptImgServerError),
        (503, GptImgServerError),
        (529, GptImgServerError),
    )

    @BOTH
    @pytest.mark.parametrize(("status", "error_type"), STATUSES)
    def test_by_status(self, call, status, error_type):
        error = came_to(call, envelope(status))
        assert type(error) is error_type
        assert (error.code, error.http_status, error.request_id) == ("SOME_CODE", status, "req_1")
        assert "words" in error.message
        assert str(error).endswith(f"(HTTP {status}, code=SOME_CODE, request_id=req_1)")

    def test_404_on_a_task_means_no_such_task(self):
        error = came_to(POLL, envelope(404))
        assert type(error) is GptImgTaskNotFoundError
        assert TASK_ID in error.message

    def test_404_on_a_submit_is_a_wrong_request(self):
        assert type(came_to(SUBMIT, envelope(404))) is GptImgRequestError

    @BOTH
    @pytest.mark.parametrize(
        ("payload", "headers", "code", "request_id"),
        [
            ({"success": False, "error": {"code": "C", "message": "m"}, "request_id": "r"}, {}, "C", "r"),
            ({"success": False, "error": {"code": "C", "message": "m", "request_id": "r"}}, {}, "C", "r"),
            ({"success": False, "code": "C", "message": "m", "request_id": "r"}, {}, "C", "r"),
            ({"code": "C", "message": "m"}, {"x_request_id": "r"}, "C", "r"),
            ({"error": {"code": "C", "message": "m"}}, {"x_request_id": "r"}, "C", "r"),
            ({"success": False, "error": "m", "code": "C"}, {}, "C", None),
            ({"success": False, "error": "m"}, {}, None, None),
            ({"success": False, "message": "m", "request_id": 7}, {"x_request_id": "r"}, None, "r"),
        ],
    )
    def test_the_envelope_in_all_its_forms(self, call, payload, headers, code, request_id):
        error = came_to(call, answer(400, payload, **headers))
        assert type(error) is GptImgRequestError
        assert (error.code, error.request_id) == (code, request_id)
        assert error.message.endswith("m")

    FOREIGN = (
        None,
        [],
        "oops",
        {},
        {"message": "Forbidden"},
        {"message": "no Route matched with those values", "request_id": "r"},
        {"error": "Bad Gateway"},
        {"error": {"message": "no healthy upstream"}},
        {"error": {"code": 502, "message": "Bad Gateway"}},
        {"code": 0},
        {"success": None},
        {"success": 0},
    )

    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 500, 502, 503, 504])
    @pytest.mark.parametrize("payload", FOREIGN, ids=lambda payload: json.dumps(payload)[:30])
    def test_a_submit_answered_by_somebody_else_is_unknown(self, payload, status):
        error = came_to(SUBMIT, answer(status, payload))
        assert type(error) is GptImgSubmissionUnknownError
        assert error.http_status == status

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("payload", [None, SUBMITTED, {"success": False, "error": {"code": "C"}}])
    def test_a_redirected_submit_is_unknown(self, status, payload):
        assert type(came_to(SUBMIT, answer(status, payload, location="https://a.example"))) is (
            GptImgSubmissionUnknownError
        )

    @pytest.mark.parametrize(
        ("status", "error_type"),
        [
            (302, GptImgProtocolError),
            (400, GptImgProtocolError),
            (401, GptImgAuthError),
            (403, GptImgAuthError),
            (404, GptImgProtocolError),
            (502, GptImgProtocolError),
        ],
    )
    def test_a_poll_answered_by_somebody_else(self, status, error_type):
        """A proxy's 404 says nothing of the task: it must not count as lost."""
        assert type(came_to(POLL, answer(status))) is error_type

    @BOTH
    @pytest.mark.parametrize("payload", [None, "<html>", {"message": "slow down"}], ids=str)
    def test_429_is_a_rate_limit_whoever_says_so(self, call, payload):
        reply = Answer(429, {"retry-after": "7"}, payload, NOW)
        error = came_to(call, reply)
        assert type(error) is GptImgRateLimitError
        assert error.retry_after == 7.0

    def test_foreign_words_are_one_bounded_line(self):
        error = came_to(POLL, envelope(400, code="C\r\nD" + "d" * 999, message="a\nb\x1b[31m\u2028c" + "é" * 9999))
        assert "\n" not in str(error)
        assert "\x1b" not in str(error)
        assert len(str(error)) < 1000


class TestRetryAfter:
    AT = format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True)

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("7", 7.0),
            (" 7.5 ", 7.5),
            ("0", 0.0),
            ("-3", 0.0),
            ("999999999", 86400.0),
            ("inf", 86400.0),
            ("nan", None),
            ("soon", None),
            ("", None),
            ("Wed, 99 Foo 2026 00:00:00 GMT", None),
            (AT, 90.0),
            (AT.replace("GMT", "+0000"), 90.0),
            ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ],
    )
    def test_both_forms(self, value, seconds):
        assert came_to(SUBMIT, envelope(429, retry_after=value)).retry_after == seconds

    def test_without_it_nothing_is_known(self):
        assert came_to(SUBMIT, envelope(429)).retry_after is None

    def test_a_date_counts_from_the_date_of_the_answer(self):
        """The clocks of worker and API may differ."""
        date = format_datetime(datetime.fromtimestamp(NOW + 80, UTC), usegmt=True)
        assert came_to(SUBMIT, envelope(429, retry_after=self.AT, date=date)).retry_after == 10.0


class TestConversation:
    """What is repeated, and how often."""

    REPEATED = (
        ("not-sent", NOT_SENT, GptImgServerError),
        ("429", envelope(429), GptImgRateLimitError),
        ("429-of-a-proxy", answer(429), GptImgRateLimitError),
        ("500", envelope(500), GptImgServerError),
        ("503", envelope(503), GptImgServerError),
    )
    # Repeated when asked for, unknown when submitted.
    LOST_OR_FOREIGN = (
        ("lost", LOST, GptImgServerError),
        ("html", answer(502), GptImgProtocolError),
        ("empty", answer(200), GptImgProtocolError),
        ("redirect", answer(302), GptImgProtocolError),
        ("not-a-task", answer(200, {"success": True, "data": {}}), GptImgProtocolError),
        ("error-in-200", answer(200, {"success": False, "error": {"code": "X"}}), GptImgProtocolError),
    )
    AT_ONCE = (
        ("400", envelope(400), GptImgRequestError),
        ("401", envelope(401), GptImgAuthError),
        ("402", envelope(402), GptImgInsufficientCreditsError),
        ("403", envelope(403), GptImgAuthError),
        ("422", envelope(422), GptImgRequestError),
    )

    @staticmethod
    def rows(*tables):
        return [pytest.param(outcome, error, id=name) for table in tables for name, outcome, error in table]

    @pytest.mark.parametrize(("outcome", "error_type"), rows(REPEATED))
    def test_a_submit_is_repeated_while_it_certainly_was_not_accepted(self, outcome, error_type):
        told = course(SUBMIT, outcome)
        assert type(told.result) is error_type
        assert (told.calls, len(told.sleeps)) == (MAX_ATTEMPTS, MAX_ATTEMPTS - 1)

    @pytest.mark.parametrize(("outcome", "_"), rows(LOST_OR_FOREIGN))
    def test_a_submit_that_may_have_been_accepted_is_never_repeated(self, outcome, _):
        told = course(SUBMIT, outcome, answer(payload=SUBMITTED))
        assert type(told.result) is GptImgSubmissionUnknownError
        assert (told.calls, told.sleeps) == (1, [])

    @pytest.mark.parametrize(("outcome", "_"), rows(LOST_OR_FOREIGN))
    def test_nor_after_it_was_refused_before(self, outcome, _):
        told = course(SUBMIT, envelope(503), outcome, answer(payload=SUBMITTED))
        assert type(told.result) is GptImgSubmissionUnknownError
        assert told.calls == 2

    @pytest.mark.parametrize(("outcome", "error_type"), rows(REPEATED, LOST_OR_FOREIGN))
    def test_a_read_is_repeated_whenever_that_may_help(self, outcome, error_type):
        told = course(POLL, outcome)
        assert type(told.result) is error_type
        assert told.calls == MAX_ATTEMPTS

    @BOTH
    @pytest.mark.parametrize(("outcome", "error_type"), rows(AT_ONCE))
    def test_a_refusal_is_final(self, call, outcome, error_type):
        told = course(call, outcome, answer(payload=SUBMITTED))
        assert type(told.result) is error_type
        assert (told.calls, told.sleeps) == (1, [])

    @BOTH
    @pytest.mark.parametrize(("outcome", "_"), rows(REPEATED))
    def test_goes_well_in_the_end(self, call, outcome, _):
        told = course(call, outcome, outcome, answer(payload=SUBMITTED))
        assert told.result.task_id == TASK_ID
        assert told.calls == 3

    @BOTH
    def test_sends_once_if_told_so(self, call):
        told = course(call, envelope(503), max_attempts=1)
        assert (told.calls, told.sleeps) == (1, [])

    @BOTH
    def test_waits_as_long_as_the_api_asks(self, call):
        told = course(call, envelope(429, retry_after="20"), answer(payload=SUBMITTED))
        assert told.sleeps == [21.0]

    @BOTH
    @pytest.mark.parametrize(("retry_after", "calls"), [("61", 1), ("3600", 1), ("25", 3), ("59", 2)])
    def test_does_not_sleep_longer_in_all_than_a_worker_may_be_held(self, call, retry_after, calls):
        told = course(call, envelope(429, retry_after=retry_after))
        assert type(told.result) is GptImgRateLimitError
        assert told.result.retry_after == float(retry_after)
        assert told.calls == calls
        assert sum(told.sleeps) <= MAX_WAIT

    @BOTH
    @given(
        outcomes=st.lists(
            st.sampled_from([NOT_SENT, LOST, envelope(429), envelope(500), answer(502), answer(200), answer(302)])
            | st.integers(0, 10**6).map(lambda seconds: envelope(429, retry_after=str(seconds))),
            min_size=1,
        ),
        max_attempts=st.integers(1, 8),
        max_wait=st.floats(0, 200),
    )
    def test_is_bounded_in_calls_and_sleep(self, call, outcomes, max_attempts, max_wait):
        told = course(call, *outcomes, max_attempts=max_attempts, max_wait=max_wait)
        assert isinstance(told.result, GptImgError)
        assert told.calls <= max_attempts
        assert sum(told.sleeps) <= max_wait
        assert len(told.sleeps) == told.calls - 1


@pytest.mark.parametrize(
    ("failures", "low", "high"), [(1, 0.5, 1), (2, 1, 2), (3, 2, 4), (5, 8, 16), (6, 15, 30), (99, 15, 30)]
)
def test_backoff_doubles_up_to_half_a_minute(failures, low, high):
    assert backoff(failures, None, lambda a, b: a) == low
    assert backoff(failures, None, lambda a, b: b) == high


@pytest.mark.parametrize("retry_after", [0.0, 7.0, 86400.0])
def test_backoff_never_comes_back_before_the_api_allows(retry_after):
    assert backoff(1, retry_after, lambda a, b: a) == retry_after
    assert backoff(9, retry_after, lambda a, b: b) == retry_after + 1


@pytest.mark.parametrize(
    ("outcome", "accepted", "words"),
    [
        (envelope(404), True, "accepted"),
        (envelope(400), True, "accepted"),
        (envelope(422), True, "accepted"),
        (envelope(401), False, "rejected the key"),
        (envelope(403), False, "rejected the key"),
        (NOT_SENT, False, "unreachable"),
        (LOST, False, "unreachable"),
        (answer(404), False, "not the gpt-image-2 API"),
        (answer(200), False, "not the gpt-image-2 API"),
        (answer(401, {"message": "Unauthorized"}), False, "not the gpt-image-2 API"),
        (answer(401), False, "or a gateway before it rejected the key"),
        (answer(302), False, "not the gpt-image-2 API"),
        (envelope(500), False, "did not look at the key"),
        (envelope(402), False, "did not look at the key"),
        (answer(429), False, "limits the rate"),
        (envelope(429), False, "limits the rate"),
    ],
)
def test_the_verdict_on_a_connection(outcome, accepted, words):
    verdict, said = judge_probe(outcome)
    assert verdict is accepted
    assert words in said


class TestSecrets:
    KEY = "sk-very-secret-key"

    @pytest.mark.parametrize(
        "body",
        [
            '{"error": {"message": "bad key sk-very-secret-key!"}}',
            '{"sk-very-secret-key": 1}',
            '[["sk-very-secret-key"]]',
            '"\\u0073k-very-secret-key"',
            '{"a": {"b": ["x", {"c": "Bearer sk-very-secret-key, sk-very-secret-key"}]}}',
        ],
    )
    def test_an_answer_brings_no_secret_back(self, body):
        payload = read_payload(body.encode(), (self.KEY,))
        assert payload is not None
        assert self.KEY not in json.dumps(payload)
        assert "***" in json.dumps(payload)

    def test_not_in_another_encoding_either(self):
        payload = read_payload(json.dumps({"message": self.KEY}).encode("utf-16"), (self.KEY,))
        assert payload == {"message": "***"}

    def test_all_else_stays_as_it_is(self):
        assert read_payload(json.dumps(COMPLETED).encode(), (self.KEY,)) == COMPLETED

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"{", b"\xff\xfe", b"\x00", b'"\xff"', b"1" * 10_000, b"[" * 100_000],
        ids=lambda body: repr(body[:10]),
    )
    def test_what_is_no_json_is_none(self, body):
        assert read_payload(body, (self.KEY,)) is None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def nearly(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these fields, any of which may be missing or be something else."""
    return st.fixed_dictionaries({}, optional={name: value | json_values for name, value in fields.items()})


task_ids = st.sampled_from([TASK_ID, "kUtpnus8fXpDKkuEjayG3", "gpt-image-2-other", "../x", ""])
tasks = nearly(
    task_id=task_ids,
    id=task_ids,
    status=st.sampled_from(["processing", "completed", "failed", "queued", ""]),
    media_url=st.just(URL),
    images=st.lists(nearly(url=st.just(URL), content_type=st.just("image/png")) | json_values, max_size=3),
    error=nearly(code=st.text(), message=st.text()),
    created_at=st.datetimes().map(str) | st.just("0001-01-01T00:00:00+23:59") | st.just("9999-12-31T23:59:59-23:59"),
    updated_at=st.text(),
)
payloads = json_values | nearly(
    success=st.booleans(),
    data=tasks,
    error=nearly(code=st.text(), message=st.text(), request_id=st.text()),
    code=st.text(),
    message=st.text(),
    request_id=st.text(),
)
header_values = st.text(st.characters(max_codepoint=255), max_size=40) | st.sampled_from(
    ["Wed, 22 Apr 2026 00:13:20 GMT", "Wed, 31 Dec 9999 23:59:59 -9959", "Mon, 1 Jan 0001 00:00:00 +2359", "7", "1e999"]
)
answers = st.builds(
    Answer,
    status=st.sampled_from([200, 201, 204, 302, 400, 401, 402, 404, 422, 429, 500, 502]) | st.integers(200, 999),
    headers=st.dictionaries(st.sampled_from(["date", "retry-after", "x-request-id"]), header_values),
    payload=payloads.map(json.dumps).map(lambda text: read_payload(text.encode(), ("secret-key",))),
    received_at=st.just(NOW),
)


@given(answers)
def test_no_answer_to_a_poll_is_too_strange(reply):
    result = came_to(POLL, reply)
    assert isinstance(result, ImageTask | GptImgError)
    str(result)
    if isinstance(result, ImageTask):
        assert result.task_id == TASK_ID
        json.dumps(result.as_dict())
        assert result.age is None or result.age >= 0


@given(answers)
def test_no_answer_to_a_submit_is_too_strange(reply):
    """Accepted with an id, certainly refused, or unknown: nothing between."""
    result = came_to(SUBMIT, reply)
    if isinstance(result, ImageTask):
        assert 200 <= reply.status < 300
        assert poll_call(result.task_id)
    elif not isinstance(result, GptImgSubmissionUnknownError):
        assert isinstance(result, GptImgError)
        assert reply.status == 429 or (reply.status >= 400 and isinstance(reply.payload, dict))


@given(answers | st.builds(NoAnswer, st.text(), st.booleans()))
def test_no_answer_to_the_probe_is_too_strange(outcome):
    verdict, words = judge_probe(outcome)
    assert isinstance(verdict, bool)
    assert words


@given(
    st.binary()
    | payloads.map(json.dumps).flatmap(lambda text: st.integers(0, len(text)).map(lambda n: text[:n].encode()))
)
def test_any_bytes_can_be_read(body):
    read_payload(body, ("secret-key",))
