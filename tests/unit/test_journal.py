# SPDX-License-Identifier: Apache-2.0
"""The journal: each row of its decision table, its three stores, and what an attempt notes against the emulator."""

from __future__ import annotations

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st
from journals import KINDS, use_s3, use_variables

from airflow_provider_gptimg import airflow_compat
from airflow_provider_gptimg.api.requests import ImageRequest
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
)
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.journal import attempt as attempt_module, stores
from airflow_provider_gptimg.journal.attempt import FIRST_RELEASE_KEY, Attempt, NotSentError
from airflow_provider_gptimg.journal.entries import Decision, Submitted, decide, read_first_release
from airflow_provider_gptimg.journal.stores import MemoryStore, StateStore, open_store
from airflow_provider_gptimg.journal.submission import Submission

SENT = Submitted("1.1", "same", credits=2, at=1_776_816_723.0, max_tries=3)
ACCEPTED = replace(SENT, task_id="gpt-image-2-x")
DELIVERED = replace(ACCEPTED, delivered=3)
REFUSED = replace(SENT, refused="INVALID_REQUEST")
REFUNDED = replace(ACCEPTED, refunded=True)
SECOND = replace(ACCEPTED, name="2.1", task_id="gpt-image-2-y")


class TestDecision:
    @pytest.mark.parametrize("on_unknown", ["fail", "resubmit"])
    @pytest.mark.parametrize(
        ("known", "fingerprint", "max_tries", "decision"),
        [
            pytest.param([], "same", 3, Decision.SUBMIT, id="none"),
            pytest.param([REFUSED], "same", 3, Decision.SUBMIT, id="refused"),
            pytest.param([REFUNDED], "same", 3, Decision.SUBMIT, id="refunded"),
            pytest.param([ACCEPTED], "same", 3, Decision.TAKE_UP, id="accepted-retry"),
            pytest.param([ACCEPTED], "same", 4, Decision.TAKE_UP, id="accepted-cleared"),
            pytest.param([ACCEPTED], "same", 2, Decision.TAKE_UP, id="accepted-fewer-retries"),
            pytest.param([DELIVERED], "same", 3, Decision.TAKE_UP, id="delivered-retry"),
            pytest.param([DELIVERED], "same", 4, Decision.SUBMIT_CLEARED, id="delivered-cleared"),
            pytest.param([DELIVERED, SECOND], "same", 4, Decision.TAKE_UP, id="new-ones-retry"),
            pytest.param([ACCEPTED], "other", 3, Decision.SUBMIT_CHANGED, id="accepted-changed"),
            pytest.param([DELIVERED], "other", 4, Decision.SUBMIT_CHANGED, id="delivered-changed"),
            pytest.param([SENT, SECOND], "same", 3, Decision.TAKE_UP, id="accepted-beside-unknown"),
            pytest.param(
                [ACCEPTED, replace(SENT, name="2.1")], "same", 3, Decision.TAKE_UP, id="accepted-then-unknown"
            ),
        ],
    )
    def test_what_is_known_decides_whatever_the_policy(self, known, fingerprint, max_tries, decision, on_unknown):
        assert decide(known, fingerprint, max_tries, on_unknown).decision is decision

    @pytest.mark.parametrize("max_tries", [3, 4], ids=["retry", "cleared"])
    @pytest.mark.parametrize("fingerprint", ["same", "other"])
    @pytest.mark.parametrize(
        ("on_unknown", "decision"), [("fail", Decision.STOP), ("resubmit", Decision.SUBMIT_UNKNOWN)]
    )
    @pytest.mark.parametrize(
        "before", [[], [DELIVERED], [REFUSED]], ids=["alone", "after a delivery", "after a refusal"]
    )
    def test_the_policy_decides_an_unknown_outcome(self, on_unknown, decision, fingerprint, max_tries, before):
        known = [*before, replace(SENT, name="1.2")]
        if before != [DELIVERED] or max_tries == 4 or fingerprint == "other":
            assert decide(known, fingerprint, max_tries, on_unknown).decision is decision

    def test_the_latest_of_several_is_taken_up_and_the_unknown_are_named(self):
        plan = decide([SENT, SECOND, replace(SECOND, name="3.1")], "same", 3, "fail")
        assert [known.name for known in plan.paid] == ["3.1", "2.1"]
        assert plan.unknown == [SENT]

    def test_what_resubmit_replaced_is_asked_about_no_more(self):
        known = [SENT, replace(SECOND, passes_over=("1.1",), delivered=3)]
        assert decide(known, "same", 4, "fail").decision is Decision.SUBMIT_CLEARED


submissions = st.builds(
    Submitted,
    name=st.just("2.1"),
    fingerprint=st.text(),
    credits=st.integers(2, 8),
    at=st.floats(0, 2e9),
    max_tries=st.integers(0, 99),
    passes_over=st.lists(st.just("1.1"), max_size=2).map(tuple),
)


@given(submissions)
def test_an_intent_comes_back_as_it_was_written(submission):
    assert Submitted.read("2.1", json.loads(json.dumps(submission.intent()))) == submission
    for settled in (replace(submission, task_id="x"), replace(submission, refused="y")):
        assert Submitted.read("2.1", settled.intent(), settled.outcome()) == settled


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


def nearly(**fields):
    return json_values | st.fixed_dictionaries(
        {}, optional={name: value | json_values for name, value in fields.items()}
    )


@given(
    nearly(fingerprint=st.just("same"), credits=st.integers(), at=st.floats(), max_tries=st.integers()),
    nearly(task_id=st.just("x"), refused=st.text()),
    nearly(delivered=st.integers(), refunded=st.booleans()),
)
def test_what_cannot_be_read_counts_as_an_unknown_outcome(intent, outcome, end):
    """It never counts as nothing, which would submit without asking."""
    known = Submitted.read("1.1", intent, outcome, end)
    if known.refused is None and not known.refunded:
        assert decide([known], "same", 0, "fail").decision is not Decision.SUBMIT
    if not isinstance(outcome, dict):
        assert known.is_unknown


class TestFirstRelease:
    """Release 0.1 kept one record, here frozen as it was written."""

    RECORD = json.loads(
        '{"version": 1, "fingerprint": "f", "credits": 4, "submitted_at": 1776816723.456, "max_tries": 2, '
        '"task_id": "gpt-image-2-x", "delivered_max_tries": 2}'
    )

    def decide(self, record, fingerprint="f", max_tries=2, on_unknown="fail"):
        return decide([read_first_release(record)], fingerprint, max_tries, on_unknown).decision

    def test_a_record_is_read(self):
        known = read_first_release(self.RECORD)
        assert known == Submitted("0.1", "f", 4, 1_776_816_723.456, 2, task_id="gpt-image-2-x", delivered=2)

    def test_it_is_decided_on_as_before(self):
        undelivered = {**self.RECORD, "delivered_max_tries": None}
        intent = {**undelivered, "task_id": None}
        assert self.decide(self.RECORD) is Decision.TAKE_UP
        assert self.decide(self.RECORD, max_tries=3) is Decision.SUBMIT_CLEARED
        assert self.decide(undelivered, max_tries=3) is Decision.TAKE_UP
        assert self.decide(undelivered, "other") is Decision.SUBMIT_CHANGED
        assert self.decide(intent) is Decision.STOP
        assert self.decide(intent, "other", max_tries=3) is Decision.STOP
        assert self.decide(intent, on_unknown="resubmit") is Decision.SUBMIT_UNKNOWN

    @pytest.mark.parametrize("garbage", ["text", [], 0, {"version": 2}, {**RECORD, "fingerprint": 7}], ids=repr)
    def test_one_that_cannot_be_read_counts_as_unknown(self, garbage):
        assert self.decide(garbage) is Decision.STOP


class State(dict):
    """Airflow's task state store: JSON values by key. `replaced`: a retry has replaced this attempt.

    :param calls: That were made.
    """

    replaced = False

    def __init__(self):
        self.calls = []

    def get(self, key, default=None):
        self.calls.append(("get", key))
        return default if self.replaced else super().get(key, default)

    def set(self, key, value, retention=None):
        self.calls.append(("set", key))
        if self.replaced:
            raise OSError("404: Task instance not found")
        self[key] = json.loads(json.dumps(value))

    def delete(self, key):
        self.pop(key, None)


def task_instance(number=1, max_tries=0, **more):
    names = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1} | more
    return SimpleNamespace(try_number=number, max_tries=max_tries, **names)


@pytest.fixture(params=KINDS)
def context(request, monkeypatch):
    """Return the context of an attempt: `context(2)`."""
    state = State()
    if request.param == "S3":
        use_s3(monkeypatch, request.getfixturevalue("s3"))
    elif request.param == "Variables":
        use_variables(monkeypatch)
    return lambda *given, **more: {"ti": task_instance(*given, **more), "task_state_store": state}


class TestStores:
    def test_what_is_put_is_there_until_it_is_deleted(self, context):
        store = open_store(context())
        assert store.get("1.1.intent") is None
        assert store.put("1.1.intent", {"a": 1})
        assert store.put("1.1.intent", {"a": 1}), "a write that is repeated is the same write"
        assert open_store(context(2)).get("1.1.intent") == {"a": 1}
        names = store.list()
        assert names is None or names == {"1.1.intent"}
        store.delete("1.1.intent")
        store.delete("1.1.intent")
        assert open_store(context(2)).get("1.1.intent") is None

    def test_each_task_instance_has_its_own(self, context, request):
        if request.node.callspec.params["context"] == "state store":
            pytest.skip("Airflow gives each task instance its own")
        open_store(context()).put("1.1.intent", {"a": 1})
        for other in ({"dag_id": "e"}, {"run_id": "s"}, {"task_id": "u"}, {"map_index": 0}):
            assert open_store(context(**other)).get("1.1.intent") is None

    def test_one_that_fails_is_never_taken_for_an_empty_one(self, context, request, monkeypatch, emulator):
        kind = request.node.callspec.params["context"]

        def fail(*given, **more):
            raise OSError("no route to it")

        if kind == "S3":
            monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://there-is-no-such-bucket/journal")
        elif kind == "Variables":
            monkeypatch.setattr(stores, "read_variable", fail)
        else:
            monkeypatch.setattr(State, "get", fail)
        with pytest.raises(Exception, match=r"cannot be|no route"):
            Submission.of(context(2), LOG).obtain(GptImgHook(), REQUEST, "fail", None)
        assert emulator.calls == []

    def test_s3_keeps_what_was_there_first(self, s3, monkeypatch):
        use_s3(monkeypatch, s3)
        store = open_store({"ti": task_instance()})
        store.put("1.1.intent", {"a": 1})
        assert not store.put("1.1.intent", {"a": 2})
        assert store.get("1.1.intent") == {"a": 1}

    def test_variables_say_what_they_are_for(self, monkeypatch):
        variables = use_variables(monkeypatch)
        open_store({"ti": task_instance(map_index=3)}).put("1.1.intent", {"a": 1})
        [(key, said)] = variables.descriptions.items()
        assert key.startswith("gptimg:")
        assert "DAG d, run r, task t [3]" in said

    def test_an_attempt_that_a_retry_has_replaced_does_not_take_its_state_for_empty(self):
        """Airflow answers it as if there were no entries."""
        state = State()
        store = StateStore(state)
        store.put("1.1.intent", {"a": 1})
        assert store.get("2.begun") is None
        state.replaced = True
        with pytest.raises(GptImgError, match="replaced"):
            store.get("2.begun")

    @pytest.mark.parametrize("setting", ["s3://", "redis://x", "AUTO"])
    def test_a_setting_that_is_not_understood_names_the_ways(self, monkeypatch, setting):
        monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", setting)
        with pytest.raises(GptImgRequestError, match="'auto', 'none', or 's3://bucket/prefix'"):
            open_store({})

    @pytest.mark.parametrize("setting", ["auto", "none", "s3://bucket/prefix"])
    def test_by_hand_nothing_is_kept(self, monkeypatch, setting):
        monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", setting)
        assert not open_store({}).lasts


LOG = logging.getLogger("airflow.task")
REQUEST = ImageRequest.check("a cat", n=2)


class TestAttempts:
    """Attempts that are alive at once."""

    def attempt(self, context, number=1) -> Attempt:
        return Attempt.of(context(number), LOG)

    def test_the_first_announces_nothing_and_reads_one_entry(self, context):
        first = self.attempt(context)
        first.announce()
        assert first.read() == []
        first.look()

    def test_the_first_asks_the_state_store_as_little_as_it_can(self):
        state = State()
        first = Attempt(StateStore(state), 1, 0, LOG, state=state)
        assert first.begin() == []
        first.intend(SENT)
        first.settle(SENT, task_id="x")
        assert state.calls == [
            ("get", FIRST_RELEASE_KEY),
            ("get", "gptimg:1.1.intent"),
            ("set", "gptimg:1.1.intent"),
            ("get", "gptimg:2.begun"),
            ("set", "gptimg:1.1.outcome"),
        ]

    def test_a_list_shows_what_is_there_even_where_something_before_it_is_gone(self, s3, monkeypatch):
        """As a rule of the bucket may delete the older of two objects, or a person one of them."""
        use_s3(monkeypatch, s3)
        context = lambda number=1: {"ti": task_instance(number)}  # noqa: E731
        first = self.attempt(context)
        for name in ("1.1", "1.2"):
            first.intend(replace(SENT, name=name))
        first.store.delete("1.1.intent")
        first.store.put("999999999.1.strange", {})
        assert [known.name for known in self.attempt(context, 2).begin()] == ["1.2"]

    def test_a_later_one_stops_an_earlier_one(self, context):
        first, third = self.attempt(context), self.attempt(context, 3)
        third.announce()
        with pytest.raises(NotSentError, match="Attempt 2 of this task has begun"):
            first.intend(SENT)
        assert [known.refused for known in third.read()] == ["not sent"]
        third.look()

    def test_the_second_of_two_that_are_the_same_attempt_sends_nothing_where_the_store_can_tell(self, context, request):
        first, twin = self.attempt(context), self.attempt(context)
        first.intend(SENT)
        if request.node.callspec.params["context"] == "S3":
            with pytest.raises(NotSentError):
                twin.intend(replace(SENT, at=SENT.at + 1))
            assert [known.is_unknown for known in first.read()] == [True]

    def test_a_frozen_one_looks_again(self, context, monkeypatch):
        clock = [1000.0]
        monkeypatch.setattr(attempt_module, "time", SimpleNamespace(time=lambda: clock[0], sleep=time.sleep))
        first, second = self.attempt(context), self.attempt(context, 2)
        first.intend(SENT)
        second.announce()
        first.look_again(SENT)
        clock[0] += 1.5
        with pytest.raises(NotSentError):
            first.look_again(SENT)

    @pytest.mark.parametrize(("task_id", "decision"), [("x", Decision.TAKE_UP), (None, Decision.SUBMIT)])
    def test_a_replaced_one_leaves_its_outcome_for_the_next(self, task_id, decision):
        state, late = State(), MemoryStore()
        first = Attempt(StateStore(state, late), 1, 0, LOG)
        first.intend(SENT)
        known = dict(state)
        state.replaced = True
        if task_id:
            first.settle(SENT, task_id=task_id)
        else:
            with pytest.raises(GptImgError, match="replaced"):
                first.look(SENT)
        state = State()
        state.update(known)
        third = Attempt(StateStore(state, late), 3, 0, LOG).begin()
        assert decide(third, SENT.fingerprint, 0, "fail").decision is decision
        assert late.get("1.1.outcome") is None
        assert state["gptimg:1.1.outcome"]

    def test_one_that_is_not_replaced_and_cannot_write_says_so(self):
        state, late = State(), MemoryStore()
        first = Attempt(StateStore(state, late), 1, 0, LOG)
        first.intend(SENT)
        state.set = lambda *given, **more: 1 / 0
        with pytest.raises(GptImgError, match="cannot be written"):
            first.settle(SENT, task_id="x")
        assert late.get("1.1.outcome") is None

    def test_one_that_is_replaced_while_it_is_frozen_in_its_write_looks_at_itself(self, monkeypatch):
        clock, state = [1000.0], State()
        monkeypatch.setattr(attempt_module, "time", SimpleNamespace(time=lambda: clock[0], sleep=time.sleep))
        put = state.set

        def freeze(key, value, retention=None):
            put(key, value)
            clock[0] += 1.5
            state.replaced = True

        monkeypatch.setattr(state, "set", freeze)
        with pytest.raises(GptImgError, match="replaced"):
            Attempt(StateStore(state), 1, 0, LOG).intend(SENT)

    @pytest.mark.parametrize(("seconds", "may_send"), [(3.0, True), (60.0, False)], ids=["slow", "as-good-as-gone"])
    def test_a_store_that_is_slow_each_time_keeps_nobody_from_sending(self, context, monkeypatch, seconds, may_send):
        clock = [1000.0]
        monkeypatch.setattr(attempt_module, "time", SimpleNamespace(time=lambda: clock[0], sleep=time.sleep))
        first = self.attempt(context)
        ask = "read" if isinstance(first.store, StateStore) else "get"
        get, looks = getattr(first.store, ask), []

        def slow(name):
            looks.append(name)
            clock[0] += seconds
            return get(name)

        monkeypatch.setattr(first.store, ask, slow)
        with nullcontext() if may_send else pytest.raises(NotSentError, match="to answer"):
            first.intend(SENT)
            first.look_again(SENT)
        assert len(looks) == 5

    def test_a_stopped_one_ends_its_pause_and_sends_nothing(self, context):
        stopped = self.attempt(context)
        stopped.is_stopped = True
        with pytest.raises(NotSentError, match="stopped"):
            stopped.pause(60)
        with pytest.raises(NotSentError, match="stopped"):
            stopped.intend(SENT)
        assert [known.refused for known in stopped.read()] == ["not sent"]


@pytest.fixture
def hook(emulator) -> GptImgHook:
    return GptImgHook()


class TestSubmission:
    def obtain(self, context, hook, *given, request=REQUEST, on_unknown="fail"):
        return Submission.of(context(*given), LOG).obtain(hook, request, on_unknown, None)

    def test_the_intent_stands_before_the_post_goes_out_and_the_outcome_after_it(self, context, hook, monkeypatch):
        stood = []
        send = hook._submit_prepared

        def watch(submit, before_connect, **more):
            def and_look():
                before_connect()
                stood.extend(Attempt.of(context(), LOG).read())

            return send(submit, before_connect=and_look, **more)

        monkeypatch.setattr(hook, "_submit_prepared", watch)
        before = time.time()
        accepted = self.obtain(context, hook)
        [known] = Attempt.of(context(), LOG).read()
        assert stood == [replace(known, task_id=None)]
        assert known.task_id == accepted.task.task_id
        assert (known.fingerprint, known.credits) == (REQUEST.fingerprint("gptimg_default"), 4)
        assert before <= known.at <= time.time()

    def test_a_pause_after_a_refusal_is_known_as_one_and_the_next_post_has_an_intent_of_its_own(
        self, context, hook, emulator, monkeypatch
    ):
        emulator.fault("submit", 429, retry_after=0.1)
        in_pauses = []
        pause = Attempt.pause
        monkeypatch.setattr(
            Attempt, "pause", lambda self, seconds: in_pauses.append(self.read()) or pause(self, seconds)
        )
        accepted = self.obtain(context, hook)
        assert [[known.is_unknown for known in each] for each in in_pauses] == [[False]]
        first, second = Attempt.of(context(), LOG).read()
        assert (first.task_id, second.task_id) == (None, accepted.task.task_id)
        assert first.at + 0.1 <= second.at == accepted.submitted_at

    @pytest.mark.parametrize(("status", "error"), [(400, GptImgRequestError), (429, GptImgRateLimitError)])
    def test_a_refusal_is_noted_and_the_next_attempt_submits(self, context, hook, emulator, status, error):
        emulator.fault("submit", status, retry_after=3600)
        with pytest.raises(error):
            self.obtain(context, hook)
        assert not any(known.is_unknown for known in Attempt.of(context(), LOG).read())
        assert self.obtain(context, hook, 2).charged == 4

    def test_a_host_that_cannot_be_reached_charges_nothing(self, context, hook, emulator, connect, monkeypatch):
        monkeypatch.setattr(Attempt, "pause", lambda self, seconds: None)
        connect(emulator, host="http://127.0.0.1:1")
        with pytest.raises(GptImgServerError):
            self.obtain(context, hook)
        assert not any(known.is_unknown for known in Attempt.of(context(), LOG).read())

    def test_what_cannot_be_prepared_writes_nothing(self, context, hook):
        with pytest.raises(GptImgRequestError):
            self.obtain(context, hook, request=ImageRequest.check("a cat", extra_body={"n": 4}))
        assert Attempt.of(context(), LOG).read() == []

    @pytest.mark.parametrize("fault", ["lost_before", "lost_after", "cut_after", "html", "empty", "redirect"])
    def test_an_unknown_outcome_stops_the_next_attempt(self, context, hook, emulator, fault):
        emulator.fault("submit", fault)
        for number in (1, 2):
            with pytest.raises(GptImgSubmissionUnknownError, match="4 credits") as error:
                self.obtain(context, hook, number)
            assert open_store(context()).way_to_drop in str(error.value)
        assert sum(call.method == "POST" for call in emulator.calls) == 1

    def test_a_late_outcome_settles_it(self, context, hook, emulator):
        emulator.fault("submit", "lost_after")
        with pytest.raises(GptImgSubmissionUnknownError):
            self.obtain(context, hook)
        first = Attempt.of(context(), LOG)
        first.settle(first.read()[0], task_id=emulator.tasks[0].task_id)
        assert self.obtain(context, hook, 2).task.task_id == emulator.tasks[0].task_id

    def test_an_unknown_one_beside_what_is_taken_up_is_named_in_the_log(self, context, hook, caplog):
        accepted = self.obtain(context, hook)
        first = Attempt.of(context(), LOG)
        [known] = first.read()
        first.intend(replace(known, name="1.2", task_id=None))
        assert self.obtain(context, hook, 2).task.task_id == accepted.task.task_id
        assert f"another submission, of attempt 1 at {known.sent}, has no known outcome: up to 4 cred" in caplog.text

    @pytest.mark.parametrize("end", [OSError, KeyboardInterrupt])
    def test_the_outcome_is_written_again_where_that_fails(self, context, hook, emulator, monkeypatch, end):
        """Such as by a SIGTERM on Airflow 2, which raises in the midst of it."""
        settle, ends = Attempt.settle, [end]

        def fail_once(self, *given, **more):
            if ends:
                raise ends.pop()
            return settle(self, *given, **more)

        with monkeypatch.context() as patch, nullcontext() if end is OSError else pytest.raises(end):
            patch.setattr(Attempt, "settle", fail_once)
            self.obtain(context, hook)
        assert [known.task_id for known in Attempt.of(context(), LOG).read()] == [emulator.tasks[0].task_id]

    def test_an_attempt_that_is_replaced_in_its_pause_sends_nothing_more(self, context, hook, emulator, monkeypatch):
        emulator.fault("submit", 429, retry_after=0)
        monkeypatch.setattr(Attempt, "pause", lambda self, seconds: Attempt.of(context(2), LOG).announce())
        with pytest.raises(NotSentError):
            self.obtain(context, hook)
        assert emulator.tasks == []
        assert self.obtain(context, hook, 2).charged == 4

    def test_a_stopped_task_says_what_was_sent_and_what_is_paid_for(self, context, hook, emulator, monkeypatch):
        submission = Submission.of(context(), LOG)
        assert "nothing was sent" in submission.stop()
        submission = Submission.of(context(), LOG)
        emulator.fault("submit", 429, retry_after=0)
        said = []
        monkeypatch.setattr(Attempt, "pause", lambda self, seconds: said.append(submission.stop()))
        with pytest.raises(NotSentError):
            submission.obtain(hook, REQUEST, "fail", None)
        assert "refused" in said[0]
        assert sum(call.method == "POST" for call in emulator.calls) == 1
        paid = Submission.of(context(2), LOG)
        accepted = paid.obtain(hook, REQUEST, "fail", None)
        assert f"image task {accepted.task.task_id} is paid for" in paid.stop()

    def test_a_record_of_the_first_release_is_taken_up(self, hook, emulator):
        state = State()
        task_id = emulator.add_task()
        state[FIRST_RELEASE_KEY] = {
            **TestFirstRelease.RECORD,
            "fingerprint": REQUEST.fingerprint("gptimg_default"),
            "task_id": task_id,
            "delivered_max_tries": None,
        }

        def attempt(number, max_tries):
            return Submission.of({"ti": task_instance(number, max_tries), "task_state_store": state}, LOG)

        taken = attempt(2, 2).obtain(hook, REQUEST, "fail", None)
        assert (taken.task.task_id, taken.charged) == (task_id, 0)
        attempt(2, 2).deliver(None, task_id)  # as of a task that release 0.1 deferred
        assert attempt(3, 3).obtain(hook, REQUEST, "fail", None).charged == 4

    def test_without_a_journal_the_log_says_what_that_means(self, hook, caplog):
        Submission.of({}, LOG).obtain(hook, REQUEST, "fail", None)
        assert "pays again" in caplog.text


class TestDelivery:
    """Under Airflow, only what it has recorded as a success is noted."""

    @pytest.fixture
    def ended(self, monkeypatch):
        """Return what ends an attempt well, as Airflow's runner does, with the state that Airflow has recorded."""
        notes = []
        monkeypatch.setattr(attempt_module, "is_run_by_airflow", lambda ti: True)
        monkeypatch.setattr(attempt_module, "once_ended_well", lambda ti, note: notes.append(note))

        def end(state):
            monkeypatch.setattr(attempt_module, "recorded_state", lambda ti: state)
            notes.pop()()

        return end

    @pytest.mark.parametrize(
        ("context", "submitting", "taking_up"),
        [("state store", (3, 4, 0), (2, 8, 0)), ("Variables", (2, 9, 2), (1, 13, 3))],
        indirect=["context"],
    )
    def test_the_docs_say_what_an_attempt_costs(self, context, hook, ended, monkeypatch, submitting, taking_up):
        """Writes, reads and deletions, without the question to Airflow."""
        calls = []
        state, variables = context()["task_state_store"], vars(airflow_compat).get("Variable")

        def counted(kind, call):
            return lambda *given, **more: calls.append(kind) or call(*given, **more)

        for owner, name in ((state, "set"), (state, "get"), (variables, "set"), (variables, "delete")):
            if owner is not None:
                monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
        monkeypatch.setattr(stores, "read_variable", counted("get", stores.read_variable))

        def attempt(number):
            calls.clear()
            monkeypatch.setattr(attempt_module, "recorded_state", lambda ti: "running")
            submission = Submission.of(context(number), LOG)
            accepted = submission.obtain(hook, REQUEST, "fail", None)
            submission.deliver(accepted.name, accepted.task.task_id)

        def cost():
            ended("success")
            return tuple(map(calls.count, ("set", "get", "delete")))

        attempt(1)
        attempt(2)
        taken_up = cost()
        assert taken_up == taking_up
        state.clear()
        getattr(variables, "values", {}).clear()
        attempt(1)
        assert cost() == submitting
        page = (Path(__file__).parents[2] / "docs/how-it-works.md").read_text()
        for numbers in (submitting, taking_up):
            parts = [(n, what) for n, what in zip(numbers, ("write", "read", "deletion"), strict=True) if n]
            assert ", ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in parts) in page

    @pytest.mark.parametrize("state", ["failed", "running", "up_for_retry", None])
    def test_a_success_that_airflow_refused_is_not_noted(self, context, ended, state):
        attempt = Attempt.of(context(), LOG)
        attempt.intend(SENT)
        attempt.settle(SENT, task_id="x")
        attempt.deliver("1.1")
        ended(state)
        assert [known.delivered for known in attempt.read()] == [None]

    def test_nor_is_one_of_a_later_attempt(self, context, ended):
        attempt = Attempt.of(context(), LOG)
        attempt.intend(SENT)
        attempt.settle(SENT, task_id="x")
        Attempt.of(context(2), LOG).announce()
        attempt.deliver("1.1")
        ended("success")
        assert [known.delivered for known in attempt.read()] == [None]

    def test_a_recorded_one_is_noted_and_needs_no_variables_any_more(self, context, ended):
        attempt = Attempt.of(context(2, 5), LOG)
        attempt.announce()
        attempt.intend(replace(SENT, name="2.1"))
        attempt.settle(replace(SENT, name="2.1"), task_id="x")
        attempt.deliver("2.1")
        ended("success")
        assert [known.delivered for known in attempt.read()] == ([] if attempt.store.forgets else [5])

    def test_what_is_paid_for_and_not_delivered_stays(self, context, ended):
        first, second = Attempt.of(context(), LOG), Attempt.of(context(2), LOG)
        first.intend(SENT)
        first.settle(SENT, task_id="paid-as-well")
        second.announce()
        second.settle(replace(SENT, name="2.1"), task_id="x")
        second.intend(replace(SENT, name="2.1"))
        second.deliver("2.1")
        ended("success")
        assert ("paid-as-well", None) in [(known.task_id, known.delivered) for known in second.read()]

    def test_one_that_cannot_be_asked_for_is_not_noted(self, context, ended, monkeypatch, caplog):
        attempt = Attempt.of(context(), LOG)
        attempt.deliver("1.1")

        def fail(ti):
            raise OSError("away")

        monkeypatch.setattr(attempt_module, "recorded_state", fail)
        monkeypatch.setattr(attempt_module, "recorded_state", fail)
        with monkeypatch.context() as patch:
            patch.setattr(Attempt, "_next", property(fail))
            ended("success")
        assert open_store(context()).get("1.1.end") is None
        assert "clear returns the same images" in caplog.text
