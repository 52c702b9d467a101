# SPDX-License-Identifier: Apache-2.0
"""A submission is paid for once: what an attempt does with the journal that earlier ones left behind."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from attempts import Instance, Killed, StateStore, fails_at_once, may_be_retried
from journals import KINDS as JOURNALS, use_s3, use_variables
from s3_proxy import BEHAVIOURS, proxied_s3

from airflow_provider_gptimg.airflow_compat import HAS_TASK_STATE_STORE
from airflow_provider_gptimg.exceptions import (
    GptImgInsufficientCreditsError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.journal import stores
from airflow_provider_gptimg.journal.attempt import Attempt, NotSentError
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator

KINDS = {
    "submit": (GptImgSubmitOperator, {}),
    "generate, held": (GptImgGenerateOperator, {"deferrable": False}),
    "generate, deferred": (GptImgGenerateOperator, {"deferrable": True}),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def paid(request):
    """Make an operator that submits, of each kind."""
    operator, own = request.param

    def make(**arguments):
        return operator(**{"task_id": "paid", "prompt": "a cat"} | own | arguments)

    return make


def charges(emulator) -> list[int]:
    return [entry.credits for entry in emulator.ledger if entry.kind == "charge"]


def id_of(result) -> str:
    return result if isinstance(result, str) else result["task_id"]


@pytest.fixture(params=JOURNALS)
def journal(request, monkeypatch) -> Callable[[], dict[str, Any]]:
    """What the journal holds, in each of the places where it can live."""
    if request.param == "S3":
        s3 = request.getfixturevalue("s3")
        keys = use_s3(monkeypatch, s3)
        return lambda: {key: s3.get_object(Bucket="images", Key=key)["Body"].read().decode() for key in keys()}
    if request.param == "Variables":
        variables = use_variables(monkeypatch)
        return lambda: variables.values
    store = request.getfixturevalue("state")
    return lambda: store.records


@pytest.fixture
def state() -> StateStore:
    return StateStore()


@pytest.fixture
def instance(journal, state) -> Instance:
    return Instance(state)


def drop(instance: Instance, journal) -> None:
    """Do what the messages say a person should do to have all forgotten."""
    store = stores.open_store(instance.context)
    for name in {key.removesuffix(".json").rpartition("/")[2].rpartition(":")[2] for key in journal()}:
        store.delete(name)


class TestWithAnAcceptedSubmission:
    def test_a_retry_takes_it_up(self, emulator, instance, paid):
        instance.kill(paid(n=2))
        result = instance.attempt(paid(n=2))
        assert id_of(result) == emulator.tasks[0].task_id
        assert charges(emulator) == [4]
        assert instance.xcoms["credits"] == 0

    def test_a_clear_before_delivery_takes_it_up(self, emulator, instance, paid):
        instance.kill(paid())
        instance.clear()
        instance.attempt(paid())
        assert charges(emulator) == [2]

    def test_a_retry_after_delivery_takes_it_up(self, emulator, instance, paid):
        """Such as after a worker that died when all was done, and before Airflow knew."""
        if stores.open_store(instance.context).forgets:
            pytest.skip("Variables are deleted once Airflow has recorded the success, and then no retry follows")
        first = instance.attempt(paid())
        second = instance.attempt(paid())
        assert id_of(second) == id_of(first)
        assert charges(emulator) == [2]

    def test_a_cleared_success_means_make_new_ones(self, emulator, instance, paid):
        first = instance.attempt(paid())
        instance.clear()
        second = instance.attempt(paid())
        assert id_of(second) != id_of(first)
        assert charges(emulator) == [2, 2]
        assert instance.xcoms["credits"] == 2

    def test_new_ones_are_paid_for_once_too(self, emulator, instance, paid):
        instance.attempt(paid())
        instance.clear()
        instance.kill(paid())
        instance.attempt(paid())
        instance.clear()
        instance.attempt(paid())
        assert charges(emulator) == [2, 2, 2]

    @pytest.mark.parametrize(
        "change",
        [
            {"prompt": "a dog"},
            {"n": 2},
            {"aspect_ratio": "1:1"},
            {"reference_images": ["https://example.com/a.png"]},
            {"extra_body": {"seed": 1}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_changed_request_is_submitted_and_said(self, emulator, instance, log, change):
        instance.kill(GptImgSubmitOperator(task_id="paid", prompt="a cat"))
        log()
        instance.attempt(GptImgSubmitOperator(**{"task_id": "paid", "prompt": "a cat"} | change))
        assert len(emulator.tasks) == 2
        said = log()
        assert "changed" in said
        assert emulator.tasks[0].task_id in said

    @pytest.mark.parametrize("n", ["1", " 1"])
    def test_the_same_request_written_otherwise_is_not_changed(self, emulator, instance, n):
        instance.kill(GptImgSubmitOperator(task_id="paid", prompt="a cat"))
        instance.attempt(GptImgSubmitOperator(task_id="paid", prompt="a cat", n=n, reference_images=[]))
        assert charges(emulator) == [2]

    def test_a_reference_in_s3_is_not_changed_though_its_presigned_url_is(self, emulator, instance, paid, s3):
        s3.put_object(Bucket="images", Key="sketch.png", Body=b"")
        for attempt in (instance.kill, instance.attempt):
            attempt(paid(reference_images=["s3://images/sketch.png"]))
        assert charges(emulator) == [2]

    def test_another_connection_is_a_changed_request(self, emulator, instance, paid, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", os.environ["AIRFLOW_CONN_GPTIMG_DEFAULT"])
        instance.kill(paid())
        instance.attempt(paid(gptimg_conn_id="other"))
        assert len(emulator.tasks) == 2

    def test_a_rotated_key_is_not(self, emulator, instance, paid, quick):
        instance.kill(paid())
        emulator.add_key("rotated-key", user="default")
        quick(password="rotated-key")
        emulator.revoke_key(emulator.api_key)
        instance.attempt(paid())
        assert charges(emulator) == [2]

    def test_a_refunded_failure_is_submitted_anew(self, emulator, instance, paid, clock):
        clock.stop()
        instance.kill(paid())
        emulator.finish(emulator.tasks[0].task_id, status="failed")
        clock.go()
        instance.attempt(paid())
        assert [entry.kind for entry in emulator.ledger] == ["charge", "refund", "charge"]
        assert instance.xcoms["credits"] == 2

    def test_one_that_is_unknown_now_says_how_to_drop_the_journal(self, emulator, instance, journal, paid, quick):
        instance.kill(paid())
        task_id = instance.submissions[0].task_id
        emulator.add_key("other-key", user="other")
        quick(password="other-key")
        with fails_at_once(GptImgTaskNotFoundError) as caught:
            instance.attempt(paid())
        for told in (task_id, stores.open_store(instance.context).way_to_drop, "clear the task"):
            assert told in str(caught.value)
        assert charges(emulator) == [2]

        drop(instance, journal)
        instance.attempt(paid())
        assert [task.user for task in emulator.tasks] == ["default", "other"]

    def test_a_refused_change_leaves_the_record_as_it_was(self, emulator, instance, paid):
        instance.kill(paid())
        emulator.set_balance(0)
        with fails_at_once(GptImgInsufficientCreditsError):
            instance.attempt(paid(prompt="a dog"))
        instance.attempt(paid())
        assert charges(emulator) == [2]

    def test_an_api_that_is_down_leaves_it_alone(self, emulator, instance, paid, hasty):
        instance.kill(paid())
        emulator.fault("poll", 503, times=None)
        with may_be_retried(GptImgServerError):
            instance.attempt(paid())
        emulator.clear_faults()
        instance.attempt(paid())
        assert charges(emulator) == [2]


class TestWithAnIntentOnly:
    """An earlier attempt sent a submit, and ended before it knew what came of it."""

    @pytest.fixture(params=["accepted", "not accepted"])
    def lost(self, request, emulator, instance, paid):
        """Lose the answer to a submit that was accepted, or never seen, and end the worker just then."""
        emulator.fault("submit", "lost_after" if request.param == "accepted" else "lost_before")
        with fails_at_once(GptImgSubmissionUnknownError):
            instance.attempt(paid(n=3))
        return len(emulator.tasks)

    def test_says_what_may_have_been_charged_and_how_to_go_on(self, emulator, instance, paid, lost):
        with fails_at_once(GptImgSubmissionUnknownError) as caught:
            instance.attempt(paid(n=3))
        for told in (
            "Attempt 1 sent",
            instance.submissions[0].sent,
            "6 credits",
            "log of attempt 1 for 'Submitted image task'",
            "transaction log",
            "on_unknown_submission='resubmit'",
            stores.open_store(instance.context).way_to_drop,
        ):
            assert told in str(caught.value)

    @pytest.mark.parametrize("change", [{}, {"prompt": "a dog"}, {"n": 1}], ids=["same", "other prompt", "other n"])
    def test_stops_again_whatever_the_request_and_after_a_clear(self, emulator, instance, paid, lost, change):
        for _ in range(2):
            with fails_at_once(GptImgSubmissionUnknownError):
                instance.attempt(paid(**{"n": 3} | change))
            instance.clear()
        assert len(emulator.tasks) == lost

    def test_submits_again_if_the_task_says_so(self, emulator, instance, paid, lost):
        instance.attempt(paid(n=3, on_unknown_submission="resubmit"))
        assert len(emulator.tasks) == lost + 1
        assert instance.xcoms["credits"] == 6

    def test_submits_again_if_the_connection_says_so(self, emulator, instance, paid, lost, quick):
        quick(on_unknown_submission="resubmit")
        instance.attempt(paid(n=3))
        assert len(emulator.tasks) == lost + 1

    def test_the_task_wins_over_the_connection(self, emulator, instance, paid, lost, quick):
        quick(on_unknown_submission="resubmit")
        with fails_at_once(GptImgSubmissionUnknownError):
            instance.attempt(paid(n=3, on_unknown_submission="fail"))
        assert len(emulator.tasks) == lost

    def test_submits_again_once_a_person_deleted_the_journal(self, emulator, instance, journal, paid, lost):
        drop(instance, journal)
        instance.attempt(paid(n=3))
        assert len(emulator.tasks) == lost + 1


def test_resubmit_leaves_the_lost_submit_to_the_next_attempt(emulator, instance, paid):
    emulator.fault("submit", "lost_after")
    with may_be_retried(GptImgSubmissionUnknownError) as caught:
        instance.attempt(paid(on_unknown_submission="resubmit"))
    assert "next attempt submits again" in str(caught.value)
    assert len(emulator.tasks) == 1
    instance.attempt(paid(on_unknown_submission="resubmit"))
    assert len(emulator.tasks) == 2


@pytest.mark.parametrize("moment", ["before the POST", "after the POST"])
def test_a_worker_killed_around_the_post_leaves_an_intent(emulator, instance, paid, monkeypatch, moment):
    """It is written before the first byte goes out, and its outcome only when the answer is there."""
    die = lambda *ignored, **more: (_ for _ in ()).throw(Killed)  # noqa: E731
    with monkeypatch.context() as patch:
        if moment == "before the POST":
            patch.setattr("airflow_provider_gptimg.hooks.gptimg.exchange", die)
        else:
            patch.setattr("airflow_provider_gptimg.journal.attempt.Attempt.settle", die)
        with pytest.raises(Killed):
            instance.attempt(paid())
    assert len(emulator.tasks) == (0 if moment == "before the POST" else 1)
    assert [known.is_unknown for known in instance.submissions] == [True]


def test_what_was_refused_may_be_submitted_again(emulator, instance, paid):
    emulator.set_balance(1)
    with fails_at_once(GptImgInsufficientCreditsError):
        instance.attempt(paid())
    assert [known.refused for known in instance.submissions] == ["INSUFFICIENT_CREDITS"]
    emulator.set_balance(2)
    instance.attempt(paid())
    assert charges(emulator) == [2]


def test_the_journal_holds_no_secret(emulator, instance, journal, paid):
    emulator.set_balance(1)
    with fails_at_once(GptImgInsufficientCreditsError):
        instance.attempt(paid())
    emulator.set_balance(9)
    with_all = repr(journal())
    instance.kill(paid())
    with_all += repr(journal())
    assert emulator.api_key not in with_all
    assert "a cat" not in with_all


def test_an_attempt_that_airflow_has_begun_twice_takes_up_its_own(emulator, instance, paid):
    """Such as a worker that a queue delivers a task to again."""
    instance.kill(paid())
    instance.try_number = 0
    instance.attempt(paid())
    assert charges(emulator) == [2]


def test_what_is_delivered_needs_no_variables(emulator, instance, journal, paid, request):
    instance.kill(paid())
    instance.attempt(paid())
    kind = request.node.callspec.params["journal"]
    assert (journal() == {}) is (kind == "Variables")
    instance.clear()
    instance.attempt(paid())
    assert charges(emulator) == [2, 2]


@pytest.mark.parametrize("garbage", ["text", [], {"version": 99}, {"task_id": 7, "max_tries": "x"}, 0], ids=repr)
def test_what_cannot_be_read_counts_as_unknown(emulator, paid, garbage):
    instance = Instance(StateStore())
    instance.store.records["gptimg:1.1.intent"] = garbage
    with fails_at_once(GptImgSubmissionUnknownError):
        instance.attempt(paid())
    assert emulator.calls == []


@pytest.mark.parametrize("garbage", ["", "null", "[" * 200_000], ids=["empty", "null", "deep"])
def test_an_object_or_variable_that_cannot_be_read_counts_as_unknown(
    emulator, instance, journal, paid, request, monkeypatch, garbage
):
    kind = request.node.callspec.params["journal"]
    instance.kill(paid())
    intent = next(key for key in journal() if "1.1.intent" in key)
    if kind == "S3":
        request.getfixturevalue("s3").put_object(Bucket="images", Key=intent, Body=garbage)
    elif kind == "Variables":
        journal()[intent] = garbage
    else:
        pytest.skip("Airflow itself reads what is in its state store")
    with fails_at_once(GptImgSubmissionUnknownError) as caught:
        instance.attempt(paid())
    assert "Attempt 1 sent a submit perhaps" in str(caught.value)
    assert "1970" not in str(caught.value)
    assert charges(emulator) == [2]


@pytest.mark.parametrize("behaviour", sorted(BEHAVIOURS.keys() - {"no-list", "no-checksums"}))
def test_a_store_that_speaks_s3_its_own_way_keeps_the_journal(emulator, s3, monkeypatch, behaviour):
    use_s3(monkeypatch, s3)
    instance, arguments = Instance(), {"task_id": "paid", "prompt": "a cat"}
    with proxied_s3() as proxy:
        proxy.behave(behaviour)
        instance.kill(GptImgGenerateOperator(**arguments))
        for _ in range(2):
            instance.try_number = 1
            instance.attempt(GptImgGenerateOperator(**arguments))
        instance.clear()
        instance.attempt(GptImgGenerateOperator(**arguments, reuse=True))
    assert charges(emulator) == [2]


def test_the_journal_has_an_aws_connection_of_its_own(emulator, s3, monkeypatch):
    keys = use_s3(monkeypatch, s3)
    monkeypatch.setenv("AIRFLOW_CONN_JOURNAL", os.environ["AIRFLOW_CONN_AWS_DEFAULT"])
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL_AWS_CONN_ID", "journal")
    instance = Instance()
    for attempt in (instance.kill, instance.attempt):
        attempt(GptImgSubmitOperator(task_id="paid", prompt="a cat"))
    assert charges(emulator) == [2]
    assert keys()


def posts(emulator) -> int:
    return sum(call.method == "POST" for call in emulator.calls)


def test_a_task_that_is_stopped_before_it_has_read_its_journal_sends_nothing(emulator, instance, paid):
    operator = paid()
    operator.on_kill()
    with pytest.raises(NotSentError, match="stopped"):
        instance.attempt(operator)
    assert posts(emulator) == 0
    instance.attempt(paid())
    assert posts(emulator) == 1


@pytest.mark.parametrize("end", ["stopped", "replaced"])
def test_a_task_that_ends_while_its_connection_is_made_sends_nothing(emulator, instance, paid, monkeypatch, end):
    """To connect may take as long as a call may."""
    operator, connect, now = paid(), socket.create_connection, time.time

    def end_now(*given, **more):
        if end == "stopped":
            operator.on_kill()
        else:
            instance.try_number += 1
            Attempt.of(instance.context, operator.log).announce()
            monkeypatch.setattr(time, "time", lambda: now() + 2)
        return connect(*given, **more)

    instance.try_number = 1
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", end_now)
        with pytest.raises(NotSentError):
            operator.execute(instance.context)
    assert posts(emulator) == 0
    assert [known.refused for known in instance.submissions] == ["not sent"]


@pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="Airflow 3.3 and newer have a task state store")
def test_the_journal_never_expires(emulator, paid):
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    instance = Instance(StateStore())
    instance.attempt(paid())
    assert set(instance.store.retentions.values()) == {NEVER_EXPIRE}


@pytest.mark.parametrize("setting", ["auto", "none"])
def test_without_a_journal_a_retry_submits_anew_and_the_log_says_so(emulator, paid, log, monkeypatch, setting):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", setting)
    instance = Instance(store=None if setting == "auto" else StateStore())
    instance.attempt(paid())
    assert "pays again" in log()
    instance.attempt(paid())
    assert charges(emulator) == [2, 2]


def test_a_setting_that_is_not_understood_sends_nothing(emulator, paid, monkeypatch):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "redis://somewhere")
    with fails_at_once(GptImgRequestError) as caught:
        Instance(StateStore()).attempt(paid())
    assert "journal = 'redis://somewhere'" in str(caught.value)
    assert emulator.calls == []


class TestGenerate:
    """What only a task that waits can meet."""

    @pytest.fixture
    def generate(self, deferrable):
        def make(**arguments):
            return GptImgGenerateOperator(**{"task_id": "g", "prompt": "a cat", "deferrable": deferrable} | arguments)

        return make

    def test_a_time_out_leaves_the_image_task_to_the_next_attempt(self, emulator, instance, generate, clock):
        clock.stop()
        with may_be_retried(GptImgTimeoutError) as caught:
            instance.attempt(generate(timeout=0.05))
        (task,) = emulator.tasks
        assert task.task_id in str(caught.value)
        clock.go()
        result = instance.attempt(generate(timeout=20))
        assert result["task_id"] == task.task_id
        assert charges(emulator) == [2]

    def test_a_clear_after_a_time_out_takes_it_up(self, emulator, instance, generate, clock):
        clock.stop()
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(generate(timeout=0.05))
        instance.clear()
        clock.go()
        instance.attempt(generate(timeout=20))
        assert charges(emulator) == [2]

    def test_a_failed_generation_is_submitted_anew_by_the_next_attempt(self, emulator, instance, generate):
        emulator.fault("submit", "fail", error={"code": "OVERLOADED", "message": "no cats today"})
        with may_be_retried(GptImgTaskFailedError) as caught:
            instance.attempt(generate())
        assert "no cats today" in str(caught.value)
        assert caught.value.code == "OVERLOADED"
        assert instance.xcoms["credits"] == 2
        instance.attempt(generate())
        assert [entry.kind for entry in emulator.ledger] == ["charge", "refund", "charge"]

    def test_a_time_out_is_no_delivery(self, emulator, instance, generate, clock):
        clock.stop()
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(generate(timeout=0.05))
        assert [known.delivered for known in instance.submissions] == [None]
