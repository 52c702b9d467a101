# SPDX-License-Identifier: Apache-2.0
"""No answer is too strange to be an error of ours."""

from __future__ import annotations

import json
from typing import Any

from api_answers import NOW, POLL, SUBMIT, TASK_ID, URL, came_to
from hypothesis import given, strategies as st

from airflow_provider_gptimg.api.answers import Answer, NoAnswer, judge_probe
from airflow_provider_gptimg.api.calls import poll_call
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.api.texts import read_payload
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgSubmissionUnknownError,
)

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
