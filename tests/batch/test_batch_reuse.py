# SPDX-License-Identifier: Apache-2.0
"""A batch pays for no request whose images any task of the journal has bought before."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from batch_instance import Instance, batch, prompts
from journals import charged, spent, use_s3

from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.journal import reuse as reuse_module
from airflow_provider_gptimg.journal.reuse import Purchases
from airflow_provider_gptimg.journal.spending import Amounts
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch, s3: Any) -> None:
    use_s3(monkeypatch, s3)


def of(run_id: str) -> Instance:
    made = Instance(None)
    made.run_id = run_id
    return made


def test_the_second_run_costs_nothing(emulator, deferrable, manifest):
    requests = [*prompts(20), {"prompt": "Two of it", "n": 2}, "Picture 3"]
    operator = batch(requests, deferrable=deferrable, reuse=True, manifest_key="{{ run_id }}")
    first, second = of("first"), of("second")
    operator.manifest_key = "first.jsonl"
    paid = first.run(operator)
    assert (paid["credits"], "reused" in paid, first.xcoms["credits"]) == (46, False, 46)
    polls = len(emulator.calls)

    operator.manifest_key = "second.jsonl"
    reused = second.run(operator)

    assert charged(emulator) == 46
    assert len(emulator.calls) == polls, "the images are in S3, so nobody has to be asked"
    assert second.xcoms["credits"] == 0
    assert reused == {**paid, "credits": 0, "reused": 22, "manifest": "s3://images/second.jsonl"}
    assert spent() == Amounts(charged=46, reused=46)
    before, now = manifest("first.jsonl"), manifest("second.jsonl")
    key = lambda row: row["uri"]  # noqa: E731
    assert [row["uri"] for row in sorted(now, key=key)] == [row["uri"] for row in sorted(before, key=key)]
    assert {row["credits"] for row in before} == {2}
    assert {row["credits"] for row in now} == {0}


def test_what_is_gone_from_s3_comes_from_the_api_again(emulator, s3):
    operator = batch(prompts(5), reuse=True)
    of("first").run(operator)
    for task in emulator.tasks[:2]:
        s3.delete_object(Bucket="images", Key=f"gptimg/{task.task_id}/0.png")
    reused = of("second").run(operator)
    assert (reused["mirrored"], reused["reused"], charged(emulator)) == (5, 5, 10)


def test_what_is_gone_from_both_is_paid_for(emulator, s3):
    operator = batch(prompts(5), reuse=True)
    of("first").run(operator)
    for task in emulator.tasks[:2]:
        s3.delete_object(Bucket="images", Key=f"gptimg/{task.task_id}/0.png")
    emulator.fault("poll", 404, times=2)
    again = of("second").run(operator)
    assert (again["mirrored"], again["reused"], again["credits"], charged(emulator)) == (5, 3, 4, 14)


def test_another_place_gets_the_same_images(emulator):
    of("first").run(batch(prompts(3), reuse=True))
    reused = of("second").run(batch(prompts(3), reuse=True, s3_key="elsewhere/{task_id}/{index}{ext}"))
    assert (reused["mirrored"], reused["reused"], charged(emulator)) == (3, 3, 6)


def test_a_batch_reuses_what_single_tasks_have_bought(emulator):
    single = of("single")
    single.run(GptImgGenerateOperator(task_id="single", prompt="Picture 1"))
    summary = of("batch").run(batch(prompts(3), reuse=True, generation=""))
    assert (summary["reused"], summary["credits"], charged(emulator)) == (1, 4, 6)


def test_a_new_generation_is_paid_for(emulator):
    of("first").run(batch(prompts(3), reuse=True))
    assert of("second").run(batch(prompts(3), reuse=True, generation="2"))["credits"] == 6
    assert of("third").run(batch(prompts(3)))["credits"] == 6


def test_a_generation_that_failed_is_paid_for_by_the_next_attempt(emulator):
    emulator.fault("submit", "fail", times=3)
    first = of("first")
    with pytest.raises(Exception, match="3 failed"):
        first.run(batch(prompts(3), reuse=True))
    summary = of("second").run(batch(prompts(3), reuse=True))
    assert (summary["mirrored"], summary["credits"]) == (3, 6)
    assert spent() == Amounts(charged=12, refunded=6)
    attempt = first.retry()
    attempt.run_id = "first"
    assert attempt.run(batch(prompts(3), reuse=True))["credits"] == 0
    assert spent() == Amounts(charged=12, refunded=6, reused=6)


def test_another_batch_that_pays_when_a_lease_is_over_is_the_only_one(emulator, monkeypatch):
    """To look for the other requests of a chunk may take longer than a lease lasts."""
    monkeypatch.setattr("airflow_provider_gptimg.batch.run.PAUSE", 0.05)
    find, is_slow = Purchases.find, [True]

    def find_slowly(self, look):
        found = find(self, look)
        if is_slow and is_slow.pop():
            found._until = 0.0
            found.release()
            of("other").run(batch(prompts(1), reuse=True))
        return found

    monkeypatch.setattr(Purchases, "find", find_slowly)
    summary = of("first").run(batch(prompts(1), reuse=True))
    assert (summary["mirrored"], summary["reused"], charged(emulator)) == (1, 1, 2)


def test_an_attempt_that_fails_gives_its_leases_back(emulator, monkeypatch, s3):
    find, lock, found = Purchases.find, threading.Lock(), []

    def find_or_fail(self, look):
        with lock:
            if found:
                raise GptImgError("S3 is away")
            found.append(find(self, look))
            return found[0]

    monkeypatch.setattr(Purchases, "find", find_or_fail)
    with pytest.raises(GptImgError, match="away"):
        of("first").run(batch(prompts(2), reuse=True))
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="images", Prefix="journal/requests/")["Contents"]]
    assert [key.rpartition("/")[2] for key in sorted(keys)] == ["lease.1.json", "lease.1.over.json"]
    assert charged(emulator) == 0


def test_two_batches_at_once_pay_once(emulator, monkeypatch):
    monkeypatch.setattr(reuse_module, "PAUSE", 0.05)
    monkeypatch.setattr("airflow_provider_gptimg.batch.run.PAUSE", 0.05)
    emulator.latency = 0.1
    summaries: dict[str, Any] = {}

    def run(name: str, requests: list[str]) -> None:
        summaries[name] = of(name).run(batch(requests, reuse=True))

    many = prompts(30)
    threads = [threading.Thread(target=run, args=given) for given in (("a", many), ("b", many[::-1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert charged(emulator) == 60
    assert [summary["mirrored"] for summary in summaries.values()] == [30, 30]
    assert sum(summary["credits"] for summary in summaries.values()) == 60
    assert spent() == Amounts(charged=60, reused=60)
