# SPDX-License-Identifier: Apache-2.0
"""A connection that is missing, or whose key is: the error names it and the way out."""

from __future__ import annotations

import asyncio
import json

import pytest

from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgRequestError
from airflow_provider_gptimg.hooks.gptimg import GptImgHook

CALLS = pytest.mark.parametrize(
    "call",
    [
        lambda hook: hook.submit("a cat"),
        lambda hook: hook.get_task("gpt-image-2-x"),
        lambda hook: asyncio.run(hook.aget_task("gpt-image-2-x")),
    ],
    ids=["submit", "worker", "triggerer"],
)


@CALLS
def test_a_missing_connection_is_named_with_the_way_to_make_one(call, airflow_db):
    with pytest.raises(GptImgRequestError) as refusal:
        call(GptImgHook("no_such_connection"))
    assert "airflow connections add no_such_connection --conn-type gptimg" in str(refusal.value)
    assert "gptimg_conn_id" in str(refusal.value)


def test_a_test_of_it_says_so(airflow_db):
    accepted, words = GptImgHook("no_such_connection").test_connection()
    assert not accepted
    assert "'no_such_connection'" in words


@CALLS
@pytest.mark.parametrize("status", [401, 403])
def test_an_error_about_the_key_names_the_connection(emulator, call, status):
    body = {"success": False, "error": {"code": "BAD_KEY", "message": "no"}}
    emulator.fault("any", "body", times=None, status=status, body=json.dumps(body))
    with pytest.raises(GptImgAuthError) as refusal:
        call(GptImgHook())
    assert str(refusal.value).count("'gptimg_default'") == 1
    assert str(refusal.value).count("Put a valid key into the connection's password, then clear the task") == 1
