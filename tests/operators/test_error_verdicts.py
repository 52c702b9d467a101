# SPDX-License-Identifier: Apache-2.0
"""What each error means to Airflow: fail at once, retry, or retry when the API said."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk import DAG, ExceptionRetryPolicy, RetryRule, task
from airflow.sdk.definitions.retry_policy import RetryAction
from attempts import fails_at_once, may_be_retried

from airflow_provider_gptimg import exceptions
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgContentPolicyError,
    GptImgInsufficientCreditsError,
    GptImgProtocolError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator
from airflow_provider_gptimg.verdicts import airflow_verdict

NO_OTHER_ATTEMPT = {
    GptImgRequestError,
    GptImgAuthError,
    GptImgInsufficientCreditsError,
    GptImgTaskNotFoundError,
    GptImgSubmissionUnknownError,
    GptImgContentPolicyError,
}
ALL_ERRORS = [getattr(exceptions, name) for name in exceptions.__all__]

SUBMIT_FAULTS = [
    (400, GptImgRequestError),
    (422, GptImgRequestError),
    (401, GptImgAuthError),
    (403, GptImgAuthError),
    (402, GptImgInsufficientCreditsError),
    (404, GptImgRequestError),
    (429, GptImgRateLimitError),
    (500, GptImgServerError),
    (503, GptImgServerError),
    ("html", GptImgSubmissionUnknownError),
    ("empty", GptImgSubmissionUnknownError),
    ("redirect", GptImgSubmissionUnknownError),
    ("lost_before", GptImgSubmissionUnknownError),
    ("lost_after", GptImgSubmissionUnknownError),
    ("cut_after", GptImgSubmissionUnknownError),
    ("hang_before", GptImgSubmissionUnknownError),
    ("hang_after", GptImgSubmissionUnknownError),
]


def verdict(error_type):
    return fails_at_once(error_type) if error_type in NO_OTHER_ATTEMPT else may_be_retried(error_type)


@pytest.mark.parametrize("error_type", ALL_ERRORS, ids=lambda error: error.__name__)
def test_the_table_of_errors(error_type):
    with verdict(error_type), airflow_verdict():
        raise error_type("it went wrong", code="CODE", http_status=418, request_id="req-1")


def test_the_verdict_keeps_the_text(emulator, instance):
    emulator.fault("submit", 400, code="BAD_STYLE", message="no such style", request_id="req-7")
    with fails_at_once(GptImgRequestError) as caught:
        instance.attempt(GptImgSubmitOperator(task_id="submit", prompt="a cat"))
    for told in ("no such style", "HTTP 400", "code=BAD_STYLE", "request_id=req-7"):
        assert told in str(caught.value)


@pytest.mark.parametrize(("fault", "error_type"), SUBMIT_FAULTS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("operator", [GptImgSubmitOperator, GptImgGenerateOperator])
def test_a_submit_that_goes_wrong(emulator, instance, quick, hasty, log, operator, fault, error_type):
    if "hang" in str(fault):
        quick(timeout=0.5)
    emulator.fault("submit", fault, times=None)
    with verdict(error_type) as caught:
        instance.attempt(operator(task_id="submit", prompt="a cat"))
    assert emulator.api_key not in str(caught.value) + log()
    posts = len(emulator.calls)
    if error_type is GptImgSubmissionUnknownError:
        assert posts == 1
        assert [known.is_unknown for known in instance.submissions] == [True]
    else:
        assert not any(known.is_unknown for known in instance.submissions)
        assert posts == (5 if error_type in (GptImgRateLimitError, GptImgServerError) else 1)


@pytest.mark.parametrize("fault", [429, 500], ids=str)
def test_a_submit_that_certainly_was_not_accepted_is_repeated_at_once(emulator, instance, hasty, fault):
    emulator.fault("submit", fault, times=3)
    task_id = instance.attempt(GptImgSubmitOperator(task_id="submit", prompt="a cat"))
    assert [task.task_id for task in emulator.tasks] == [task_id]
    assert instance.xcoms["credits"] == 2


def test_a_long_retry_after_is_left_to_airflow(emulator, instance):
    emulator.fault("submit", 429, retry_after=900)
    with may_be_retried(GptImgRateLimitError) as caught:
        instance.attempt(GptImgSubmitOperator(task_id="submit", prompt="a cat"))
    assert caught.value.retry_after == 900
    assert len(emulator.calls) == 1


class TestWhileWaiting:
    """Errors of a poll: at the first one, on the worker, and in the triggerer, whose event brings them back."""

    @pytest.fixture(params=["sensor", "transfer", "generate"])
    def wait(self, request, emulator, s3, instance, deferrable):
        """Wait for an image task that ends at its second poll."""

        def run(timeout=10.0):
            common = {"task_id": "wait", "deferrable": deferrable, "timeout": timeout}
            if request.param == "generate":
                return instance.attempt(GptImgGenerateOperator(prompt="a cat", **common))
            task_id = emulator.add_task(polls=2)
            if request.param == "sensor":
                return instance.attempt(GptImgTaskSensor(gptimg_task_id=task_id, **common))
            return instance.attempt(GptImgToS3Operator(gptimg_task_id=task_id, s3_bucket="images", **common))

        return run

    @pytest.mark.parametrize(
        ("fault", "error_type"),
        [(401, GptImgAuthError), (403, GptImgAuthError), (404, GptImgTaskNotFoundError), (400, GptImgRequestError)],
        ids=lambda value: getattr(value, "__name__", value),
    )
    @pytest.mark.parametrize("first", [None, 503], ids=["at once", "later"])
    def test_no_waiting_mends_it(self, emulator, wait, fault, error_type, first):
        if first:
            emulator.fault("poll", first)
        emulator.fault("poll", fault, times=None, request_id="req-9")
        with fails_at_once(error_type) as caught:
            wait()
        assert "request_id=req-9" in str(caught.value)

    @pytest.mark.parametrize("fault", [429, 500, "html", "empty", "lost_before", "cut_after"])
    def test_an_outage_is_ridden_out(self, emulator, wait, fault):
        emulator.fault("poll", fault, times=2)
        assert wait()

    def test_an_outage_that_outlives_the_timeout_is_named(self, emulator, wait):
        emulator.fault("poll", 503, times=None, message="down for maintenance")
        with may_be_retried(GptImgTimeoutError) as caught:
            wait(timeout=0.2)
        assert "down for maintenance" in str(caught.value)


def decorated(**arguments):
    return task.gptimg(task_id="decorated", **arguments)(lambda: "a cat")().operator


MAKERS = {
    "submit": lambda **arguments: GptImgSubmitOperator(task_id="submit", prompt="a cat", **arguments),
    "generate": lambda **arguments: GptImgGenerateOperator(task_id="generate", prompt="a cat", **arguments),
    "sensor": lambda **arguments: GptImgTaskSensor(task_id="sensor", gptimg_task_id="id", **arguments),
    "transfer": lambda **arguments: GptImgToS3Operator(task_id="transfer", gptimg_task_id="id", **arguments),
    "decorator": decorated,
}
MAPPED = {
    "submit": lambda: GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["a cat"]),
    "generate": lambda: GptImgGenerateOperator.partial(task_id="generate").expand(prompt=["a cat"]),
    "sensor": lambda: GptImgTaskSensor.partial(task_id="sensor").expand(gptimg_task_id=["id"]),
    "transfer": lambda: GptImgToS3Operator.partial(task_id="transfer").expand(gptimg_task_id=["id"]),
}


class TestRetryPolicy:
    OWN = ExceptionRetryPolicy(rules=[RetryRule(exception=ValueError, action=RetryAction.FAIL)])

    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
    def test_a_rate_limit_is_retried_when_the_api_said(self, make):
        decision = make().retry_policy.evaluate(GptImgRateLimitError("busy", retry_after=42.5), 1, 3)
        assert decision.action is RetryAction.RETRY
        assert decision.retry_delay == timedelta(seconds=42.5)

    @pytest.mark.parametrize(
        "error",
        [GptImgRateLimitError("busy"), GptImgRateLimitError("busy", retry_after=0), GptImgServerError("x"), OSError()],
        ids=repr,
    )
    def test_all_else_is_as_the_task_says(self, error):
        assert MAKERS["submit"]().retry_policy.evaluate(error, 1, 3).action is RetryAction.DEFAULT

    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
    def test_an_argument_overrides_it(self, make):
        assert make(retry_policy=self.OWN).retry_policy is self.OWN

    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
    def test_default_args_override_it(self, make):
        with DAG("with_a_policy", default_args={"retry_policy": self.OWN}):
            assert make().retry_policy is self.OWN

    @pytest.mark.parametrize("make", MAPPED.values(), ids=MAPPED.keys())
    def test_a_mapped_task_has_it_too(self, make):
        with DAG("mapped"):
            mapped = make()
        one = mapped.unmap({next(iter(mapped.expand_input.value)): "id"})
        assert one.retry_policy.evaluate(GptImgRateLimitError("busy", retry_after=3), 1, 3).action is RetryAction.RETRY

    def test_a_dag_with_it_can_be_serialized(self):
        from airflow.serialization.serialized_objects import DagSerialization

        with DAG("serialized") as dag:
            for make in MAKERS.values():
                make(retries=2)
        DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))


def test_a_task_that_failed_may_be_retried(emulator, instance, deferrable):
    task_id = emulator.add_task(polls=2, error={"code": "OVERLOADED", "message": "refused"})
    with may_be_retried(GptImgTaskFailedError) as caught:
        instance.attempt(GptImgTaskSensor(task_id="sensor", gptimg_task_id=task_id, deferrable=deferrable))
    assert caught.value.code == "OVERLOADED"
    assert "refunded" in str(caught.value)


def test_a_protocol_error_at_take_up_may_be_retried(emulator, instance, hasty):
    instance.kill(GptImgSubmitOperator(task_id="submit", prompt="a cat"))
    emulator.fault("poll", "html", times=None)
    with may_be_retried(GptImgProtocolError):
        instance.attempt(GptImgSubmitOperator(task_id="submit", prompt="a cat"))
