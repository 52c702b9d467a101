# SPDX-License-Identifier: Apache-2.0
"""A generation that was refused for what its prompt asks: whoever waits for it fails for good."""

from __future__ import annotations

from typing import Any

import pytest
from attempts import fails_at_once, may_be_retried

from airflow_provider_gptimg.exceptions import GptImgContentPolicyError, GptImgRequestError, GptImgTaskFailedError
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

REFUSED = {"code": "content_policy_violation", "message": "The prompt was refused."}


def kinds(emulator: Any) -> list[str]:
    return [entry.kind for entry in emulator.ledger]


def generate(**arguments: Any) -> GptImgGenerateOperator:
    return GptImgGenerateOperator(task_id="generate", prompt="a cat", **arguments)


def test_generate_fails_for_good(emulator, instance, deferrable):
    emulator.fault("submit", "fail", error=REFUSED)
    with fails_at_once(GptImgContentPolicyError) as caught:
        instance.attempt(generate(deferrable=deferrable))
    assert "content_policy_violation" in str(caught.value)
    assert kinds(emulator) == ["charge", "refund"]


@pytest.mark.parametrize("end_from_trigger", [False, True])
def test_a_sensor_fails_for_good(emulator, instance, deferrable, end_from_trigger):
    task_id = emulator.add_task(polls=2, error=REFUSED)
    sensor = GptImgTaskSensor(
        task_id="sensor", gptimg_task_id=task_id, deferrable=deferrable, end_from_trigger=end_from_trigger
    )
    with fails_at_once(GptImgContentPolicyError):
        instance.attempt(sensor)


def test_a_transfer_mirrors_the_others_and_fails_for_good(emulator, instance, s3, deferrable):
    refused, good = emulator.add_task(polls=2, error=REFUSED), emulator.add_task()
    transfer = GptImgToS3Operator(
        task_id="mirror", gptimg_task_id=[refused, good], s3_bucket="images", deferrable=deferrable
    )
    with fails_at_once(GptImgContentPolicyError):
        instance.attempt(transfer)
    assert [found["Key"] for found in s3.list_objects_v2(Bucket="images")["Contents"]] == [f"gptimg/{good}/0.png"]


def test_the_hook_raises_it(emulator):
    with pytest.raises(GptImgContentPolicyError) as caught:
        GptImgHook().wait(emulator.add_task(error=REFUSED))
    assert isinstance(caught.value, GptImgTaskFailedError)


def test_the_retry_of_a_killed_attempt_does_not_submit_it_again(emulator, instance):
    """The attempt died before it saw the refusal; the next one sees it first."""
    emulator.fault("submit", "fail", error=REFUSED)
    instance.kill(generate())
    for _ in range(2):
        with fails_at_once(GptImgContentPolicyError):
            instance.attempt(generate())
    assert kinds(emulator) == ["charge", "refund"]


def test_the_same_of_a_submit(emulator, instance):
    emulator.fault("submit", "fail", error=REFUSED)
    submit = GptImgSubmitOperator(task_id="submit", prompt="a cat")
    instance.kill(submit)
    with pytest.raises(GptImgContentPolicyError):
        GptImgHook().wait(emulator.tasks[0].task_id)
    with fails_at_once(GptImgContentPolicyError):
        instance.attempt(submit)
    assert kinds(emulator) == ["charge", "refund"]


def test_a_clear_submits_again(emulator, instance):
    """A person asked for it: the policy may have changed."""
    emulator.fault("submit", "fail", error=REFUSED)
    with fails_at_once(GptImgContentPolicyError):
        instance.attempt(generate())
    instance.clear()
    assert instance.attempt(generate())["status"] == "completed"
    assert kinds(emulator) == ["charge", "refund", "charge"]


def test_another_prompt_submits_without_a_clear(emulator, instance):
    emulator.fault("submit", "fail", error=REFUSED)
    instance.kill(generate())
    assert instance.attempt(GptImgGenerateOperator(task_id="generate", prompt="a dog"))["status"] == "completed"


def test_the_connection_says_which_codes_are_final(emulator, instance, quick):
    quick(final_failure_codes="no_cats*, no_dogs*")
    emulator.fault("submit", "fail", error={"code": "NO_CATS_TODAY", "message": "No."})
    with fails_at_once(GptImgContentPolicyError):
        instance.attempt(generate())
    emulator.fault("submit", "fail", error=REFUSED)
    instance.clear()
    with may_be_retried(GptImgTaskFailedError):
        instance.attempt(generate())


def test_patterns_that_are_none_are_refused_before_anything_is_sent(emulator, instance, quick):
    quick(final_failure_codes=7)
    with fails_at_once(GptImgRequestError) as caught:
        instance.attempt(generate())
    assert "'gptimg_default': final_failure_codes=7 is not a list of patterns" in str(caught.value)
    assert emulator.calls == []
