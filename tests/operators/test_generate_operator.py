# SPDX-License-Identifier: Apache-2.0
"""GptImgGenerateOperator: submit and wait in one task. That it pays once, test_paid_once.py tells."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from attempts import fails_at_once, may_be_retried

from airflow_provider_gptimg.exceptions import (
    GptImgProtocolError,
    GptImgRequestError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator


def generate(**arguments) -> GptImgGenerateOperator:
    return GptImgGenerateOperator(**{"task_id": "generate", "prompt": "a cat", "timeout": 20} | arguments)


def test_returns_the_finished_task(emulator, instance, deferrable, clock):
    if deferrable:
        clock.stop()
    result = instance.attempt(generate(n="3", deferrable=deferrable), while_deferred=clock.go)
    (task,) = emulator.tasks
    assert result["task_id"] == task.task_id
    assert result["status"] == "completed"
    assert len(result["images"]) == 3
    assert result["credits"] == instance.xcoms["credits"] == 6
    assert len(instance.deferrals) == deferrable


def test_takes_and_renders_all_that_a_submit_takes(emulator, instance):
    operator = generate(
        prompt="a {{ animal }}",
        aspect_ratio="{{ 8 + 8 }}:9",
        reference_images="https://example.com/{{ animal }}.png",
        extra_body={"style": "{{ animal }}"},
    )
    operator.render_template_fields({"animal": "cat"})
    instance.attempt(operator)
    assert emulator.tasks[0].request == {
        "prompt": "a cat",
        "n": 1,
        "aspect_ratio": "16:9",
        "image_urls": ["https://example.com/cat.png"],
        "style": "cat",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": None},
        {"timeout": timedelta(seconds=-1)},
        {"timeout": "600"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"poll_interval": "often"},
        {"poll_interval": 0},
        {"first_poll_after": -1},
    ],
    ids=repr,
)
def test_refuses_a_wait_that_cannot_be_before_it_is_paid_for(emulator, instance, deferrable, wrong):
    with fails_at_once(GptImgRequestError) as caught:
        instance.attempt(generate(deferrable=deferrable, **wrong))
    assert next(iter(wrong)) in str(caught.value)
    assert emulator.calls == []


def test_what_is_finished_when_taken_up_again_does_not_defer(emulator, instance, clock):
    clock.stop()
    instance.kill(generate(deferrable=True))
    emulator.finish(emulator.tasks[0].task_id)
    assert instance.attempt(generate(deferrable=True))["status"] == "completed"
    assert instance.deferrals == []


def test_never_submits_once_it_has_deferred(emulator, instance, clock):
    clock.stop()
    task_id = instance.attempt(generate(deferrable=True), while_deferred=clock.go)["task_id"]
    assert [call.method for call in emulator.calls].count("POST") == 1
    assert instance.deferrals[0].trigger.gptimg_task_id == task_id


def test_a_task_that_becomes_unknown_meanwhile_says_how_to_drop_the_record(emulator, instance, deferrable):
    emulator.fault("poll", 404, times=None)
    with fails_at_once(GptImgTaskNotFoundError) as caught:
        instance.attempt(generate(deferrable=deferrable))
    assert "delete the entries gptimg" in str(caught.value)


class TestDeadline:
    @pytest.fixture(autouse=True)
    def _unfinished(self, clock):
        clock.stop()

    def submitted_at(self, instance) -> float:
        return instance.submissions[0].at

    def test_counts_from_submission(self, emulator, instance):
        trigger = instance.defer(generate(deferrable=True, timeout=600)).trigger
        assert trigger.deadline == self.submitted_at(instance) + 600
        assert trigger.submitted_at == self.submitted_at(instance)

    def test_is_the_same_for_a_retry_within_it(self, emulator, instance):
        first = instance.defer(generate(deferrable=True, timeout=600)).trigger
        assert instance.defer(generate(deferrable=True, timeout=600)).trigger.deadline == first.deadline

    def test_counts_anew_for_a_retry_after_it(self, emulator, instance):
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(generate(deferrable=True, timeout=0.05))
        before = time.time()
        trigger = instance.defer(generate(deferrable=True, timeout=0.05)).trigger
        assert before + 0.05 <= trigger.deadline <= time.time() + 0.05

    def test_is_kept_over_a_second_deferral(self, emulator, instance):
        operator = generate(deferrable=True, timeout=600)
        first = instance.defer(operator)
        operator.execute = lambda context: operator.execute_complete(context, {"status": "finished"}, **first.kwargs)
        second = instance.defer(operator)
        assert second.trigger.deadline == first.trigger.deadline
        assert second.kwargs == first.kwargs
        assert len(emulator.tasks) == 1

    def test_ends_the_wait(self, emulator, instance, deferrable):
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(generate(deferrable=deferrable, timeout=0.1))
        assert instance.submissions[0].task_id == emulator.tasks[0].task_id


class TestEvents:
    @pytest.fixture
    def task_id(self, emulator) -> str:
        return emulator.add_task()

    @pytest.mark.parametrize(
        "event", [{"status": "finished"}, {"status": "unheard of"}, {}, "success", None, 7], ids=repr
    )
    def test_of_any_kind_resumes(self, instance, task_id, event):
        times = {"submitted_at": time.time(), "deadline": time.time() + 20}
        result = generate(deferrable=True).execute_complete(instance.context, event, task_id=task_id, **times)
        assert result["task_id"] == task_id

    def test_names_its_task_where_the_rest_is_lost(self, instance, task_id):
        """`dag.test()` drops what an operator defers with."""
        event = {"status": "finished", "gptimg_task_id": task_id}
        assert generate(deferrable=True).execute_complete(instance.context, event)["task_id"] == task_id

    def test_of_a_time_out_ends_the_wait_where_the_rest_is_lost(self, emulator, instance):
        event = {"status": "timeout", "gptimg_task_id": emulator.add_task(status="processing")}
        with may_be_retried(GptImgTimeoutError):
            generate(deferrable=True).execute_complete(instance.context, event)

    def test_that_names_none_where_the_rest_is_lost_too(self, instance):
        with may_be_retried(GptImgProtocolError):
            generate(deferrable=True).execute_complete(instance.context, {"status": "finished"})

    def test_with_an_error_is_not_the_apis_last_word(self, instance, task_id):
        event = {"status": "error", "error": {"type": "GptImgAuthError", "message": "no"}}
        result = generate(deferrable=True).execute_complete(
            instance.context, event, task_id=task_id, submitted_at=0.0, deadline=1.0
        )
        assert result["task_id"] == task_id


def test_logs_what_was_made_and_what_it_cost(emulator, instance, deferrable, log):
    instance.attempt(generate(n=2, deferrable=deferrable))
    said = log()
    assert "4 credits" in said
    assert "completed: 2 images" in said
    assert "a cat" not in said


def test_on_kill_says_that_the_images_are_paid_for(log):
    generate().on_kill()
    assert "paid for" in log()
