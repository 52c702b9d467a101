# SPDX-License-Identifier: Apache-2.0
"""What each answer means: without a socket, by values."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from api_answers import (
    BOTH,
    COMPLETED,
    LOST,
    NOT_SENT,
    NOW,
    POLL,
    SUBMIT,
    SUBMITTED,
    TASK_ID,
    URL,
    answer,
    came_to,
    envelope,
    task_answer,
)

from airflow_provider_gptimg.api.answers import Answer, judge_probe
from airflow_provider_gptimg.api.calls import poll_call
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.api.texts import read_payload
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
)


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
        assert error.message.startswith("The answer to the poll is not understood: ")

    def test_it_names_the_request(self):
        images = [{"url": f"https://file.gptimg.co/{number}.png"} for number in range(5)]
        data = {"task_id": TASK_ID, "status": "completed", "images": images}
        error = came_to(POLL, answer(payload={"success": True, "data": data, "request_id": "req-1"}))
        assert str(error) == (
            "The answer to the poll is not understood: it lists 5 images, and a task has at most 4 "
            "(HTTP 200, request_id=req-1)"
        )

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
            (401, GptImgProtocolError),
            (403, GptImgProtocolError),
            (404, GptImgProtocolError),
            (502, GptImgProtocolError),
        ],
    )
    def test_a_poll_answered_by_somebody_else(self, status, error_type):
        """A proxy's 404 does not mean that the task is lost, nor a firewall's 403 that the key is wrong."""
        error = came_to(POLL, answer(status))
        assert type(error) is error_type
        assert error.http_status == status

    @pytest.mark.parametrize("status", [408, 409, 425])
    @pytest.mark.parametrize(
        ("call", "error_type"), [(POLL, GptImgServerError), (SUBMIT, GptImgRequestError)], ids=["poll", "submit"]
    )
    def test_a_refusal_that_passes_is_no_verdict_on_a_poll(self, status, call, error_type):
        error = came_to(call, answer(status, {"success": False, "error": {"code": "C", "message": "not now"}}))
        assert type(error) is error_type
        assert (error.code, error.http_status) == ("C", status)

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

    @pytest.mark.parametrize("body", [rb'["\ud83d \ud83d\ude00"]', b'["\xed\xa0\xbd \xf0\x9f\x98\x80"]'])
    def test_a_lone_surrogate_becomes_a_question_mark(self, body):
        assert read_payload(body, (self.KEY,)) == ["? 😀"]
