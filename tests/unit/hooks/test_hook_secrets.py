# SPDX-License-Identifier: Apache-2.0
"""The key is sent to the API's own host in one header, and is seen nowhere else."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from typing import Any

import pytest

from airflow_provider_gptimg.api import protocol
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

KEY = "gptimg-emulator-key"


@pytest.fixture
def hook(emulator, monkeypatch) -> GptImgHook:
    assert emulator.api_key == KEY
    monkeypatch.setattr(protocol, "backoff", lambda *told: 0.001)
    return GptImgHook()


def traces(error: BaseException) -> str:
    """All that a log, an XCom or a pickled exception could show of an error and its causes."""
    shown, at = [], error
    while at is not None:
        shown += [str(at), repr(at), repr(vars(at)), repr(pickle.dumps(at))]
        if isinstance(at, GptImgError):
            shown.append(json.dumps(at.as_dict()))
        at = at.__cause__ or at.__context__
    return "\n".join(shown)


def submit(hook: GptImgHook) -> Any:
    return hook.submit("a cat")


def get_task(hook: GptImgHook) -> Any:
    return hook.get_task("gpt-image-2-x")


def aget_task(hook: GptImgHook) -> Any:
    return asyncio.run(hook.aget_task("gpt-image-2-x"))


CALLS = pytest.mark.parametrize("call", [submit, get_task, aget_task])


def told(call: Any, hook: GptImgHook) -> str:
    """Return all that is to be seen of the outcome."""
    try:
        task = call(hook)
    except GptImgError as error:
        return traces(error)
    return f"{task!r} {task} {json.dumps(task.as_dict())}"


ECHOES = {
    "refused": (401, {"success": False, "error": {"code": f"BAD_{KEY}", "message": f"Bearer {KEY} is no key"}}),
    "refused-flat": (400, {"success": False, "code": KEY, "message": f"a{KEY}b", "request_id": KEY}),
    "as-a-name": (400, {"success": False, KEY: 1, "error": {"message": "x", KEY: KEY}}),
    "server-error": (500, {"success": False, "error": {"message": f"{KEY}{KEY}"}}),
    "limited": (402, {"success": False, "error": {"code": KEY, "message": KEY}}),
    "a-task": (
        200,
        {
            "success": True,
            "data": {
                "task_id": "gpt-image-2-x",
                "id": KEY,
                "status": KEY,
                "type": KEY,
                "model": KEY,
                "provider": KEY,
                "media_url": f"https://gptimg.co/{KEY}",
                "images": [{"url": f"https://gptimg.co/?k={KEY}", "content_type": KEY}],
                "created_at": KEY,
                "updated_at": KEY,
            },
        },
    ),
    "a-failed-task": (
        200,
        {
            "success": True,
            "data": {"task_id": "gpt-image-2-x", "status": "failed", "error": {"code": KEY, "message": KEY}},
        },
    ),
    "as-the-task-id": (200, {"success": True, "data": {"task_id": KEY, "status": "processing"}}),
}


@CALLS
@pytest.mark.parametrize("echo", ECHOES)
def test_a_server_that_echoes_the_key_brings_it_nowhere(emulator, hook, caplog, call, echo):
    caplog.set_level(logging.INFO)
    status, payload = ECHOES[echo]
    headers = {"x-request-id": KEY, "Retry-After": KEY}
    emulator.fault("any", "body", times=None, status=status, body=json.dumps(payload), headers=headers)
    assert KEY not in told(call, hook)
    assert KEY not in caplog.text


@CALLS
def test_nor_does_one_that_escapes_it(emulator, hook, call):
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    body = f'{{"success": false, "error": {{"code": "{escaped}", "message": "{escaped}"}}}}'
    emulator.fault("any", "body", times=None, status=400, body=body)
    assert KEY not in told(call, hook)


@CALLS
@pytest.mark.parametrize("key", ["sk-me", "secret-1"])
def test_not_even_a_short_one(emulator, hook, connect, call, key):
    connect(emulator, password=key)
    body = json.dumps({"success": False, "error": {"code": f"BAD_{key}", "message": f"{key} is no key"}})
    emulator.fault("any", "body", times=None, status=401, body=body)
    assert key not in told(call, hook)


FAULTS = [400, 401, 429, 500, "html", "empty", "redirect", "lost_before", "lost_after", "cut_after"]


@CALLS
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_shows_it(emulator, hook, caplog, call, fault):
    caplog.set_level(logging.DEBUG)
    emulator.fault("any", fault, times=None)
    assert KEY not in told(call, hook)
    assert KEY not in caplog.text


@CALLS
def test_nothing_shows_it_when_all_goes_well(emulator, hook, caplog, call):
    caplog.set_level(logging.DEBUG)
    emulator.fault("any", "body", times=None, body=json.dumps(ECHOES["a-failed-task"][1]).replace(KEY, "x"))
    assert KEY not in told(call, hook)
    assert KEY not in caplog.text
    assert KEY not in repr(hook.settings)
    assert KEY not in repr(vars(hook))


def test_it_is_in_no_text_of_a_prepared_submit(emulator, hook):
    from airflow_provider_gptimg.api.requests import ImageRequest

    prepared = hook._prepare_submit(ImageRequest.check("a secret cat"), None)
    assert KEY not in repr(prepared)
    assert "secret cat" not in repr(prepared)


def test_the_client_that_users_get_has_no_key(emulator, hook):
    with hook.get_conn() as client:
        assert KEY not in repr(dict(client.headers))
        client.get(f"{emulator.base_url}/elsewhere")
    assert "authorization" not in emulator.calls[-1].headers


def test_it_stands_in_the_authorization_header_and_nowhere_else(emulator, hook):
    task_id = hook.submit("a cat").task_id
    hook.get_task(task_id)
    asyncio.run(hook.aget_task(task_id))
    hook.test_connection()
    assert len(emulator.calls) == 4
    for call in emulator.calls:
        assert call.headers.pop("authorization") == f"Bearer {KEY}"
        assert KEY not in f"{call.path} {call.query} {call.headers} {call.body!r}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@CALLS
def test_a_redirect_does_not_lead_it_away(emulator, hook, call, status):
    from airflow_provider_gptimg.emulator import Emulator

    with Emulator() as elsewhere:
        emulator.fault("any", "redirect", times=None, status=status, location=f"{elsewhere.base_url}/api/v1/images/x")
        told(call, hook)
        assert elsewhere.calls == []


def test_an_image_on_the_apis_own_host_is_fetched_without_it(emulator, hook, s3):
    task_id = emulator.add_task(n=2)
    operator = GptImgToS3Operator(task_id="mirror", gptimg_task_id=task_id, s3_bucket="images")
    operator.execute({"ti": None})
    images = [call for call in emulator.calls if "/task/" not in call.path]
    assert len(images) == 2
    assert not any("authorization" in call.headers or KEY in str(call.headers) for call in images)


def test_operators_and_triggers_hold_no_key(emulator):
    operator = GptImgSubmitOperator(task_id="submit", prompt="a cat")
    trigger = GptImgTaskTrigger("gpt-image-2-x")
    assert KEY not in repr(vars(operator))
    assert KEY not in json.dumps(trigger.serialize())


class TestPresigned:
    """A presigned URL is a secret too: who has it can read the object."""

    @pytest.fixture
    def reference(self, s3) -> str:
        s3.put_object(Bucket="images", Key="in/cat.png", Body=b"cat")
        return "s3://images/in/cat.png"

    def test_reaches_the_api_and_works(self, emulator, hook, reference):
        import httpx

        task = hook.submit("a cat", reference_images=["https://a.example/x.png", reference])
        plain, presigned = emulator.task(task.task_id).request["image_urls"]
        assert plain == "https://a.example/x.png"
        assert httpx.get(presigned, trust_env=False).content == b"cat"

    @pytest.mark.parametrize("fault", [400, "lost_after", None])
    def test_shows_in_no_log_and_no_error(self, emulator, hook, reference, caplog, monkeypatch, fault):
        caplog.set_level(logging.INFO)
        if fault:
            emulator.fault("submit", fault, times=None)
        seen = told(lambda hook: hook.submit("a cat", reference_images=[reference]), hook) + caplog.text
        assert "ignature" not in seen
        assert "in/cat.png?" not in seen

    def test_is_taken_out_of_an_answer_that_echoes_it(self, emulator, hook, reference, monkeypatch):
        """As an API does that cannot fetch it, and says so."""
        presigned = "https://images.example/in/cat.png?X-Amz-Signature=secret"
        monkeypatch.setattr(
            "airflow.providers.amazon.aws.hooks.s3.S3Hook.generate_presigned_url", lambda *told, **more: presigned
        )
        body = {"success": False, "error": {"code": "C", "message": f"cannot fetch {presigned}"}}
        emulator.fault("submit", "body", status=422, body=json.dumps(body))
        seen = told(lambda hook: hook.submit("a cat", reference_images=[reference]), hook)
        assert "cannot fetch ***" in seen
        assert "Signature" not in seen

    @pytest.mark.parametrize("reference", ["s3://[b/x"])
    def test_a_bucket_that_cannot_be_is_a_wrong_request(self, emulator, hook, s3, reference):
        with pytest.raises(GptImgRequestError, match="reference_images"):
            hook.submit("a cat", reference_images=[reference])
        assert emulator.calls == []

    def test_without_aws_credentials_nothing_is_sent_and_another_attempt_may_have_them(
        self, emulator, hook, monkeypatch, tmp_path
    ):
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps({"conn_type": "aws", "extra": {}}))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        with pytest.raises(GptImgError, match="reference_images") as error:
            hook.submit("a cat", reference_images=["s3://images/in/cat.png"])
        assert not isinstance(error.value, GptImgRequestError)
        assert emulator.calls == []
