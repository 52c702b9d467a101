# SPDX-License-Identifier: Apache-2.0
"""GptImgTaskSensor: what it waits for, how, how long, and what it returns."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from attempts import fails_at_once, may_be_retried

from airflow_provider_gptimg.airflow_compat import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSkipException,
)
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgError,
    GptImgRequestError,
    GptImgTaskFailedError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor


def sensor(gptimg_task_id, **arguments) -> GptImgTaskSensor:
    return GptImgTaskSensor(**{"task_id": "wait", "gptimg_task_id": gptimg_task_id, "timeout": 20} | arguments)


class TestResult:
    def test_is_the_finished_task(self, emulator, instance, deferrable):
        task_id = emulator.add_task(n=2, polls=3, formats=("png", "webp"))
        result = instance.attempt(sensor(task_id, deferrable=deferrable))
        api = as_the_api_says(emulator, task_id)
        assert result == {name: api[name] for name in api if name != "error"} | {"credits": 4}
        assert list(result) == [
            *("task_id", "id", "status", "type", "provider", "model", "media_url", "images"),
            *("created_at", "updated_at", "credits"),
        ]
        assert [image["content_type"] for image in result["images"]] == ["image/png", "image/webp"]
        assert json.loads(json.dumps(result)) == result

    def test_of_a_list_is_a_list_in_the_same_order(self, emulator, instance, deferrable):
        task_ids = [emulator.add_task(polls=polls) for polls in (4, 1, 3, 2)]
        result = instance.attempt(sensor(task_ids, deferrable=deferrable))
        assert [task["task_id"] for task in result] == task_ids

    def test_of_a_list_of_one_is_a_list(self, emulator, instance, deferrable):
        (task,) = instance.attempt(sensor([emulator.add_task(polls=2)], deferrable=deferrable))
        assert task["status"] == "completed"

    def test_of_a_task_named_twice_is_there_twice(self, emulator, instance, deferrable):
        task_id = emulator.add_task(polls=2)
        result = instance.attempt(sensor([task_id, task_id], deferrable=deferrable))
        assert [task["task_id"] for task in result] == [task_id, task_id]
        assert len(emulator.task(task_id).poll_times) <= 4

    def test_of_a_finished_task_is_the_same_without_a_call(self, emulator, instance, deferrable):
        finished = instance.attempt(sensor(emulator.add_task(n=2)))
        polls = len(emulator.calls)
        assert instance.attempt(sensor(finished, deferrable=deferrable)) == finished
        assert len(emulator.calls) == polls

    def test_of_ids_and_finished_tasks_mixed(self, emulator, instance, deferrable):
        finished = instance.attempt(sensor(emulator.add_task()))
        waiting = emulator.add_task(polls=3)
        result = instance.attempt(sensor([waiting, finished, waiting], deferrable=deferrable))
        assert [task["task_id"] for task in result] == [waiting, finished["task_id"], waiting]
        assert result[1] == finished

    @pytest.mark.parametrize(
        "spoiled",
        [{"status": "processing"}, {"images": []}, {"images": None}, {"images": [{}]}],
        ids=lambda spoiled: json.dumps(spoiled),
    )
    def test_of_a_dict_that_is_not_finished_is_asked_for(self, emulator, instance, spoiled):
        finished = instance.attempt(sensor(emulator.add_task()))
        assert instance.attempt(sensor(finished | spoiled)) == finished

    @pytest.mark.parametrize(
        "wrong",
        ["", "a/b", "../secret", "a?key=1", None, 7, [], [None], {}, {"id": "x"}, [["id"]], "['a', 'b']"],
        ids=repr,
    )
    def test_what_is_no_task_is_refused_before_any_call(self, emulator, instance, deferrable, wrong):
        with fails_at_once(GptImgRequestError) as caught:
            instance.attempt(sensor(wrong, deferrable=deferrable))
        assert "gptimg_task_id" in str(caught.value)
        assert emulator.calls == []


def as_the_api_says(emulator, task_id) -> dict:
    url = f"{emulator.base_url}/api/v1/images/task/{task_id}"
    return httpx.get(url, headers={"Authorization": f"Bearer {emulator.api_key}"}).json()["data"]


class TestWaiting:
    def test_what_is_finished_already_does_not_defer(self, emulator, instance):
        instance.attempt(sensor([emulator.add_task(), emulator.add_task()], deferrable=True))
        assert instance.deferrals == []
        assert len(emulator.calls) == 2

    def test_what_failed_already_does_not_defer(self, emulator, instance):
        with may_be_retried(GptImgTaskFailedError):
            instance.attempt(sensor(emulator.add_task(status="failed"), deferrable=True))
        assert instance.deferrals == []

    def test_only_the_unfinished_are_waited_for_in_the_triggerer(self, emulator, instance):
        done, waiting = emulator.add_task(), emulator.add_task(status="processing")
        assert instance.defer(sensor([done, waiting], deferrable=True)).trigger.gptimg_task_id == [waiting]

    def test_on_a_worker_it_does_not_defer(self, emulator, instance):
        instance.attempt(sensor(emulator.add_task(polls=3), deferrable=False))
        assert instance.deferrals == []
        assert len(emulator.calls) == 3

    def test_renders_ids_and_connection(self, emulator, instance):
        operator = sensor(["{{ one }}", {"task_id": "{{ two }}"}], gptimg_conn_id="gptimg_{{ 'default' }}")
        operator.render_template_fields({"one": emulator.add_task(), "two": emulator.add_task()})
        assert len(instance.attempt(operator)) == 2

    @pytest.mark.parametrize(
        ("arguments", "interval"),
        [({}, 5), ({"poll_interval": 7}, 7), ({"poke_interval": 8}, 8), ({"poke_interval": timedelta(seconds=9)}, 9)],
        ids=repr,
    )
    def test_poke_interval_is_the_poll_interval(self, arguments, interval):
        operator = sensor("id", **arguments)
        assert operator.poke_interval == interval
        assert operator.poll_interval == (interval if arguments else None)


class TestDeadline:
    def deadline(self, instance, task_id, **arguments) -> float:
        deferred = instance.defer(sensor(task_id, deferrable=True, **arguments))
        assert deferred.kwargs == {"deadline": deferred.trigger.deadline}
        assert deferred.timeout is None
        return deferred.trigger.deadline

    def test_counts_from_submission(self, emulator, instance):
        submitted = time.time() - 100
        task_id = emulator.add_task(status="processing", created_at=submitted)
        assert self.deadline(instance, task_id, timeout=600) == pytest.approx(submitted + 600, abs=30)

    def test_counts_anew_once_it_is_used_up(self, emulator, instance):
        task_id = emulator.add_task(status="processing", created_at=time.time() - 3600)
        assert self.deadline(instance, task_id, timeout=600) == pytest.approx(time.time() + 600, abs=30)

    def test_counts_from_the_youngest_of_a_list(self, emulator, instance):
        now = time.time()
        task_ids = [emulator.add_task(status="processing", created_at=now - age) for age in (300, 100, 200)]
        assert self.deadline(instance, task_ids, timeout=600) == pytest.approx(now + 500, abs=30)

    def test_does_not_depend_on_clocks_that_agree(self, emulator, instance):
        """The age is told by the API's clock alone: `created_at` against the answer's `Date`."""
        data = {"task_id": "id", "status": "processing", "created_at": "2020-01-01T00:00:00.000Z"}
        date = {"Date": "Wed, 01 Jan 2020 00:00:20 GMT"}
        emulator.fault("poll", "body", body=json.dumps({"success": True, "data": data}), headers=date)
        assert self.deadline(instance, "id", timeout=60) == pytest.approx(time.time() + 40, abs=15)

    def test_is_kept_over_a_second_deferral(self, emulator, instance):
        task_id = emulator.add_task(status="processing", created_at=time.time() - 50)
        operator = sensor(task_id, deferrable=True, timeout=600)
        first = instance.defer(operator)
        operator.execute = lambda context: operator.execute_complete(context, {"status": "finished"}, **first.kwargs)
        assert instance.defer(operator).trigger.deadline == first.trigger.deadline

    def test_ends_the_wait(self, emulator, instance, deferrable):
        tasks = [emulator.add_task(status="processing"), emulator.add_task(), emulator.add_task(status="processing")]
        with may_be_retried(GptImgTimeoutError) as caught:
            instance.attempt(sensor(tasks, deferrable=deferrable, timeout=0.2))
        assert tasks[0] in str(caught.value)
        assert tasks[2] in str(caught.value)
        assert tasks[1] not in str(caught.value)
        assert "Of 3 image tasks 2 failed" in str(caught.value)

    def test_a_task_that_finishes_at_the_last_moment_counts(self, emulator, instance):
        task_id = emulator.add_task(status="processing")
        operator = sensor(task_id, deferrable=True, timeout=0.1)
        deferred = instance.defer(operator)
        emulator.finish(task_id)
        result = operator.execute_complete(instance.context, {"status": "timeout"}, **deferred.kwargs)
        assert result["status"] == "completed"


class TestEvents:
    """The event only says that it is time to look: what is so, the API says."""

    @pytest.mark.parametrize(
        "event",
        [
            {"status": "finished"},
            {"status": "completed", "task_id": "of an older release"},
            {"status": "unheard of"},
            {"unheard": "of"},
            "success",
            None,
            [],
            7,
        ],
        ids=repr,
    )
    def test_of_any_kind_resumes(self, emulator, instance, event):
        task_id = emulator.add_task()
        result = sensor(task_id, deferrable=True).execute_complete(instance.context, event)
        assert result["task_id"] == task_id

    def test_that_comes_too_early_defers_again(self, emulator, instance):
        operator = sensor(emulator.add_task(status="processing"), deferrable=True)
        operator.execute = lambda context: operator.execute_complete(context, {"status": "finished"}, deadline=None)
        assert instance.defer(operator).trigger.deadline > time.time()

    @pytest.mark.parametrize(
        "error",
        [{"type": "GptImgAuthError", "message": "no", "http_status": 401}, None, "text", {}, {"type": "Exception"}],
        ids=repr,
    )
    def test_with_an_error_is_not_the_apis_last_word(self, emulator, instance, error):
        """A page of a firewall in front of the triggerer, say: the resumed task asks itself."""
        event = {"status": "error", "error": error}
        task_id = emulator.add_task()
        result = sensor(task_id, deferrable=True).execute_complete(instance.context, event)
        assert result["task_id"] == task_id


class TestFailure:
    def test_of_some_names_all_that_failed(self, emulator, instance, deferrable):
        tasks = [
            emulator.add_task(polls=2),
            emulator.add_task(polls=3, error="first"),
            emulator.add_task(polls=1, error="second"),
            "gpt-image-2-unknown",
        ]
        with may_be_retried(GptImgTaskFailedError) as caught:
            instance.attempt(sensor(tasks, deferrable=deferrable))
        assert "first" in str(caught.value)
        assert f"Of 4 image tasks 3 failed: {', '.join(tasks[1:])}" in str(caught.value)

    @pytest.fixture(
        params=[
            ({"error": "no", "polls": 3}, 20),
            ({"status": "processing"}, 0.1),
            ({"user": "other"}, 20),
        ],
        ids=["failed", "late", "unknown"],
    )
    def failing(self, request, emulator, deferrable):
        task, timeout = request.param
        emulator.add_key("other-key", user="other")
        task_id = emulator.add_task(**task)
        return lambda **more: sensor(task_id, deferrable=deferrable, timeout=timeout, **more)

    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_skips_with(self, instance, failing, how):
        with pytest.raises(AirflowSkipException):
            instance.attempt(failing(**{how: True}))

    def test_fails_without(self, instance, failing):
        with pytest.raises((GptImgError, AirflowFailException)):
            instance.attempt(failing())

    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_skips_when_the_key_is_rejected_with(self, emulator, instance, deferrable, how):
        emulator.fault("poll", 401, times=None)
        with pytest.raises(AirflowSkipException):
            instance.attempt(sensor(emulator.add_task(), deferrable=deferrable, **{how: True}))


class TestReschedule:
    """`mode="reschedule"` frees the worker between polls."""

    def test_asks_once_and_gives_the_worker_back(self, emulator, instance):
        operator = sensor(emulator.add_task(polls=3), mode="reschedule", poke_interval=30)
        for polls in (1, 2):
            with pytest.raises(AirflowRescheduleException) as caught:
                instance.attempt(operator)
            assert caught.value.reschedule_date > datetime.now(UTC) + timedelta(seconds=20)
            assert len(emulator.calls) == polls
            instance.first_reschedule = datetime.now(UTC)
        assert instance.attempt(operator)["status"] == "completed"

    @pytest.mark.parametrize("where", ["connection", "task"])
    @pytest.mark.parametrize(
        ("told", "age", "seconds"),
        [({}, 0, 39.5), ({}, 50, 5), ({"poll_interval": 60}, 50, 60), ({"first_poll_after": 20}, 0, 20)],
        ids=str,
    )
    def test_comes_back_when_a_held_wait_would(self, emulator, instance, connect, where, told, age, seconds):
        connect(emulator, **(told if where == "connection" else {}))
        task_id = emulator.add_task(status="processing", created_at=time.time() - age)
        with pytest.raises(AirflowRescheduleException) as caught:
            instance.attempt(sensor(task_id, mode="reschedule", **(told if where == "task" else {})))
        pause = (caught.value.reschedule_date - datetime.now(UTC)).total_seconds()
        assert seconds - 3 < pause < 1.1 * seconds

    def test_backs_off_as_airflow_does_if_told_so(self, emulator, instance):
        operator = sensor(emulator.add_task(status="processing"), mode="reschedule", exponential_backoff=True)
        now = datetime.now(UTC)
        with pytest.raises(AirflowRescheduleException) as caught:
            instance.attempt(operator)
        assert caught.value.reschedule_date < now + timedelta(seconds=30)

    def test_of_a_list_returns_a_list(self, emulator, instance):
        tasks = [emulator.add_task(), emulator.add_task()]
        result = instance.attempt(sensor(tasks, mode="reschedule"))
        assert [task["task_id"] for task in result] == tasks

    def test_times_out_from_submission(self, emulator, instance):
        instance.first_reschedule = datetime.now(UTC) - timedelta(seconds=90)
        task_id = emulator.add_task(status="processing", created_at=time.time() - 100)
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(sensor(task_id, mode="reschedule", timeout=95))

    def test_has_its_timeout_anew_at_a_later_attempt(self, emulator, instance):
        task_id = emulator.add_task(status="processing", created_at=time.time() - 3600)
        operator = sensor(task_id, mode="reschedule", timeout=95)
        instance.first_reschedule = datetime.now(UTC) - timedelta(seconds=90)
        with pytest.raises(AirflowRescheduleException):
            instance.attempt(operator)
        instance.first_reschedule = datetime.now(UTC) - timedelta(seconds=96)
        with may_be_retried(GptImgTimeoutError):
            instance.attempt(operator)

    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    @pytest.mark.parametrize("task", [{"error": "no"}, {"user": "other"}], ids=["failed", "unknown"])
    def test_skips_with(self, emulator, instance, how, task):
        emulator.add_key("other-key", user="other")
        with pytest.raises(AirflowSkipException):
            instance.attempt(sensor(emulator.add_task(**task), mode="reschedule", **{how: True}))

    def test_fails_at_once_where_no_other_attempt_helps(self, emulator, instance):
        emulator.fault("poll", 401, times=None)
        with fails_at_once(GptImgAuthError):
            instance.attempt(sensor(emulator.add_task(), mode="reschedule"))

    def test_gives_way_to_deferrable(self, emulator, instance):
        instance.attempt(sensor(emulator.add_task(polls=2), mode="reschedule", deferrable=True))
        assert len(instance.deferrals) == 1


def test_logs_each_change_of_status_and_what_was_made(emulator, instance, deferrable, log):
    task_id = emulator.add_task(n=2, polls=30)
    instance.attempt(sensor(task_id, deferrable=deferrable, poll_interval=0.001))
    lines = [line for line in log().splitlines() if f"Image task {task_id}" in line]
    assert len(emulator.calls) >= 30
    assert re.search(r"processing, \d+ s of a typical 45–60 s", lines[0])
    assert sum("processing" in line for line in lines) == (2 if deferrable else 1)
    assert "completed: 2 images, 4 credits" in lines[-1]


def test_on_kill_says_that_the_images_are_paid_for(log):
    sensor("id").on_kill()
    assert "paid for" in log()
