# SPDX-License-Identifier: Apache-2.0
"""What is done next after each answer: without a socket, by values."""

from __future__ import annotations

import pytest
from api_answers import BOTH, LOST, NOT_SENT, POLL, SUBMIT, SUBMITTED, TASK_ID, answer, course, envelope
from hypothesis import given, strategies as st

from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS, MAX_WAIT, backoff
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
)


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
