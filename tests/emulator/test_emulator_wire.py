# SPDX-License-Identifier: Apache-2.0
"""What stands on the wire, compared with the vendor's own examples and rules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest

from airflow_provider_gptimg.emulator import Emulator

SUBMITTED = """
{"success": true, "data": {"id": "kUtpnus8fXpDKkuEjayG3", "task_id": "gpt-image-2-kUtpnus8fXpDKkuEjayG3",
 "status": "processing", "provider": "gpt-image-2", "model": "gpt-image-2", "type": "text-to-image",
 "media_url": null, "images": [], "created_at": "2026-04-22T00:12:03.456Z"}}
"""
COMPLETED = """
{"success": true, "data": {"id": "kUtpnus8fXpDKkuEjayG3", "task_id": "gpt-image-2-kUtpnus8fXpDKkuEjayG3",
 "status": "completed", "provider": "gpt-image-2", "model": "gpt-image-2", "type": "text-to-image",
 "media_url": "https://file.gptimg.co/gpt-image-2-outputs/f063a662-1860-4a51-bd9b-ffe75a5336a5.png",
 "images": [{"url": "https://file.gptimg.co/gpt-image-2-outputs/f063a662-1860-4a51-bd9b-ffe75a5336a5.png",
             "content_type": "image/png"}],
 "error": null, "created_at": "2026-04-22T00:12:03.456Z", "updated_at": "2026-04-22T00:13:02.789Z"}}
"""
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def emulator(clock) -> Iterator[Emulator]:
    with Emulator(durations=(59.333, 59.333), clock=clock) as emulator:
        yield emulator


def as_in_the_examples(answer: httpx.Response, emulator: Emulator) -> str:
    """Return the answer's text with this run's ids and host in place of the examples' own."""
    text = answer.text.replace(answer.json()["data"]["id"], "kUtpnus8fXpDKkuEjayG3")
    text = text.replace(emulator.base_url, "https://file.gptimg.co")
    return UUID.sub("f063a662-1860-4a51-bd9b-ffe75a5336a5", text)


def compact(example: str) -> str:
    return json.dumps(json.loads(example))


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["error"]["code"]) == (status, code)
    assert set(body) == {"success", "error", "request_id"}
    assert set(body["error"]) == {"code", "message"}
    assert body["success"] is False
    assert body["error"]["message"]
    assert answer.headers["x-request-id"] == body["request_id"]


def test_answers_are_the_documented_ones_to_the_letter(emulator, api, clock):
    submitted = api.submit()
    assert submitted.status_code == 200
    assert as_in_the_examples(submitted, emulator) == compact(SUBMITTED)
    task_id = submitted.json()["data"]["task_id"]
    assert re.fullmatch(r"gpt-image-2-[A-Za-z0-9]{21}", task_id)
    clock.now += 59.333
    assert as_in_the_examples(api.poll(task_id), emulator) == compact(COMPLETED)


def test_a_processing_task_has_no_images_yet(api):
    data = api.data(api.submit().json()["data"]["task_id"])
    assert (data["status"], data["media_url"], data["images"], data["error"]) == ("processing", None, [], None)


@pytest.mark.parametrize("error", ["nsfw", {"code": "CONTENT_POLICY", "message": "No."}], ids=["text", "object"])
def test_a_failed_task_says_why(emulator, api, error):
    data = api.data(emulator.add_task(error=error))
    assert (data["status"], data["media_url"], data["images"], data["error"]) == ("failed", None, [], error)


@pytest.mark.parametrize(
    ("references", "kind"),
    [
        ([], "text-to-image"),
        (["https://example.com/1.png"], "image-to-image"),
        (["data:image/png;base64,AA=="] * 4, "image-to-image"),
    ],
)
def test_references_decide_the_type(api, references, kind):
    assert api.submit(image_urls=references).json()["data"]["type"] == kind


def test_the_field_of_the_references_can_have_another_name():
    with Emulator(reference_images_field="refs") as emulator:
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        body = {"prompt": "x", "refs": ["https://example.com/1.png"], "image_urls": "unchecked"}
        answer = httpx.post(f"{emulator.base_url}/api/v1/images/generate", headers=headers, json=body)
        assert answer.json()["data"]["type"] == "image-to-image"
        assert json.loads(emulator.connection_json)["extra"] == {"reference_images_field": "refs"}


def test_unknown_fields_are_kept(emulator, api):
    body = {"prompt": "x", "n": 2, "quality": "high", "nested": {"a": [1]}}
    task_id = api.submit(**body).json()["data"]["task_id"]
    assert emulator.task(task_id).request == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"prompt": ""}',
        b'{"prompt": " \\n"}',
        b'{"prompt": 1}',
        b'{"prompt": "x", "n": 0}',
        b'{"prompt": "x", "n": 5}',
        b'{"prompt": "x", "n": "1"}',
        b'{"prompt": "x", "n": 1.0}',
        b'{"prompt": "x", "n": true}',
        b'{"prompt": "x", "aspect_ratio": "1x1"}',
        b'{"prompt": "x", "aspect_ratio": "0:1"}',
        b'{"prompt": "x", "aspect_ratio": "16:9 "}',
        b'{"prompt": "x", "aspect_ratio": 1}',
        b'{"prompt": "x", "aspect_ratio": null}',
        b'{"prompt": "x", "aspect_ratio": "1%s:1"}' % (b"0" * 5000),
        b'{"prompt": "x", "image_urls": "https://example.com/1.png"}',
        b'{"prompt": "x", "image_urls": [1]}',
        b'{"prompt": "x", "image_urls": ["a", "b", "c", "d", "e"]}',
    ],
)
def test_a_body_that_breaks_the_rules_is_refused_and_costs_nothing(emulator, api, body):
    assert_refused(api.http.post("/api/v1/images/generate", content=body), 400, "INVALID_REQUEST")
    assert (emulator.tasks, emulator.ledger) == ([], [])


@pytest.mark.parametrize("fields", [{"n": 1}, {"n": 4}, {"aspect_ratio": "16:9"}, {"aspect_ratio": "1000:1"}])
def test_a_body_within_the_rules_is_accepted(api, fields):
    assert api.submit(**fields).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic gptimg-emulator-key", "gptimg-emulator-key"]
)
def test_a_call_without_a_good_key_is_refused(emulator, api, header):
    headers = {} if header is None else {"Authorization": header}
    task_id = emulator.add_task()
    url = f"{emulator.base_url}/api/v1/images"
    assert_refused(httpx.get(f"{url}/task/{task_id}", headers=headers), 401, "UNAUTHORIZED")
    assert_refused(httpx.post(f"{url}/generate", headers=headers, json={"prompt": "x"}), 401, "UNAUTHORIZED")
    assert emulator.ledger == []


def test_a_revoked_key_is_refused(emulator, api):
    assert api.submit().status_code == 200
    emulator.revoke_key(emulator.api_key)
    assert_refused(api.submit(), 401, "UNAUTHORIZED")


@pytest.mark.parametrize("name", ["api_key", "apikey", "key", "token", "access_token", "API_KEY"])
def test_a_key_in_the_query_string_is_refused_and_stays_valid(emulator, api, name):
    url = f"/api/v1/images/generate?{name}={emulator.api_key}"
    assert_refused(api.http.post(url, json={"prompt": "x"}), 400, "API_KEY_IN_QUERY")
    task_id = emulator.add_task()
    assert_refused(api.poll(f"{task_id}?{name}=x"), 400, "API_KEY_IN_QUERY")
    assert emulator.ledger == []
    assert api.submit().status_code == 200


def test_tasks_of_another_user_do_not_exist(emulator, api):
    emulator.add_key("second-key", user="default")
    emulator.add_key("foreign-key", credits=2, user="stranger")
    task_id = api.submit().json()["data"]["task_id"]
    assert api.poll(task_id).status_code == 200
    api.http.headers["Authorization"] = "Bearer second-key"
    assert api.poll(task_id).status_code == 200
    api.http.headers["Authorization"] = "Bearer foreign-key"
    assert_refused(api.poll(task_id), 404, "TASK_NOT_FOUND")
    assert emulator.task(task_id).polls == 2
    assert api.submit().status_code == 200
    assert (emulator.balance(), emulator.balance("stranger")) == (998, 0)


def test_unknown_tasks_and_paths_and_wrong_methods(api):
    assert_refused(api.poll("gpt-image-2-nothing"), 404, "TASK_NOT_FOUND")
    for path in ("/", "/api/v2/anything", "/api/v1/images/task/", "/line%0Abreak", "/_emulator/nothing"):
        assert_refused(api.http.get(path), 404, "NOT_FOUND")
    for answer, allowed in (
        (api.http.get("/api/v1/images/generate"), "POST"),
        (api.http.delete("/api/v1/images/task/x"), "GET"),
    ):
        assert_refused(answer, 405, "METHOD_NOT_ALLOWED")
        assert answer.headers["allow"] == allowed


def test_too_low_a_balance_is_refused_and_nothing_is_charged(emulator, api):
    emulator.set_balance(7)
    assert_refused(api.submit(n=4), 402, "INSUFFICIENT_CREDITS")
    assert (emulator.balance(), emulator.ledger, emulator.tasks) == (7, [], [])
    assert api.submit(n=3).status_code == 200
    assert emulator.balance() == 1


def test_rates_of_failure_and_of_limits():
    with Emulator(durations=(0, 0), fail_rate=1, rate_limit_rate=0.5, seed=4) as emulator:
        headers = {"Authorization": f"Bearer {emulator.api_key}"}
        url = f"{emulator.base_url}/api/v1/images/generate"
        answers = [httpx.post(url, headers=headers, json={"prompt": "x"}) for _ in range(40)]
        limited = [answer for answer in answers if answer.status_code == 429]
        assert 0 < len(limited) < 40
        assert_refused(limited[0], 429, "RATE_LIMITED")
        assert limited[0].headers["retry-after"] == "1"
        assert [task.status for task in emulator.tasks] == ["failed"] * (40 - len(limited))
        assert emulator.balance() == 1000


def test_image_urls_carry_the_name_the_client_used(emulator, api):
    task_id = emulator.add_task()
    port = emulator.base_url.rpartition(":")[2]
    answer = api.http.get(f"/api/v1/images/task/{task_id}", headers={"Host": f"localhost:{port}"})
    assert answer.json()["data"]["media_url"].startswith(f"http://localhost:{port}/gpt-image-2-outputs/")
