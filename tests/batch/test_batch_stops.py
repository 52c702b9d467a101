# SPDX-License-Identifier: Apache-2.0
"""A batch that is stopped, replaced, or followed by a late word of an attempt before it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
from airflow_names import DAG, task
from batch_instance import Instance, InTurn, batch, prompts

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.batch.ledger import Ledger
from airflow_provider_gptimg.batch.requests import read_requests
from airflow_provider_gptimg.batch.sending import CHUNK
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.journal.attempt import Attempt, NotSentError

pytestmark = pytest.mark.usefixtures("s3")


def submits(emulator: Any) -> int:
    return sum(call.method == "POST" for call in emulator.calls)


def at_the_third_submit(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Do something while the third submit is under way; they are sent one after the other."""
    send, sent = GptImgHook._submit_prepared, []

    def submit(self: GptImgHook, *arguments: Any, **options: Any) -> Any:
        sent.append(arguments)
        if len(sent) == 3:
            do()
        return send(self, *arguments, **options)

    monkeypatch.setattr(GptImgHook, "_submit_prepared", submit)
    monkeypatch.setattr("airflow_provider_gptimg.batch.sending.ThreadPoolExecutor", InTurn)


def test_after_a_stop_nothing_is_sent(
    emulator: Any, instance: Instance, monkeypatch: pytest.MonkeyPatch, caplog: Any, capfd: Any
) -> None:
    operator = copy.copy(batch(prompts(30), max_in_flight=30))
    at_the_third_submit(monkeypatch, operator.on_kill)

    with pytest.raises(NotSentError, match="stopped"):
        operator.execute(instance.context)

    sent = submits(emulator)
    assert sent < CHUNK, "of those that were under way, and none of the next"
    log = "".join(capfd.readouterr()) + caplog.text
    assert "Of 30 requests 0 are paid for (0 credits), 8 are being sent right now" in log
    assert "Submitted image task" in log


def test_a_stop_while_the_decorated_function_runs_sends_nothing(emulator: Any, instance: Instance) -> None:
    def pictures() -> list[str]:
        operator.on_kill()
        return prompts(3)

    with DAG("decorated"):
        operator = task.gptimg_batch(s3_bucket="images")(pictures)().operator
    with pytest.raises(NotSentError, match="stopped"):
        operator.execute(instance.context)
    assert submits(emulator) == 0


def test_after_a_click_only_what_is_under_way_is_sent(
    emulator: Any, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of a task that a person marks failed learns of it seconds later, but Airflow knows at once."""
    state = ["running"]
    monkeypatch.setattr(Attempt, "_state_in_airflow", property(lambda self: state[0]))
    operator = copy.copy(batch(prompts(30), max_in_flight=30))
    at_the_third_submit(monkeypatch, lambda: state.append(state.pop().replace("running", "failed")))

    with pytest.raises(NotSentError, match="Airflow has this task as failed"):
        operator.execute(instance.context)

    assert submits(emulator) == CHUNK


def test_what_a_stopped_attempt_has_not_sent_is_not_unknown(
    emulator: Any, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = copy.copy(batch(prompts(30), max_in_flight=30))
    with monkeypatch.context() as patch:
        at_the_third_submit(patch, operator.on_kill)
        with pytest.raises(NotSentError):
            operator.execute(instance.context)
    assert instance.clear().run(batch(prompts(30), max_in_flight=30))["mirrored"] == 30
    assert len(emulator.tasks) == 30


def test_a_later_attempt_ends_an_earlier_one(
    emulator: Any, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = instance.retry()
    with monkeypatch.context() as patch:

        def freeze() -> None:
            Attempt.of(later.context, None).announce()
            now = time.time
            patch.setattr("time.time", lambda: now() + 2)

        at_the_third_submit(patch, freeze)
        with pytest.raises(NotSentError, match="Attempt 2"):
            instance.run(batch(prompts(30), max_in_flight=30))
    assert submits(emulator) < CHUNK
    assert later.run(batch(prompts(30), max_in_flight=30))["mirrored"] == 30
    assert len(emulator.tasks) == 30


def test_the_late_word_of_an_earlier_attempt_settles_its_unknown_outcomes(emulator: Any, instance: Instance) -> None:
    """Frozen between its POSTs and their outcomes, it thaws after a later attempt has told a person."""
    early = Ledger.of(Attempt.of(instance.context, None), "gptimg_default", instance.context)
    entries = early.enter(read_requests(["Late"], lambda bucket, key: ""))
    numbers = early.intend(entries)
    with pytest.raises(AirflowFailException, match="1 have an unknown outcome"):
        instance.retry().run(batch(["Late", "New"]))

    early.accept(numbers[entries[0]], emulator.add_task(prompt="Late"))
    early.write()

    before = submits(emulator)
    assert instance.retry().clear().run(batch(["Late", "New"]))["taken_up"] == 2
    assert submits(emulator) == before


def test_an_unknown_submit_beside_what_is_taken_up_is_named_in_the_log(
    emulator: Any, instance: Instance, caplog: Any, capfd: Any
) -> None:
    early = Ledger.of(Attempt.of(instance.context, None), "gptimg_default", instance.context)
    entries = early.enter(read_requests(["Late"], lambda bucket, key: ""))
    early.accept(early.intend(entries)[entries[0]], emulator.add_task(prompt="Late"))
    early.intend(entries)
    assert instance.retry().run(batch(["Late"]))["taken_up"] == 1
    log = "".join(capfd.readouterr()) + caplog.text
    assert "requests[0] is taken up, and another submission, of attempt 1 at" in log


def test_the_error_of_an_unknown_outcome_names_the_attempt_and_where_to_look(emulator: Any, instance: Instance) -> None:
    emulator.fault("submit", "lost_after")
    with pytest.raises(AirflowFailException) as caught:
        instance.run(batch(["Lost"]))
    assert "attempt 1 sent a submit at" in str(caught.value).lower()
    assert "log of attempt 1" in str(caught.value)
