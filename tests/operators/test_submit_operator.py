# SPDX-License-Identifier: Apache-2.0
"""GptImgSubmitOperator: what it sends, returns and pushes, and what it refuses before sending."""

from __future__ import annotations

import json
import os
import traceback
from urllib.parse import unquote

import httpx
import pytest
from attempts import fails_at_once

from airflow_provider_gptimg.exceptions import GptImgAuthError, GptImgRequestError
from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator


def submit(**arguments) -> GptImgSubmitOperator:
    return GptImgSubmitOperator(**{"task_id": "submit", "prompt": "a cat"} | arguments)


def test_returns_the_task_id_at_once(emulator, instance):
    task_id = instance.attempt(submit())
    (task,) = emulator.tasks
    assert task_id == task.task_id
    assert task.status == "processing"
    assert [call.method for call in emulator.calls] == ["POST"]


def test_sends_what_the_author_wrote(emulator, instance):
    references = ["https://example.com/a.png", "data:image/png;base64,AA=="]
    instance.attempt(
        submit(
            prompt="a «cat», 猫 {{ not jinja }}",
            aspect_ratio="16:9",
            n=3,
            reference_images=references,
            extra_body={"quality": "high", "seed": 7},
        )
    )
    (task,) = emulator.tasks
    assert task.request == {
        "prompt": "a «cat», 猫 {{ not jinja }}",
        "aspect_ratio": "16:9",
        "n": 3,
        "image_urls": references,
        "quality": "high",
        "seed": 7,
    }
    assert task.type == "image-to-image"


def test_sends_nothing_that_was_not_said(emulator, instance):
    instance.attempt(submit())
    assert emulator.tasks[0].request == {"prompt": "a cat", "n": 1}


@pytest.mark.parametrize("n", [1, 4, "2"])
def test_pushes_the_credits_it_spent(emulator, instance, n):
    instance.attempt(submit(n=n))
    assert instance.xcoms["credits"] == 2 * int(n)
    assert emulator.balance() == 1000 - 2 * int(n)


def test_renders_all_arguments_but_the_policy(emulator, instance, quick, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_MY_GPTIMG", emulator.connection_json)
    monkeypatch.delenv("AIRFLOW_CONN_GPTIMG_DEFAULT")
    operator = submit(
        prompt="a {{ animal }}",
        aspect_ratio="{{ width }}:9",
        n="{{ 1 + 1 }}",
        reference_images=["https://example.com/{{ animal }}.png"],
        extra_body={"style": ["{{ animal }}"]},
        gptimg_conn_id="my_{{ 'gptimg' }}",
    )
    operator.render_template_fields({"animal": "cat", "width": 16})
    instance.attempt(operator)
    assert emulator.tasks[0].request == {
        "prompt": "a cat",
        "aspect_ratio": "16:9",
        "n": 2,
        "image_urls": ["https://example.com/cat.png"],
        "style": ["cat"],
    }
    assert "on_unknown_submission" not in operator.template_fields


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": " \n"},
        {"prompt": None},
        {"n": 0},
        {"n": 5},
        {"n": "two"},
        {"n": "2.5"},
        {"prompt": "None"},
        {"prompt": "a\0cat"},
        {"n": True},
        {"aspect_ratio": "16x9"},
        {"aspect_ratio": "0:1"},
        {"reference_images": ["https://example.com/a.png"] * 5},
        {"reference_images": ["http://example.com/a.png"]},
        {"reference_images": ["s3://bucket"]},
        {"reference_images": ["file:///etc/passwd"]},
        {"extra_body": {"n": 4}},
        {"extra_body": "text"},
        {"on_unknown_submission": "retry"},
    ],
    ids=lambda wrong: json.dumps(wrong)[:50],
)
def test_refuses_before_sending(emulator, instance, wrong):
    with fails_at_once(GptImgRequestError) as caught:
        instance.attempt(submit(**wrong))
    assert next(iter(wrong)) in str(caught.value)
    assert emulator.calls == []
    assert instance.store.records == {}
    assert instance.xcoms == {}


def test_refuses_a_connection_without_a_key(emulator, instance, quick):
    quick(password="")
    with fails_at_once(GptImgAuthError):
        instance.attempt(submit())
    assert emulator.calls == []


class TestReferencesInS3:
    """An `s3://` reference is presigned for the API, and its URL is nobody else's business."""

    @pytest.fixture
    def operator(self, s3) -> GptImgSubmitOperator:
        s3.put_object(Bucket="images", Key="references/ä_b+c.png", Body=b"the reference")
        return submit(reference_images=["s3://images/references/ä_b+c.png", "https://example.com/b.png"])

    def test_the_api_can_fetch_it(self, emulator, instance, operator):
        instance.attempt(operator)
        presigned, other = emulator.tasks[0].request["image_urls"]
        assert httpx.get(presigned).content == b"the reference"
        assert other == "https://example.com/b.png"

    def test_its_url_stays_out_of_log_record_and_xcom(self, emulator, instance, operator, log):
        instance.attempt(operator)
        signature = httpx.URL(emulator.tasks[0].request["image_urls"][0]).params["X-Amz-Signature"]
        logged = log()
        assert "Submitted image task" in logged
        for said in (logged, repr(instance.store.records), repr(instance.xcoms)):
            assert signature not in unquote(said)
            assert "Signature" not in said

    @pytest.mark.parametrize("fault", ["lost_after", "cut_after", 400, 500, "html"])
    def test_its_url_stays_out_of_errors(self, emulator, instance, operator, log, hasty, fault):
        emulator.fault("submit", fault, times=None)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
            instance.attempt(operator)
        told = "".join(traceback.format_exception(caught.value)) + log()
        assert "Signature" not in told

    def test_a_new_url_at_each_attempt_is_the_same_request(self, emulator, instance, operator, monkeypatch):
        instance.kill(operator)
        monkeypatch.setattr("airflow_provider_gptimg.hooks.presign._PRESIGNED_FOR", 1800)
        instance.attempt(operator)
        assert len(emulator.tasks) == 1

    def test_aws_connection_is_an_argument(self, emulator, instance, operator, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_TEAM_AWS", os.environ["AIRFLOW_CONN_AWS_DEFAULT"].replace("testing", "team"))
        monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
        operator.aws_conn_id = "team_{{ 'aws' }}"
        operator.render_template_fields({})
        instance.attempt(operator)
        assert "X-Amz-Credential=team" in emulator.tasks[0].request["image_urls"][0]


def test_names_the_field_of_references_as_the_connection_says(emulator, instance, quick):
    quick(reference_images_field="refs")
    instance.attempt(submit(reference_images="https://example.com/a.png"))
    assert emulator.tasks[0].request["refs"] == ["https://example.com/a.png"]


def test_on_kill_says_that_the_images_are_paid_for(log):
    submit().on_kill()
    said = log()
    assert "paid for" in said
    assert "Clear the Airflow task" in said
