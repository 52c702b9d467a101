# SPDX-License-Identifier: Apache-2.0
"""The one way to wait, as Generate, the sensor and the transfer have it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from airflow_names import DAG
from attempts import fails_at_once, may_be_retried

from airflow_provider_gptimg import polling
from airflow_provider_gptimg.airflow_compat import (
    AIRFLOW,
    HAS_TASK_STATE_STORE,
    AirflowSkipException,
    AirflowTaskTimeout,
)
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgRequestError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.hooks.connection import ConnectionSettings
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.hooks.poller import Poller
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


@pytest.fixture(params=["generate", "sensor", "transfer"])
def waiting(request, emulator, s3):
    """Makes an operator that waits for an image task of `polls` polls: None never ends."""

    def make(polls: int | None = 2, **arguments):
        own = {"task_id": "wait", "timeout": 20} | arguments
        if request.param == "generate":
            return GptImgGenerateOperator(prompt="a cat", **own)
        task_id = emulator.add_task(polls=polls) if polls else emulator.add_task(status="processing")
        if request.param == "sensor":
            return GptImgTaskSensor(gptimg_task_id=task_id, **own)
        return GptImgToS3Operator(gptimg_task_id=task_id, s3_bucket="images", **own)

    return make


@pytest.fixture
def unfinished(waiting, clock):
    """The same, of an image task that does not end."""
    clock.stop()
    return lambda **arguments: waiting(None, **arguments)


class TestOnlyTheApisOwnWord:
    @pytest.mark.parametrize(
        ("fault", "options"),
        [
            ("html", {"status": 401}),
            ("html", {"status": 403}),
            ("html", {"status": 404}),
            ("empty", {"status": 403}),
            ("body", {"body": '{"message": "Forbidden"}', "status": 403}),
            ("cut_after", {}),
            (408, {}),
            (409, {}),
            (425, {}),
        ],
        ids=str,
    )
    def test_ends_a_wait(self, emulator, instance, waiting, deferrable, fault, options):
        emulator.fault("poll", fault, times=3, **options)
        assert instance.attempt(waiting(deferrable=deferrable))

    def test_nor_does_a_connection_that_cannot_be_read_again(self, emulator, instance, waiting, monkeypatch):
        """As after each 401 and 403, since the key may have been rotated: what fails a page may fail Vault too."""
        emulator.fault("poll", "html", times=2, status=403)
        load, reads = ConnectionSettings.load, []

        def read_once(*arguments):
            reads.append(arguments)
            if len(reads) > 1:
                raise GptImgRequestError("The connection 'gptimg_default' is not defined")
            return load(*arguments)

        monkeypatch.setattr(ConnectionSettings, "load", read_once)
        hook = GptImgHook()
        monkeypatch.setattr("airflow_provider_gptimg.hooks.gptimg.GptImgHook", lambda conn_id: hook)
        assert instance.attempt(waiting(deferrable=False))
        assert len(reads) == 3

    def test_a_page_that_stays_is_named_by_the_time_out(self, emulator, instance, waiting, deferrable):
        emulator.fault("poll", "html", times=None, status=403)
        with may_be_retried(GptImgTimeoutError) as caught:
            instance.attempt(waiting(deferrable=deferrable, timeout=0.3))
        assert "did not come from the API" in str(caught.value)
        assert "HTTP 403" in str(caught.value)

    @pytest.mark.parametrize("after", [0, 2], ids=["at once", "later"])
    def test_a_task_may_not_be_known_yet(self, emulator, instance, waiting, deferrable, monkeypatch, after):
        """The API's replica that answers may lag behind the one that took the submit."""
        monkeypatch.setattr(polling, "NEW_FOR", 60.0)
        monkeypatch.setattr(polling, "UNSEEN_FOR", 15.0)
        for _ in range(after):
            emulator.fault("poll", 503)
        emulator.fault("poll", 404, times=2)
        assert instance.attempt(waiting(deferrable=deferrable))

    def test_a_task_that_stays_unknown_is_lost(self, emulator, instance, waiting, deferrable, monkeypatch):
        monkeypatch.setattr(polling, "NEW_FOR", 0.2)
        monkeypatch.setattr(polling, "UNSEEN_FOR", 0.2)
        emulator.fault("poll", 404, times=None)
        began = time.time()
        with fails_at_once(GptImgTaskNotFoundError):
            instance.attempt(waiting(deferrable=deferrable))
        assert time.time() - began >= 0.2

    def test_an_error_of_the_triggerer_is_not_raised_unasked(self, emulator, instance, waiting):
        """The worker polls itself, and holds on: else the two would hand the task to each other without a pause."""
        operator = waiting(4, deferrable=True)
        deferred = instance.defer(operator)
        event = {"status": "error", "error": {"type": "GptImgAuthError", "message": "A firewall", "http_status": 403}}
        if deferred.kwargs.get("task_id"):
            event["gptimg_task_id"] = deferred.kwargs["task_id"]
        assert operator.execute_complete(instance.context, event, **deferred.kwargs)

    def test_an_error_that_the_api_confirms_is_raised(self, emulator, instance, unfinished):
        operator = unfinished(deferrable=True)
        deferred = instance.defer(operator)
        emulator.revoke_key(emulator.api_key)
        with fails_at_once(GptImgAuthError):
            operator.execute_complete(instance.context, {"status": "error", "error": None}, **deferred.kwargs)


class TestExecutionTimeout:
    def test_bounds_a_deferral(self, instance, unfinished):
        began = instance.start_date = datetime.now(UTC) - timedelta(seconds=10)
        deferred = instance.defer(unfinished(deferrable=True, timeout=600, execution_timeout=timedelta(seconds=60)))
        assert deferred.trigger.deadline == began.timestamp() + 60
        assert deferred.kwargs["deadline"] == deferred.trigger.deadline

    def test_does_not_lengthen_one(self, instance, unfinished):
        deferred = instance.defer(unfinished(deferrable=True, timeout=600, execution_timeout=timedelta(hours=9)))
        assert deferred.trigger.deadline == pytest.approx(time.time() + 600, abs=30)

    def test_that_is_over_ends_the_wait_and_says_so(self, instance, unfinished):
        operator = unfinished(deferrable=True, timeout=600, execution_timeout=timedelta(seconds=1))
        with may_be_retried(GptImgTimeoutError) as caught:
            instance.attempt(operator)
        assert "execution_timeout" in str(caught.value)
        assert instance.events[-1]["status"] == "timeout"

    @pytest.mark.skipif(not HAS_TASK_STATE_STORE, reason="it defers as usual before Airflow 3.3")
    def test_is_a_limit_in_the_triggerer_too(self):
        started = GptImgTaskSensor(
            task_id="wait",
            gptimg_task_id="id",
            deferrable=True,
            start_from_trigger=True,
            execution_timeout=timedelta(seconds=60),
        )
        assert started.start_trigger_args.timeout == timedelta(seconds=60)

    @pytest.mark.skipif(
        AIRFLOW < (3, 0), reason="Airflow 2.11 bounds no trigger of this sensor, which defers without a time-out"
    )
    def test_in_the_triggerer_leaves_the_retries(self, instance):
        """Airflow fails the trigger then, and a sensor of its own would not be retried: but this one is paid for."""
        operator = GptImgTaskSensor(task_id="wait", gptimg_task_id="id", deferrable=True)
        with may_be_retried(GptImgTimeoutError):
            operator.resume_execution("__fail__", {"error": "Trigger timeout"}, instance.context)

    @pytest.mark.skipif(
        AIRFLOW < (3, 0), reason="Airflow 2.11 bounds no trigger of this sensor, which defers without a time-out"
    )
    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_in_the_triggerer_skips_with(self, instance, how):
        operator = GptImgTaskSensor(task_id="wait", gptimg_task_id="id", deferrable=True, **{how: True})
        with pytest.raises(AirflowSkipException):
            operator.resume_execution("__fail__", {"error": "Trigger timeout"}, instance.context)


class TestTimeout:
    def test_may_be_a_timedelta(self, instance, unfinished):
        deferred = instance.defer(unfinished(deferrable=True, timeout=timedelta(minutes=5)))
        assert deferred.trigger.deadline == pytest.approx(time.time() + 300, abs=30)

    def test_says_the_last_status_and_the_way_out_of_a_dead_task(self, emulator, instance, waiting, deferrable):
        answer = {"task_id": None, "status": "canceled"}
        emulator.fault("poll", "body", times=None, body=json.dumps({"success": True, "data": answer}))
        with may_be_retried(GptImgTimeoutError) as caught:
            instance.attempt(waiting(deferrable=deferrable, timeout=0.2))
        assert "'canceled'" in str(caught.value)
        assert "delete what is recorded of it" in str(caught.value)


def test_a_missing_image_is_named(emulator, instance, deferrable, log):
    images = [{"url": f"{emulator.base_url}/{number}.png"} for number in range(3)]
    data = {"status": "completed", "images": images}
    emulator.fault("poll", "body", times=None, body=json.dumps({"success": True, "data": data}))
    instance.attempt(GptImgGenerateOperator(task_id="generate", prompt="a cat", n=4, deferrable=deferrable))
    assert "delivered 3 images of the 4 that were asked for" in log()


def test_one_that_holds_a_worker_says_so_once_and_names_the_way_out(instance, waiting, deferrable, log):
    instance.attempt(waiting(4, deferrable=deferrable))
    assert log().count("deferrable=True") == (0 if deferrable else 1)


class TestSkips:
    """As core sensors do: `soft_fail` for time-outs and final failures, `never_fail` for all."""

    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_when_execution_timeout_ends_it_on_a_worker(self, emulator, instance, monkeypatch, how):
        def time_out(*args: object) -> None:
            raise AirflowTaskTimeout("Timeout, PID: 1")  # as Airflow's timer does, wherever the worker is then

        monkeypatch.setattr(Poller, "finish", time_out)
        task_id = emulator.add_task(status="processing")
        with pytest.raises(AirflowTaskTimeout):
            instance.attempt(GptImgTaskSensor(task_id="wait", gptimg_task_id=task_id, deferrable=False))
        with pytest.raises(AirflowSkipException):
            instance.attempt(GptImgTaskSensor(task_id="wait", gptimg_task_id=task_id, deferrable=False, **{how: True}))

    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_when_execution_timeout_ends_it_in_the_triggerer(self, emulator, instance, how):
        operator = GptImgTaskSensor(
            task_id="wait",
            gptimg_task_id=emulator.add_task(status="processing"),
            deferrable=True,
            execution_timeout=timedelta(seconds=0.2),
            **{how: True},
        )
        with pytest.raises(AirflowSkipException):
            instance.attempt(operator)

    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_when_its_trigger_fails(self, instance, how):
        operator = GptImgTaskSensor(task_id="wait", gptimg_task_id="id", deferrable=True, **{how: True})
        with pytest.raises(AirflowSkipException):
            operator.resume_execution("__fail__", {"error": "Trigger failure"}, instance.context)

    @pytest.mark.parametrize("mode", ["poke", "reschedule"])
    @pytest.mark.parametrize("how", ["soft_fail", "never_fail"])
    def test_when_the_connection_is_missing(self, instance, deferrable, mode, how):
        own = {"task_id": "wait", "gptimg_task_id": "id", "gptimg_conn_id": "not_there", "mode": mode}
        with fails_at_once(GptImgRequestError):
            instance.attempt(GptImgTaskSensor(deferrable=deferrable, **own))
        with pytest.raises(AirflowSkipException, match="not_there"):
            instance.attempt(GptImgTaskSensor(deferrable=deferrable, **own, **{how: True}))

    def test_for_what_nobody_foresaw_with_never_fail_alone(self, emulator, instance, monkeypatch):
        def fall_over(*args: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Poller, "finish", fall_over)
        own = {"task_id": "wait", "gptimg_task_id": emulator.add_task(status="processing"), "deferrable": False}
        with pytest.raises(ZeroDivisionError):
            instance.attempt(GptImgTaskSensor(**own, soft_fail=True))
        with pytest.raises(AirflowSkipException):
            instance.attempt(GptImgTaskSensor(**own, never_fail=True))


class TestPokeInterval:
    @pytest.mark.parametrize("told", [60, timedelta(minutes=1)], ids=repr)
    def test_of_default_args_counts(self, told):
        operator = GptImgTaskSensor(task_id="wait", gptimg_task_id="id", default_args={"poke_interval": told})
        assert (operator.poke_interval, operator.poll_interval) == (60, 60)

    def test_of_default_args_counts_for_a_mapped_sensor(self):
        with DAG("mapped", default_args={"poke_interval": 60}):
            mapped = GptImgTaskSensor.partial(task_id="wait").expand(gptimg_task_id=["id"])
        assert type(mapped).__name__ == "MappedOperator"
        operator = mapped.unmap({"gptimg_task_id": "id"})
        assert (operator.poke_interval, operator.poll_interval) == (60, 60)

    def test_gives_way_to_poll_interval(self):
        operator = GptImgTaskSensor(
            task_id="wait", gptimg_task_id="id", poll_interval=7, default_args={"poke_interval": 60}
        )
        assert (operator.poke_interval, operator.poll_interval) == (7, 7)


class LazySequence(list):
    """What a mapped task's XCom looks like."""

    def __repr__(self) -> str:
        return f"LazyXComSequence([{len(self)} items])"


@pytest.mark.parametrize("empty", [[], LazySequence()], ids=repr)
@pytest.mark.parametrize("operator", [GptImgTaskSensor, GptImgToS3Operator])
def test_an_empty_list_is_refused_in_words(emulator, instance, operator, empty):
    own = {"s3_bucket": "images"} if operator is GptImgToS3Operator else {}
    with fails_at_once(GptImgRequestError) as caught:
        instance.attempt(operator(task_id="wait", gptimg_task_id=empty, **own))
    assert "no image task was submitted" in str(caught.value)
    assert "Lazy" not in str(caught.value)
