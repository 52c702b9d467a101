# SPDX-License-Identifier: Apache-2.0
"""The submission record: each cell of its decision table, and each of its outcomes against the emulator."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from state_store import StateStore, submission

from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskNotFoundError,
)
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.submission import RECORD_KEY, Decision, Submission, SubmissionRecord, decide

INTENT = SubmissionRecord("same", credits=2, submitted_at=1_776_816_723.0, max_tries=3)
ACCEPTED = replace(INTENT, task_id="gpt-image-2-x")
DELIVERED = replace(ACCEPTED, delivered_max_tries=3)
# Submitted at one clear, delivered at a later one.
DELIVERED_LATER = replace(ACCEPTED, delivered_max_tries=5)


@pytest.mark.parametrize("on_unknown", ["fail", "resubmit"])
@pytest.mark.parametrize(
    ("record", "fingerprint", "max_tries", "decision"),
    [
        pytest.param(None, "same", 3, Decision.SUBMIT, id="none"),
        pytest.param(ACCEPTED, "same", 3, Decision.TAKE_UP, id="accepted-retry"),
        pytest.param(ACCEPTED, "same", 4, Decision.TAKE_UP, id="accepted-cleared"),
        pytest.param(ACCEPTED, "same", 2, Decision.TAKE_UP, id="accepted-fewer-retries"),
        pytest.param(DELIVERED, "same", 3, Decision.TAKE_UP, id="delivered-retry"),
        pytest.param(DELIVERED, "same", 2, Decision.TAKE_UP, id="delivered-fewer-retries"),
        pytest.param(DELIVERED, "same", 4, Decision.SUBMIT_CLEARED, id="delivered-cleared"),
        pytest.param(DELIVERED_LATER, "same", 5, Decision.TAKE_UP, id="delivered-later-retry"),
        pytest.param(DELIVERED_LATER, "same", 6, Decision.SUBMIT_CLEARED, id="delivered-later-cleared"),
        pytest.param(ACCEPTED, "other", 3, Decision.SUBMIT_CHANGED, id="accepted-changed"),
        pytest.param(ACCEPTED, "other", 4, Decision.SUBMIT_CHANGED, id="accepted-changed-cleared"),
        pytest.param(DELIVERED, "other", 3, Decision.SUBMIT_CHANGED, id="delivered-changed"),
        pytest.param(DELIVERED, "other", 4, Decision.SUBMIT_CHANGED, id="delivered-changed-cleared"),
    ],
)
def test_a_known_outcome_decides_whatever_the_policy(record, fingerprint, max_tries, decision, on_unknown):
    assert decide(record, fingerprint, max_tries, on_unknown) is decision


@pytest.mark.parametrize("max_tries", [3, 4], ids=["retry", "cleared"])
@pytest.mark.parametrize("fingerprint", ["same", "other"])
@pytest.mark.parametrize(("on_unknown", "decision"), [("fail", Decision.STOP), ("resubmit", Decision.SUBMIT_UNKNOWN)])
def test_the_policy_decides_an_unknown_outcome(on_unknown, decision, fingerprint, max_tries):
    assert decide(INTENT, fingerprint, max_tries, on_unknown) is decision


records = st.builds(
    SubmissionRecord,
    fingerprint=st.text(),
    credits=st.integers(2, 8),
    submitted_at=st.floats(0, 2e9),
    max_tries=st.integers(0, 99),
    task_id=st.none() | st.text(min_size=1),
    delivered_max_tries=st.none() | st.integers(0, 99),
)


@given(records)
def test_a_record_comes_back_as_it_was_written(record):
    assert SubmissionRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_record_of_the_first_release_can_be_read():
    """Records outlive an upgrade."""
    written = {
        "version": 1,
        "fingerprint": "f",
        "credits": 4,
        "submitted_at": 1_776_816_723.456,
        "max_tries": 2,
        "task_id": "gpt-image-2-x",
        "delivered_max_tries": 2,
    }
    assert SubmissionRecord.from_json(written) == SubmissionRecord("f", 4, 1_776_816_723.456, 2, "gpt-image-2-x", 2)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
nearly_records = json_values | st.fixed_dictionaries(
    {},
    optional={
        name: value | json_values
        for name, value in {
            "version": st.integers(0, 9),
            "fingerprint": st.just("same"),
            "credits": st.integers(),
            "submitted_at": st.floats(),
            "max_tries": st.integers(),
            "task_id": st.just("gpt-image-2-x"),
            "delivered_max_tries": st.integers(),
        }.items()
    },
)


@given(nearly_records)
def test_what_cannot_be_read_counts_as_an_unknown_outcome(value):
    """It never counts as nothing, which would submit without asking."""
    store = StateStore()
    store.values[RECORD_KEY] = json.dumps(value if value is not None else {})
    record = store.record
    assert record is not None
    assert decide(record, "same", 0, "fail") is not Decision.SUBMIT
    if not isinstance(value, dict) or not {"fingerprint", "task_id"} <= set(value):
        assert decide(record, "same", 0, "fail") is Decision.STOP
    if record.task_id is None:
        with pytest.raises(GptImgSubmissionUnknownError):
            submission(store).obtain(GptImgHook("nowhere"), ImageRequest.check("a cat"), "fail", None)


@pytest.fixture
def hook(emulator) -> GptImgHook:
    return GptImgHook()


@pytest.fixture
def store() -> StateStore:
    return StateStore()


REQUEST = ImageRequest.check("a cat", n=2)
CHANGED = ImageRequest.check("a dog", n=2)


def obtain(hook, store, *, request=REQUEST, max_tries=0, on_unknown="fail"):
    return submission(store, max_tries).obtain(hook, request, on_unknown, None)


def submits(emulator) -> int:
    return sum(call.method == "POST" for call in emulator.calls)


class TestFirstAttempt:
    def test_submits_between_two_writes(self, emulator, hook, store):
        before = time.time()
        accepted = obtain(hook, store, max_tries=3)
        assert (accepted.charged, accepted.task.task_id) == (4, emulator.tasks[0].task_id)
        intent, done = (SubmissionRecord.from_json(value) for value in store.writes)
        assert intent == replace(done, task_id=None)
        assert done == SubmissionRecord(
            REQUEST.fingerprint("gptimg_default"), 4, accepted.submitted_at, 3, accepted.task.task_id, None
        )
        assert before <= done.submitted_at <= time.time()

    def test_the_intent_stands_before_the_post_goes_out(self, emulator, hook, store):
        stood = []
        send = hook.submit_prepared
        hook.submit_prepared = lambda *given, **more: stood.append(store.record) or send(*given, **more)
        obtain(hook, store)
        assert [record.task_id for record in stood] == [None]

    def test_records_never_expire(self, hook, store):
        """An expired one would let a retry pay again."""
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        obtain(hook, store)
        submission(store).deliver()
        assert store.retentions == [NEVER_EXPIRE] * 3

    def test_the_record_holds_neither_key_nor_prompt(self, emulator, hook, store):
        obtain(hook, store)
        assert emulator.api_key not in json.dumps(store.writes)
        assert "cat" not in json.dumps(store.writes)

    @pytest.mark.parametrize(
        ("status", "error_type"),
        [(400, GptImgRequestError), (402, GptImgInsufficientCreditsError), (422, GptImgRequestError)],
    )
    def test_a_refusal_leaves_no_record(self, emulator, hook, store, status, error_type):
        emulator.fault("submit", status)
        with pytest.raises(error_type):
            obtain(hook, store)
        assert store.values == {}
        assert obtain(hook, store).charged == 4

    def test_a_pause_after_a_refusal_has_no_record_and_the_next_post_has_one(self, emulator, hook, store, monkeypatch):
        emulator.fault("submit", 429, retry_after=0.1)
        in_pauses, sleep = [], time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: in_pauses.append(store.record) or sleep(seconds))
        accepted = obtain(hook, store)
        assert in_pauses == [None]
        first, second, done = (SubmissionRecord.from_json(value) for value in store.writes)
        assert (first.task_id, second.task_id, done.task_id) == (None, None, accepted.task.task_id)
        assert first.submitted_at + 0.1 <= second.submitted_at == accepted.submitted_at

    def test_a_pause_keeps_what_an_earlier_submission_left(self, emulator, hook, store, monkeypatch):
        obtain(hook, store)
        earlier = store.record
        emulator.fault("submit", 429, retry_after=0.1)
        in_pauses, sleep = [], time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: in_pauses.append(store.record) or sleep(seconds))
        assert obtain(hook, store, request=CHANGED).charged == 4
        assert in_pauses == [earlier]

    def test_a_rate_limit_beyond_patience_leaves_no_record(self, emulator, hook, store):
        emulator.fault("submit", 429, retry_after=3600)
        with pytest.raises(GptImgRateLimitError) as error:
            obtain(hook, store)
        assert error.value.retry_after == 3600
        assert store.values == {}

    def test_a_host_that_cannot_be_reached_leaves_no_record(self, hook, store, connect, emulator, monkeypatch):
        monkeypatch.setattr("airflow_provider_gptimg.hooks.gptimg.time.sleep", lambda seconds: None)
        connect(emulator, host="http://127.0.0.1:1")
        with pytest.raises(GptImgServerError):
            obtain(hook, store)
        assert store.values == {}

    def test_what_cannot_be_prepared_writes_nothing(self, hook, store):
        request = ImageRequest.check("a cat", extra_body={"n": 4})
        with pytest.raises(GptImgRequestError):
            obtain(hook, store, request=request)
        assert store.writes == []

    @pytest.mark.parametrize(
        ("fault", "options"),
        [("lost_before", {}), ("lost_after", {}), ("cut_after", {}), ("html", {}), ("empty", {}), ("redirect", {})],
    )
    def test_an_unknown_outcome_leaves_the_intent(self, emulator, hook, store, fault, options):
        emulator.fault("submit", fault, **options)
        with pytest.raises(GptImgSubmissionUnknownError) as error:
            obtain(hook, store)
        assert store.record.task_id is None
        assert "4 credits" in str(error.value)
        assert "transaction log" in str(error.value)
        assert "on_unknown_submission='resubmit'" in str(error.value)
        assert RECORD_KEY in str(error.value)
        assert submits(emulator) == 1

    def test_an_unknown_outcome_that_will_be_submitted_again_says_so(self, emulator, hook, store):
        emulator.fault("submit", "lost_after")
        with pytest.raises(GptImgSubmissionUnknownError, match="next attempt submits again"):
            obtain(hook, store, on_unknown="resubmit")


class TestLaterAttempt:
    def test_takes_up_the_same_task(self, emulator, hook, store):
        first = obtain(hook, store)
        again = obtain(hook, store)
        assert (again.task.task_id, again.charged) == (first.task.task_id, 0)
        assert again.submitted_at == first.submitted_at
        assert submits(emulator) == 1

    def test_takes_it_up_after_a_clear_too(self, emulator, hook, store):
        first = obtain(hook, store, max_tries=0)
        assert obtain(hook, store, max_tries=5).task.task_id == first.task.task_id
        assert submits(emulator) == 1

    def test_takes_up_what_was_delivered_if_nobody_cleared_it(self, emulator, hook, store):
        first = obtain(hook, store, max_tries=2)
        submission(store, 2).deliver()
        assert obtain(hook, store, max_tries=2).task.task_id == first.task.task_id

    def test_makes_new_images_when_a_delivered_task_was_cleared(self, emulator, hook, store):
        first = obtain(hook, store, max_tries=2)
        submission(store, 2).deliver()
        again = obtain(hook, store, max_tries=3)
        assert again.task.task_id != first.task.task_id
        assert again.charged == 4
        assert store.record.delivered_max_tries is None
        assert obtain(hook, store, max_tries=3).task.task_id == again.task.task_id

    def test_a_delivery_counts_from_the_clear_that_led_to_it(self, emulator, hook, store):
        first = obtain(hook, store, max_tries=0)
        submission(store, 5).deliver()
        assert obtain(hook, store, max_tries=5).task.task_id == first.task.task_id
        assert obtain(hook, store, max_tries=6).task.task_id != first.task.task_id

    def test_submits_anew_when_the_generation_failed(self, emulator, hook, store):
        first = obtain(hook, store)
        emulator.finish(first.task.task_id, "failed")
        again = obtain(hook, store)
        assert again.charged == 4
        assert submits(emulator) == 2
        assert emulator.balance() == 996, "the failed one was refunded"

    def test_submits_what_was_changed(self, emulator, hook, store):
        first = obtain(hook, store)
        again = obtain(hook, store, request=CHANGED)
        assert again.task.task_id != first.task.task_id
        assert store.record.fingerprint == CHANGED.fingerprint("gptimg_default")

    def test_another_connection_is_a_change(self, emulator, hook, store, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", emulator.connection_json)
        obtain(hook, store)
        assert obtain(GptImgHook("other"), store).charged == 4

    def test_a_rotated_key_is_no_change(self, emulator, hook, store, connect):
        first = obtain(hook, store)
        emulator.add_key("another-key-of-the-same-user", user="default")
        connect(emulator, password="another-key-of-the-same-user")
        assert obtain(GptImgHook(), store).task.task_id == first.task.task_id

    @pytest.mark.parametrize("request_", [REQUEST, CHANGED], ids=["same", "changed"])
    @pytest.mark.parametrize("max_tries", [0, 3], ids=["retry", "cleared"])
    def test_stops_at_an_unknown_outcome_without_asking_the_api(self, emulator, hook, store, request_, max_tries):
        store.set(RECORD_KEY, replace(INTENT, max_tries=0).to_json())
        with pytest.raises(GptImgSubmissionUnknownError) as error:
            obtain(hook, store, request=request_, max_tries=max_tries)
        assert "2026-04-22 00:12:03 UTC" in str(error.value)
        assert "2 credits" in str(error.value)
        assert "on_unknown_submission='resubmit'" in str(error.value)
        assert emulator.calls == []
        assert len(store.writes) == 1

    def test_submits_again_if_told_so(self, emulator, hook, store):
        store.set(RECORD_KEY, INTENT.to_json())
        assert obtain(hook, store, on_unknown="resubmit").charged == 4

    def test_a_refusal_leaves_things_as_they_stood(self, emulator, hook, store):
        obtain(hook, store)
        before = store.record
        emulator.fault("submit", 402)
        with pytest.raises(GptImgInsufficientCreditsError):
            obtain(hook, store, request=CHANGED)
        assert store.record == before

    def test_a_refused_second_submit_does_not_make_the_first_known(self, emulator, hook, store):
        store.set(RECORD_KEY, INTENT.to_json())
        emulator.fault("submit", 402)
        with pytest.raises(GptImgInsufficientCreditsError):
            obtain(hook, store, on_unknown="resubmit")
        assert store.record == INTENT
        with pytest.raises(GptImgSubmissionUnknownError):
            obtain(hook, store)

    def test_a_recorded_task_that_the_api_does_not_know_says_how_to_drop_the_record(self, emulator, hook, store):
        obtain(hook, store)
        emulator.reset()
        with pytest.raises(GptImgTaskNotFoundError) as error:
            obtain(hook, store)
        assert RECORD_KEY in str(error.value)
        assert "state-store" in str(error.value)
        assert submits(emulator) == 0

    @pytest.mark.parametrize("fault", [401, 429, 500, "html", "lost_before"])
    def test_an_api_that_cannot_be_asked_is_no_reason_to_submit(self, emulator, hook, store, monkeypatch, fault):
        monkeypatch.setattr("airflow_provider_gptimg.hooks.gptimg.time.sleep", lambda seconds: None)
        obtain(hook, store)
        before = store.record
        emulator.fault("poll", fault, times=None)
        with pytest.raises(GptImgError):
            obtain(hook, store)
        assert submits(emulator) == 1
        assert store.record == before


class TestWithoutAStore:
    """Below Airflow 3.3."""

    def test_each_attempt_submits(self, emulator, hook):
        assert obtain(hook, None).charged == obtain(hook, None).charged == 4
        submission(None).deliver()
        assert submits(emulator) == 2

    def test_and_the_log_says_so(self, hook, caplog):
        obtain(hook, None)
        assert "pays again" in caplog.text

    def test_with_a_store_the_log_does_not(self, hook, store, caplog):
        obtain(hook, store)
        assert "pays again" not in caplog.text


def test_delivering_without_a_record_writes_none(store):
    submission(store).deliver()
    assert store.writes == []


def test_under_airflow_a_delivery_is_noted_after_the_success_and_before_the_authors_callbacks(emulator, hook, store):
    """An attempt that dies before Airflow has its success has delivered nothing."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    from airflow_provider_gptimg.airflow_compat import BaseOperator

    obtain(hook, store)
    seen = []
    task = BaseOperator(task_id="images", on_success_callback=lambda context: seen.append(store.record))
    ti = RuntimeTaskInstance.model_construct(task=task, max_tries=0)
    Submission({"ti": ti, "task_state_store": store}, logging.getLogger("airflow.task")).deliver()
    assert store.record.delivered_max_tries is None
    for callback in ti.task.on_success_callback:
        callback({})
    [record] = seen
    assert record.delivered_max_tries == 0
