# SPDX-License-Identifier: Apache-2.0
"""Users, credits and tasks over time, by a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import pytest

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.emulator.state import InsufficientCreditsError


@pytest.fixture
def emulator(clock) -> Iterator[Emulator]:
    with Emulator(durations=(50, 50), clock=clock) as emulator:
        yield emulator


def movements(emulator: Emulator) -> list[tuple]:
    return [(entry.kind, entry.credits, entry.task_id, entry.at) for entry in emulator.ledger]


def test_a_task_ends_at_its_moment_and_keeps_it(emulator, api, clock):
    task_id = api.submit(n=2).json()["data"]["task_id"]
    clock.now += 49.9
    assert emulator.task(task_id).status == "processing"
    clock.now += 1000
    task = emulator.task(task_id)
    assert (task.status, task.finished_at - task.created_at) == ("completed", pytest.approx(50))
    assert len(task.images) == 2


def test_a_failure_is_refunded_at_its_moment_though_nobody_asks(emulator, api, clock):
    emulator.fault("submit", "fail", error="out of paint")
    start = clock.now
    failing = api.submit(n=3).json()["data"]["task_id"]
    clock.now += 10
    fine = api.submit(n=1).json()["data"]["task_id"]
    assert emulator.balance() == 1000 - 6 - 2
    clock.now += 500
    assert emulator.balance() == 1000 - 2
    assert movements(emulator) == [
        ("charge", 6, failing, start),
        ("charge", 2, fine, start + 10),
        ("refund", 6, failing, start + 50),
    ]
    task = emulator.task(failing)
    assert (task.status, task.error, task.charged, task.refunded, task.images) == ("failed", "out of paint", 6, 6, [])


def test_a_refund_pays_for_the_next_submit(emulator, api, clock):
    emulator.set_balance(8)
    emulator.fault("submit", "fail")
    assert api.submit(n=4).status_code == 200
    assert api.submit(n=4).status_code == 402
    clock.now += 50
    assert api.submit(n=4).status_code == 200


def test_many_threads_never_spend_more_than_there_is(emulator, api, clock):
    emulator.set_balance(101)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda n: api.submit(n=n % 4 + 1).status_code, range(160)))
    accepted = [task.charged for task in emulator.tasks]
    assert set(answers) == {200, 402}
    assert answers.count(200) == len(accepted) == len(emulator.ledger)
    assert emulator.balance() == 101 - sum(accepted) == 1


def test_charges_and_refunds_add_up_when_they_come_at_once(until):
    with Emulator(durations=(0, 0.01), fail_rate=0.5, credits=60, seed=1) as emulator:
        state = emulator._state

        def submit_and_poll(_: int) -> None:
            with suppress(InsufficientCreditsError):
                state.poll("default", state.submit("default", prompt="x", n=2).task_id)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(submit_and_poll, range(400)))
        until(lambda: all(task.status != "processing" for task in emulator.tasks))
        charged = sum(task.charged for task in emulator.tasks)
        refunded = sum(task.refunded for task in emulator.tasks)
        assert emulator.balance() == 60 - charged + refunded >= 0
        assert sum(entry.credits for entry in emulator.ledger if entry.kind == "refund") == refunded > 0


def test_keys_of_one_user_share_the_balance(emulator):
    emulator.add_key("other-1", credits=10)
    emulator.add_key("other-2", credits=99)
    emulator.add_key("mine-too", credits=5, user="default")
    assert (emulator.balance("other"), emulator.balance()) == (10, 1000)
    for unknown in (emulator.balance, lambda user: emulator.set_balance(1, user)):
        with pytest.raises(KeyError):
            unknown("nobody")
    with pytest.raises(KeyError):
        emulator.revoke_key("never-added")


def test_added_tasks_are_finished_at_once_and_free(emulator, api):
    done, broken = emulator.add_task("a dog", n=3), emulator.add_task(status="failed")
    assert len(api.data(done)["images"]) == 3
    assert api.data(broken)["status"] == "failed"
    assert emulator.task(broken).error["code"] == "GENERATION_FAILED"
    assert (emulator.balance(), emulator.ledger) == (1000, [])


def test_an_added_task_can_end_at_a_poll(emulator, api):
    done, broken = emulator.add_task(polls=3), emulator.add_task(polls=1, error="no")
    assert [api.data(done)["status"] for _ in range(4)] == ["processing", "processing", "completed", "completed"]
    assert api.data(broken)["status"] == "failed"
    assert (emulator.task(done).polls, len(emulator.task(done).poll_times)) == (4, 4)


def test_an_added_task_can_end_by_the_clock(emulator, api, clock):
    done = emulator.add_task(status="processing", duration=5)
    clock.now += 4
    assert api.data(done)["status"] == "processing"
    clock.now += 1
    assert api.data(done)["status"] == "completed"


def test_an_added_task_can_wait_to_be_finished(emulator, api, clock):
    first, second = emulator.add_task(status="processing"), emulator.add_task(status="processing", error="why")
    second_wait = emulator.add_task(status="processing")
    clock.now += 10_000
    assert api.data(first)["status"] == "processing"
    assert (api.data(second)["status"], api.data(second)["error"]) == ("processing", None)
    emulator.finish(first)
    emulator.finish(second_wait, "failed", error={"code": "X"})
    assert api.data(first)["status"] == "completed"
    assert api.data(second_wait)["error"] == {"code": "X"}
    emulator.finish(second, "failed")
    assert api.data(second)["error"] == "why"
    with pytest.raises(ValueError, match="completed already"):
        emulator.finish(first)
    with pytest.raises(KeyError):
        emulator.finish("gpt-image-2-nothing")


def test_finishing_a_paid_task_as_failed_refunds_it_once(emulator, api, clock):
    task_id = api.submit(n=2).json()["data"]["task_id"]
    emulator.finish(task_id, "failed")
    clock.now += 100
    assert [kind for kind, *_ in movements(emulator)] == ["charge", "refund"]
    assert emulator.balance() == 1000


def test_an_added_task_may_have_been_made_long_ago(emulator, api):
    moment = datetime(2026, 4, 22, 0, 12, 3, 456000, UTC)
    for created_at in (moment, moment.timestamp()):
        task_id = emulator.add_task(status="processing", created_at=created_at)
        assert api.data(task_id)["created_at"] == "2026-04-22T00:12:03.456Z"


def test_an_added_task_may_belong_to_someone_else(emulator, api):
    emulator.add_key("k", user="other")
    task_id = emulator.add_task(user="other")
    assert api.poll(task_id).status_code == 404
    with pytest.raises(KeyError):
        emulator.add_task(user="nobody")


@pytest.mark.parametrize(
    "arguments",
    [{"status": ""}, {"polls": 0}, {"polls": 1, "duration": 1}, {"formats": ()}, {"formats": ("gif",)}],
)
def test_a_task_that_cannot_be_is_refused(emulator, arguments):
    with pytest.raises(ValueError, match=r"must be|either"):
        emulator.add_task(**arguments)
    assert emulator.tasks == []


@pytest.mark.parametrize(
    "arguments",
    [{"durations": (2, 1)}, {"durations": (-1, 1)}, {"speed": 0}, {"fail_rate": 1.1}, {"rate_limit_rate": -0.1}],
)
def test_an_emulator_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Emulator(**arguments)


def test_speed_divides_durations(clock):
    emulator = Emulator(durations=(50, 50), speed=10, clock=clock)
    task_id = emulator.add_task(duration=20)
    clock.now += 2
    assert emulator.task(task_id).status == "completed"
    submitted = emulator._state.submit("default", prompt="x").task_id
    clock.now += 5
    assert emulator.task(submitted).status == "completed"


def story(emulator: Emulator, clock) -> list[tuple]:
    """Submit some tasks, and tell all that chance had a say in."""
    for _ in range(20):
        emulator._state.submit("default", prompt="x")
    clock.now += 100
    return [(task.task_id, task.status, task.finished_at, task.pictures[0].name) for task in emulator.tasks]


def test_a_seed_makes_it_repeatable_and_reset_starts_anew(clock):
    begin = clock.now
    emulator = Emulator(seed=7, fail_rate=0.3, clock=clock)
    first = story(emulator, clock)
    assert {status for _, status, _, _ in first} == {"completed", "failed"}
    for again in (emulator, Emulator(seed=7, fail_rate=0.3, clock=clock)):
        again.reset()
        clock.now = begin
        assert story(again, clock) == first
    clock.now = begin
    assert story(Emulator(seed=8, fail_rate=0.3, clock=clock), clock) != first


def test_a_seed_reaches_the_ids_of_requests():
    with Emulator(seed=7) as emulator:
        ids = []
        for _ in range(2):
            ids.append([httpx.get(emulator.base_url).headers["x-request-id"] for _ in range(2)])
            emulator.reset()
        assert ids[0] == ids[1]
        assert ids[0][0] != ids[0][1]


def test_reset_forgets_everything(emulator, api, until):
    emulator.add_key("k", user="other")
    emulator.revoke_key(emulator.api_key)
    emulator.latency = emulator.image_latency = 0.01
    emulator.fault("submit", 503, times=None)
    assert api.submit().status_code == 503
    emulator.add_task()
    emulator.reset()
    assert (emulator.tasks, emulator.ledger, emulator.calls) == ([], [], [])
    assert (emulator.latency, emulator.image_latency) == (0, 0)
    assert api.submit().status_code == 200
    assert emulator.balance() == 998
    with pytest.raises(KeyError):
        emulator.balance("other")


def test_snapshots_stay_as_they_were(emulator, api):
    task_id = emulator.add_task(polls=2)
    before = emulator.task(task_id)
    first = emulator._state.poll("default", task_id)
    api.data(task_id)
    assert (before.status, before.polls, before.poll_times, before.images) == ("processing", 0, [], [])
    assert (first.status, first.polls) == ("processing", 1)


def test_a_task_may_end_in_a_status_that_nobody_documents(emulator, api):
    made = emulator.add_task(status="canceled")
    assert (api.data(made)["status"], api.data(made)["error"], api.data(made)["images"]) == ("canceled", None, [])
    submitted = emulator.add_task(status="processing")
    emulator.finish(submitted, "expired")
    assert api.data(submitted)["status"] == "expired"
