# SPDX-License-Identifier: Apache-2.0
"""Which codes of a failed generation say that another attempt would be refused again."""

from __future__ import annotations

import pytest

from airflow_provider_gptimg.api.refusals import DEFAULT_FINAL_FAILURE_CODES, failure_of, read_failure_codes
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgContentPolicyError, GptImgTaskFailedError


def failure(error: str = "no luck", code: str | None = None, patterns: object = None) -> GptImgTaskFailedError:
    return failure_of(ImageTask("t", "failed", error=error, error_code=code), read_failure_codes(patterns))


@pytest.mark.parametrize(
    "code",
    [
        *("content_policy_violation", "CONTENT_POLICY", "content-policy", "contentPolicyViolation", "policy_violation"),
        *("content_filter", "ContentFiltered", "moderation_blocked", "MODERATION", "content_moderated"),
        *("IMAGE_SAFETY", "safety_system", "content_safety_violation", "NSFW", "nsfw_content_detected"),
        *("PROHIBITED_CONTENT", "sensitiveContentDetected"),
    ],
)
def test_codes_that_refuse_what_is_asked_for(code):
    error = failure(code=code)
    assert type(error) is GptImgContentPolicyError
    assert error.code == code
    assert "no luck" in str(error)
    assert "change the prompt" in str(error)
    assert type(failure(error=code)) is GptImgContentPolicyError, "an error of one word is a code"


@pytest.mark.parametrize(
    "code",
    [
        *(None, "", "GENERATION_FAILED", "timeout", "INTERNAL_ERROR", "out_of_memory", "rate_limited", "content_type"),
        *("unsupported_policy_version", "filter_error"),
    ],
)
def test_codes_of_failures_that_may_pass(code):
    assert type(failure(code=code)) is GptImgTaskFailedError


def test_words_of_the_message_do_not_count():
    assert type(failure(error="The content policy and safety service is down")) is GptImgTaskFailedError


@pytest.mark.parametrize("patterns", [["no_cats", "Blocked_*"], " no_cats ,blocked_*,", ("NO_CATS", "blocked_?*")])
def test_patterns_replace_the_default(patterns):
    assert type(failure(code="NO_CATS", patterns=patterns)) is GptImgContentPolicyError
    assert type(failure(code="blocked_by_us", patterns=patterns)) is GptImgContentPolicyError
    assert type(failure(code="content_policy_violation", patterns=patterns)) is GptImgTaskFailedError


def test_an_empty_list_turns_it_off():
    assert read_failure_codes([]) == ()
    assert type(failure(code="content_policy_violation", patterns=[])) is GptImgTaskFailedError


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_given_is_the_default(value):
    assert read_failure_codes(value) == DEFAULT_FINAL_FAILURE_CODES


@pytest.mark.parametrize("value", [7, True, {"a": 1}, ["ok", 3], [""], " , ", [None]])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match="is not a list of patterns"):
        read_failure_codes(value)
