# SPDX-License-Identifier: Apache-2.0
"""What one task has paid for, another one that asks for the same reuses: it costs nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow_names import DAG, task
from attempts import Instance, fails_at_once, may_be_retried
from journals import charged, spent, use_s3

from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgRequestError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
)
from airflow_provider_gptimg.journal import reuse as reuse_module
from airflow_provider_gptimg.journal.reuse import Purchases
from airflow_provider_gptimg.journal.spending import Amounts
from airflow_provider_gptimg.journal.stores import S3Store
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, s3: Any) -> Callable[[], list[str]]:
    return use_s3(monkeypatch, s3)


pytestmark = pytest.mark.usefixtures("keys")


def instance(task_id: str) -> Instance:
    made = Instance()
    made.task_id = task_id
    return made


def generate(**arguments: Any) -> GptImgGenerateOperator:
    return GptImgGenerateOperator(**{"task_id": "paid", "prompt": "a cat", "n": 2, "reuse": True} | arguments)


def test_the_second_task_gets_what_the_first_has_paid_for(emulator, deferrable):
    first, second = instance("first"), instance("second")
    paid = first.attempt(generate(deferrable=deferrable))
    assert (paid["credits"], "reused_from" in paid, first.xcoms["credits"]) == (4, False, 4)

    reused = second.attempt(generate(deferrable=deferrable))

    assert charged(emulator) == 4
    assert second.xcoms["credits"] == 0
    reused_from = reused["reused_from"]
    assert reused == {**paid, "credits": 0, "reused_from": reused_from}
    assert (
        abs(time.time() - time.mktime(time.strptime(reused_from.pop("submitted_at")[:19], "%Y-%m-%dT%H:%M:%S"))) < 90000
    )
    assert reused_from == {
        "task_id": paid["task_id"],
        "dag_id": "pictures",
        "run_id": "today",
        "airflow_task_id": "first",
        "map_index": -1,
    }
    assert spent() == Amounts(charged=4, reused=4)


def test_the_reused_task_can_be_mirrored(emulator, s3):
    instance("first").attempt(generate())
    reused = instance("second").attempt(generate())
    mirror = GptImgToS3Operator(task_id="mirror", gptimg_task_id=reused, s3_bucket="images")
    assert len(instance("mirror").attempt(mirror)) == 2


def test_what_a_task_without_reuse_has_paid_for_is_reused_too(emulator):
    instance("submit").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat", n=2))
    instance("generate").attempt(generate(prompt="a dog", reuse=False))
    instance("first").attempt(generate())
    instance("second").attempt(generate(prompt="a dog"))
    assert charged(emulator) == 8


def test_another_connection_reuses_too(emulator, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", emulator.connection_json)
    instance("first").attempt(generate())
    assert instance("second").attempt(generate(gptimg_conn_id="other"))["credits"] == 0
    assert charged(emulator) == 4


@pytest.mark.parametrize(
    "other",
    [{"prompt": "a dog"}, {"n": 1}, {"aspect_ratio": "1:1"}, {"generation": "2026-12"}, {"reuse": False}],
    ids=str,
)
def test_what_is_not_the_same_is_paid_for(emulator, other):
    instance("first").attempt(generate())
    assert "reused_from" not in instance("second").attempt(generate(**other))
    assert charged(emulator) > 4


def test_a_generation_is_reused_by_its_like(emulator):
    instance("first").attempt(generate(generation="2026-12"))
    assert instance("second").attempt(generate(generation="2026-12"))["credits"] == 0
    assert instance("third").attempt(generate())["credits"] == 4


def test_an_age_bounds_the_reuse(emulator):
    instance("first").attempt(generate())
    assert instance("second").attempt(generate(reuse=timedelta(hours=1)))["credits"] == 0
    time.sleep(0.01)
    assert instance("third").attempt(generate(reuse=timedelta(milliseconds=1)))["credits"] == 4


def test_a_cleared_success_is_the_same_again_and_a_new_generation_is_not(emulator):
    task = instance("first")
    paid = task.attempt(generate())
    task.clear()
    assert task.attempt(generate())["task_id"] == paid["task_id"]
    task.clear()
    assert task.attempt(generate(generation="2"))["task_id"] != paid["task_id"]
    task.clear()
    assert task.attempt(generate(reuse=False))["credits"] == 4
    assert charged(emulator) == 12
    assert spent() == Amounts(charged=12, reused=4)


def test_images_that_the_api_no_longer_knows_are_paid_for(emulator):
    instance("first").attempt(generate())
    emulator.fault("poll", 404)
    assert instance("second").attempt(generate())["credits"] == 4


def test_a_generation_that_failed_is_not_reused(emulator):
    emulator.fault("submit", "fail")
    with may_be_retried(GptImgTaskFailedError):
        instance("first").attempt(generate())
    assert instance("second").attempt(generate())["credits"] == 4


def test_an_api_that_does_not_say_is_not_nothing(emulator, hasty):
    instance("first").attempt(generate())
    emulator.fault("poll", 503, times=None)
    with pytest.raises(GptImgError, match="503"):
        instance("second").attempt(generate())
    assert charged(emulator) == 4


@pytest.mark.parametrize("broken", ["list", "get_signed", "put"])
def test_an_index_that_cannot_be_read_or_written_is_not_nothing(emulator, monkeypatch, broken):
    instance("first").attempt(generate(prompt="a dog" if broken == "put" else "a cat"))
    call = getattr(S3Store, broken)

    def fail(self: S3Store, *given: Any, **more: Any) -> Any:
        if "requests/" in self.way_to_drop:
            raise GptImgError("S3 is away")
        return call(self, *given, **more)

    monkeypatch.setattr(S3Store, broken, fail)
    with may_be_retried(GptImgError):
        instance("second").attempt(generate())
    assert charged(emulator) == 4


def test_what_others_put_into_the_index_changes_nothing(emulator, s3, keys):
    other = instance("other").attempt(generate(prompt="a dog", reuse=False))
    first = instance("first").attempt(generate())
    (mine,) = (key for key in keys() if "/requests/" in key and first["task_id"] in key)
    folder, _, name = mine.rpartition("/")
    forged = f"{name[:5]}{int(name[5:20]) + 1}.{other['task_id']}.json"
    s3.copy_object(Bucket="images", Key=f"{folder}/{forged}", CopySource={"Bucket": "images", "Key": mine})
    for stray in ("paid.x.json", "paid.json", "lease.x.json", "lease.json", "README.md"):
        s3.put_object(Bucket="images", Key=f"{folder}/{stray}", Body="null")
    assert instance("second").attempt(generate())["task_id"] == first["task_id"]
    assert charged(emulator) == 8


def test_an_image_task_that_cannot_be_published_is_delivered(emulator, monkeypatch, log):
    call = S3Store.put

    def fail(self: S3Store, name: str, entry: Any) -> bool:
        if name.startswith("paid."):
            raise GptImgError("S3 is away")
        return call(self, name, entry)

    monkeypatch.setattr(S3Store, "put", fail)
    assert instance("first").attempt(generate())["credits"] == 4
    assert "cannot be reused by other tasks" in log()


@pytest.mark.parametrize("reuse", ["yes", 1, timedelta(0), timedelta(days=-1)])
def test_a_wrong_reuse_is_refused(emulator, reuse):
    with fails_at_once(GptImgRequestError) as caught:
        instance("first").attempt(generate(reuse=reuse))
    assert f"reuse={reuse!r}" in str(caught.value)
    assert emulator.calls == []


@pytest.mark.parametrize("journal", ["auto", "none"])
def test_without_a_shared_journal_it_says_what_to_set(emulator, monkeypatch, journal):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", journal)
    with fails_at_once(GptImgRequestError) as caught:
        instance("first").attempt(generate())
    assert "[gptimg] journal" in str(caught.value)
    assert "AIRFLOW__GPTIMG__JOURNAL=s3://" in str(caught.value)
    assert emulator.calls == []


def test_of_two_that_ask_at_once_one_pays_and_the_other_waits(emulator, monkeypatch):
    monkeypatch.setattr(reuse_module, "PAUSE", 0.05)
    emulator.latency = 0.3
    results: dict[str, Any] = {}

    def run(name: str) -> None:
        results[name] = instance(name).attempt(generate())

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert charged(emulator) == 4
    assert sorted(result["credits"] for result in results.values()) == [0, 0, 4]
    assert len({result["task_id"] for result in results.values()}) == 1


def test_the_decorator_takes_both_arguments(emulator):
    def painter(generation: str) -> Any:
        with DAG("decorated"):
            return task.gptimg(task_id="paint", reuse=True, generation=generation)(lambda: "a cat")().operator

    credits = []
    for number, generation in enumerate(("{{ 2 + 2 }}", "4", "5")):
        operator = painter(generation)
        operator.render_template_fields({})
        credits.append(instance(f"paint-{number}").attempt(operator)["credits"])
    assert credits == [2, 0, 2]


def test_a_reused_image_task_that_is_lost_says_how_to_go_on(emulator, clock):
    clock.stop()
    first = instance("first").defer(generate(deferrable=True))
    second = instance("second")
    reused = second.defer(generate(deferrable=True))
    assert reused.kwargs["task_id"] == first.kwargs["task_id"]
    assert reused.kwargs["reused_from"]["airflow_task_id"] == "first"
    emulator.fault("poll", 404, times=None)
    with fails_at_once(GptImgTaskNotFoundError) as caught:
        generate(deferrable=True).resume_execution("execute_complete", reused.kwargs | {"event": None}, second.context)
    assert "submitted by another task" in str(caught.value)
    assert charged(emulator) == 4


def lease_of(keys: Callable[[], list[str]]) -> list[str]:
    return [key for key in keys() if "/lease." in key]


def test_whoever_died_with_a_lease_is_waited_for_until_it_is_over(emulator, monkeypatch, keys, s3):
    """And its own retry takes up what it has paid for, as without reuse."""
    died = instance("died")
    with monkeypatch.context() as patch:
        patch.setattr(reuse_module.Lease, "release", lambda self: None)
        patch.setattr(Purchases, "publish", lambda self, *given: None)
        died.kill(generate())
    assert charged(emulator) == 4
    pauses = []
    monkeypatch.setattr(reuse_module, "PAUSE", 0.0)
    find = Purchases.find

    def patient(self: Purchases, look: Any) -> Any:
        found = find(self, look)
        if found is None:
            pauses.append(1)
            (lease,) = lease_of(keys)
            s3.put_object(Bucket="images", Key=lease, Body=json.dumps({"until": time.time() - 1}))
        return found

    monkeypatch.setattr(Purchases, "find", patient)
    assert instance("second").attempt(generate())["credits"] == 4
    assert pauses == [1]
    assert died.attempt(generate())["task_id"] == emulator.tasks[0].task_id
    assert charged(emulator) == 8


def test_who_is_late_with_a_lease_looks_again(emulator, monkeypatch, s3, keys):
    """A process that was frozen before its POST reuses what another one has bought meanwhile."""
    prepare = "airflow_provider_gptimg.hooks.gptimg.GptImgHook._prepare_submit"
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

    prepared = GptImgHook._prepare_submit

    def frozen(self: Any, *given: Any) -> Any:
        monkeypatch.setattr(prepare, prepared)
        monkeypatch.setattr(reuse_module, "LEASE", -1.0)  # the other finds the lease over
        for key in lease_of(keys):
            s3.put_object(Bucket="images", Key=key, Body=json.dumps({"until": 0}))
        monkeypatch.setattr(reuse_module, "LEASE", 60.0)
        others.append(instance("other").attempt(generate()))
        monkeypatch.setattr(reuse_module.Lease, "check", late)
        return prepared(self, *given)

    def late(self: Any) -> None:
        raise reuse_module.LeaseOverError

    others: list[Any] = []
    monkeypatch.setattr(prepare, frozen)
    assert instance("first").attempt(generate())["task_id"] == others[0]["task_id"]
    assert charged(emulator) == 4


def test_a_store_without_conditions_pays_once_each_at_the_most(emulator, monkeypatch):
    put = S3Store.put

    def careless(self: S3Store, name: str, entry: Any) -> bool:
        put(self, name, entry)
        return True

    monkeypatch.setattr(S3Store, "put", careless)
    for name in ("a", "b", "c"):
        instance(name).attempt(generate())
    assert charged(emulator) == 4
