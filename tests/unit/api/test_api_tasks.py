# SPDX-License-Identifier: Apache-2.0
"""Which ids may stand in a URL, which statuses are final, and what goes to XCom."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from airflow_provider_gptimg.api.calls import poll_call
from airflow_provider_gptimg.api.tasks import Image, ImageTask, check_task_id
from airflow_provider_gptimg.exceptions import GptImgRequestError


@pytest.mark.parametrize("task_id", ["gpt-image-2-kUtpnus8fXpDKkuEjayG3", "a", "A.b_c~d-1", "1" * 255])
def test_a_task_id_stands_in_the_path_as_it_is(task_id):
    assert check_task_id(task_id) == task_id
    assert poll_call(task_id).path == f"/api/v1/images/task/{task_id}"


@pytest.mark.parametrize(
    "task_id",
    [
        "",
        " ",
        ".",
        "..",
        "a..b",
        "../task/x",
        "a/b",
        "a\\b",
        "a?key=1",
        "a#b",
        "a%2fb",
        "a b",
        "a\n",
        "\na",
        "a\x00",
        "-a",
        "ä",
        "{{ x }}",
        "a@b",
        "a:b",
        "1" * 256,
        None,
        7,
        b"a",
        ["a"],
    ],
    ids=lambda task_id: repr(task_id)[:20],
)
def test_refuses_what_would_change_the_url(task_id):
    for check in (check_task_id, poll_call):
        with pytest.raises(GptImgRequestError, match="gptimg_task_id"):
            check(task_id)


@given(st.text())
def test_no_accepted_id_leaves_its_place_in_the_path(task_id):
    try:
        path = poll_call(task_id).path
    except GptImgRequestError:
        return
    assert path.isascii()
    assert path.split("/") == ["", "api", "v1", "images", "task", task_id]
    assert not set(path) & set("?#%\\ \t\r\n")


@pytest.mark.parametrize(
    ("status", "is_final"),
    [("completed", True), ("failed", True), ("processing", False), ("queued", False), ("COMPLETED", False)],
)
def test_only_completed_and_failed_are_final(status, is_final):
    assert ImageTask("t", status).is_final is is_final


def test_the_finished_task_in_xcom_has_the_fields_of_the_contract():
    task = ImageTask(
        task_id="gpt-image-2-k",
        id="k",
        status="completed",
        type="text-to-image",
        provider="gpt-image-2",
        model="gpt-image-2",
        media_url="https://a.example/1.png",
        images=(Image("https://a.example/1.png", "image/png"), Image("https://a.example/2")),
        created_at="2026-04-22T00:12:03.456Z",
        updated_at="2026-04-22T00:13:02.789Z",
        age=60.0,
    )
    assert json.loads(json.dumps(task.as_dict())) == {
        "task_id": "gpt-image-2-k",
        "id": "k",
        "status": "completed",
        "type": "text-to-image",
        "provider": "gpt-image-2",
        "model": "gpt-image-2",
        "media_url": "https://a.example/1.png",
        "images": [
            {"url": "https://a.example/1.png", "content_type": "image/png"},
            {"url": "https://a.example/2", "content_type": None},
        ],
        "created_at": "2026-04-22T00:12:03.456Z",
        "updated_at": "2026-04-22T00:13:02.789Z",
        "credits": 4,
    }
