# SPDX-License-Identifier: Apache-2.0
"""The error tree, its texts, and its way through a trigger's event."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given, strategies as st

from airflow_provider_gptimg import exceptions
from airflow_provider_gptimg.exceptions import (
    GptImgContentPolicyError,
    GptImgError,
    GptImgRateLimitError,
    GptImgServerError,
    GptImgTaskFailedError,
    from_dict,
)

TYPES = [getattr(exceptions, name) for name in exceptions.__all__]
# As the contract names them; users catch them by these names.
CONTRACT = {
    "GptImgError",
    "GptImgRequestError",
    "GptImgAuthError",
    "GptImgInsufficientCreditsError",
    "GptImgTaskNotFoundError",
    "GptImgRateLimitError",
    "GptImgServerError",
    "GptImgSubmissionUnknownError",
    "GptImgTaskFailedError",
    "GptImgContentPolicyError",
    "GptImgTimeoutError",
    "GptImgProtocolError",
    "GptImgMediaError",
}


def test_the_contract_names_them_all():
    assert set(exceptions.__all__) == CONTRACT


@pytest.mark.parametrize("error_type", TYPES)
def test_each_is_a_sibling_below_one_base(error_type):
    above = {GptImgContentPolicyError: {GptImgTaskFailedError}}.get(error_type, set())
    assert {other for other in TYPES if issubclass(error_type, other)} == {GptImgError, error_type, *above}


@pytest.mark.parametrize("error_type", TYPES)
def test_the_text_shows_code_status_and_request_id(error_type):
    error = error_type("It broke", code="C", http_status=500, request_id="r")
    assert (error.code, error.http_status, error.request_id) == ("C", 500, "r")
    assert str(error) == "It broke (HTTP 500, code=C, request_id=r)"


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ({}, "It broke"),
        ({"http_status": 500}, "It broke (HTTP 500)"),
        ({"code": "C"}, "It broke (code=C)"),
        ({"request_id": "r"}, "It broke (request_id=r)"),
    ],
)
def test_the_text_shows_what_is_known(details, text):
    assert str(GptImgError("It broke", **details)) == text


def test_a_later_message_is_the_text():
    error = GptImgServerError("It broke", http_status=500)
    error.add_hint("Twice")
    assert str(error) == "It broke. Twice (HTTP 500)"


@pytest.mark.parametrize("message", ["It is 2", "It is 2.", "It is 2..", "It is 2. "])
def test_a_hint_doubles_no_full_stop(message):
    error = GptImgError(message)
    error.add_hint("Top up")
    error.add_hint("Then clear the task")
    assert str(error) == "It is 2. Top up. Then clear the task"


def test_a_hint_keeps_the_mark_that_ends_a_sentence():
    error = GptImgError("What now?")
    error.add_hint("Wait")
    assert str(error) == "What now? Wait"


@pytest.mark.parametrize("error_type", TYPES)
@pytest.mark.parametrize("details", [{}, {"code": "C", "http_status": 500, "request_id": "r"}], ids=["bare", "full"])
def test_goes_through_an_event_and_back(error_type, details):
    if error_type is GptImgRateLimitError and details:
        details = {**details, "retry_after": 7.0}
    error = error_type("It broke", **details)
    back = from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(back) is error_type
    assert vars(back) == vars(error)
    assert str(back) == str(error)


@pytest.mark.parametrize("error_type", TYPES)
def test_can_be_pickled(error_type):
    """Executors and libraries send exceptions between processes."""
    error = error_type("It broke", code="C", http_status=500, request_id="r")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is error_type
    assert vars(back) == vars(error)


@pytest.mark.parametrize(
    "fact",
    [
        {},
        {"type": "GptImgErrorOfTheNextRelease", "message": "It broke"},
        {"type": "ValueError", "message": "It broke"},
        {"type": "Any", "message": "It broke"},
        {"type": None, "message": None},
        {"type": ["GptImgError"], "message": 7},
    ],
    ids=str,
)
def test_what_another_release_wrote_is_an_error_at_least(fact):
    back = from_dict(fact)
    assert type(back) is GptImgError
    assert back.message


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(sorted(CONTRACT)) | st.text(),
            "message": st.none() | st.text(),
            "code": st.none() | st.text() | st.integers(),
            "http_status": st.none() | st.integers(),
            "request_id": st.none() | st.text(),
            "retry_after": st.none() | st.floats() | st.text(),
            "more": st.integers(),
        },
    )
)
def test_no_fact_is_too_strange(fact):
    assert str(from_dict(fact))
