# SPDX-License-Identifier: Apache-2.0
"""What is sent: method, path and body."""

from __future__ import annotations

import pytest
from api_answers import COMPLETED, POLL, SUBMIT, SUBMITTED, TASK_ID, URL, answer, came_to

from airflow_provider_gptimg.api.calls import probe_call, submit_call
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.api.tasks import Image, ImageTask


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
