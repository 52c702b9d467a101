# SPDX-License-Identifier: Apache-2.0
"""Calls, answers and courses of a conversation that the tests of the API's protocol speak of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from airflow_provider_gptimg.api.answers import Answer, NoAnswer
from airflow_provider_gptimg.api.calls import Call, poll_call, submit_call
from airflow_provider_gptimg.api.protocol import Sleep, converse
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.exceptions import GptImgError

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
