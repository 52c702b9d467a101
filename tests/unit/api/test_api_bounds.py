# SPDX-License-Identifier: Apache-2.0
"""What a task may hold: four images, and texts that any database takes and any log may show."""

from __future__ import annotations

import json

import pytest
from api_answers import NOW, POLL, SUBMIT, TASK_ID, URL, came_to, envelope, task_answer

from airflow_provider_gptimg.api.answers import Answer
from airflow_provider_gptimg.api.tasks import ImageTask
from airflow_provider_gptimg.api.texts import read_payload
from airflow_provider_gptimg.exceptions import (
    GptImgProtocolError,
    GptImgRequestError,
    GptImgSubmissionUnknownError,
)

NASTY = "\x1b[31m\x9b\u202e https://a.example/x?Signature=5ec4e7"
FINISHED = {"task_id": TASK_ID, "status": "completed", "images": [{"url": URL, "content_type": "image/png"}]}


def test_a_task_has_at_most_four_images():
    assert len(came_to(POLL, task_answer(status="completed", images=[URL] * 4)).images) == 4
    result = came_to(POLL, task_answer(status="completed", images=[URL] * 5))
    assert isinstance(result, GptImgProtocolError)
    assert "5 images" in str(result)


def test_but_nothing_spoils_a_submit_that_was_accepted():
    assert came_to(SUBMIT, task_answer(status="completed", images=[URL] * 5)).task_id == TASK_ID


@pytest.mark.parametrize("flaw", ["the body has more than 65536 bytes"])
def test_a_body_that_was_not_read_is_no_task(flaw):
    answer = Answer(200, {}, None, NOW, flaw)
    polled = came_to(POLL, answer)
    assert isinstance(polled, GptImgProtocolError)
    assert flaw in str(polled)
    assert isinstance(came_to(SUBMIT, answer), GptImgSubmissionUnknownError)
    assert flaw in str(came_to(POLL, Answer(502, {}, None, NOW, flaw)))


def test_foreign_texts_are_cleaned_and_urls_stay():
    names = ("id", "type", "provider", "model", "created_at", "updated_at")
    url = "https://file.gptimg.co/x.png?Signature=opens"
    task = came_to(
        POLL,
        task_answer(
            status="completed",
            images=[{"url": url, "content_type": NASTY}],
            media_url=url,
            **dict.fromkeys(names, NASTY),
        ),
    )
    assert [image.url for image in task.images] == [url]
    assert task.media_url == url
    for text in (*(getattr(task, name) for name in names), task.images[0].content_type):
        assert text.isprintable()
        assert "5ec4e7" not in text


def test_the_error_of_a_failed_task_shows_no_signature():
    for error in (NASTY, {"message": NASTY, "code": NASTY}):
        task = came_to(POLL, task_answer(status="failed", error=error))
        assert task.error.isprintable()
        assert "5ec4e7" not in f"{task.error} {task.error_code}"


@pytest.mark.parametrize("status", [400, 401, 402, 404, 429, 500])
def test_nor_does_the_error_of_a_call(status):
    error = came_to(POLL, envelope(status, code=NASTY, message=NASTY))
    assert str(error).isprintable()
    assert "5ec4e7" not in str(error)


def test_nul_and_lone_surrogates_are_taken_out_of_all_texts():
    body = b'{"data": {"a\\u0000": ["b\\u0000c", "\\ud800"]}}'
    assert read_payload(body, ()) == {"data": {"a ": ["b c", "?"]}}


class TestFinishedTasksFromElsewhere:
    def test_are_read_as_they_were_written(self):
        task = came_to(POLL, task_answer(**{**FINISHED, "model": "gpt-image-2", "media_url": URL}))
        assert ImageTask.from_dict(task.as_dict()).as_dict() == task.as_dict()

    @pytest.mark.parametrize(
        "change",
        [
            {"status": "processing"},
            {"images": []},
            {"images": None},
            {"images": "abc"},
            {"images": [{"url": 7}]},
            {"images": [7]},
        ],
        ids=str,
    )
    def test_are_not_believed_unless_they_are_whole(self, change):
        assert ImageTask.from_dict({**FINISHED, **change}) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"images": [{"url": URL}] * 200_000},
            {"images": [{"url": "https://" + "a" * 20_000}]},
            {"media_url": "https://" + "a" * 20_000},
        ],
        ids=["images", "url", "media-url"],
    )
    def test_are_bounded(self, change):
        with pytest.raises(GptImgProtocolError):
            ImageTask.from_dict({**FINISHED, **change})

    def test_have_an_id(self):
        with pytest.raises(GptImgRequestError):
            ImageTask.from_dict({**FINISHED, "task_id": "../x"})

    def test_have_clean_texts(self):
        names = ("id", "type", "provider", "model", "created_at", "updated_at")
        told = {**dict.fromkeys(names, NASTY), "images": [{"url": URL, "content_type": ["x"]}], "media_url": 7}
        task = ImageTask.from_dict({**FINISHED, **told})
        assert "5ec4e7" not in json.dumps(task.as_dict())
        assert (task.images[0].content_type, task.media_url) == (None, None)
