# SPDX-License-Identifier: Apache-2.0
"""Requests of a batch that were refused for what they ask: final, while the others go on."""

from __future__ import annotations

from typing import Any

import pytest
from batch_instance import batch

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgContentPolicyError, GptImgTaskFailedError

pytestmark = pytest.mark.usefixtures("s3")

REFUSED = {"code": "moderation_blocked", "message": "The prompt was refused."}
REQUESTS = ["Refused", "Unlucky", "Lucky"]


def submitted(emulator: Any) -> list[str]:
    return [task.prompt for task in emulator.tasks]


def run_first_attempt(emulator: Any, instance: Any) -> None:
    """One request is refused, one fails by chance, one is mirrored."""
    emulator.fault("submit", "fail", error=REFUSED)
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError, match="Of 3 requests 1 are mirrored, 2 failed") as caught:
        instance.run(batch(REQUESTS, max_in_flight=1))
    assert type(caught.value) is GptImgTaskFailedError, "another attempt mends this one"


def test_a_retry_submits_only_what_failed_by_chance(emulator, instance, deferrable):
    run_first_attempt(emulator, instance)
    with pytest.raises(AirflowFailException, match="Of 3 requests 2 are mirrored, 1 failed") as caught:
        instance.retry().run(batch(REQUESTS, deferrable=deferrable))
    assert type(caught.value.__cause__) is GptImgContentPolicyError
    assert "moderation_blocked" in str(caught.value)
    assert sorted(submitted(emulator)) == ["Lucky", "Refused", "Unlucky", "Unlucky"]


def test_a_refusal_that_a_killed_attempt_did_not_see_is_final_too(emulator, instance, monkeypatch):
    from airflow_provider_gptimg.batch.run import Batch

    class Killed(BaseException):
        pass

    def kill(batch: Batch) -> None:
        raise Killed

    emulator.fault("submit", "fail", error=REFUSED)
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "hold", kill)
        with pytest.raises(Killed):
            instance.run(batch(["Refused"]))
    with pytest.raises(AirflowFailException) as caught:
        instance.retry().run(batch(["Refused"]))
    assert type(caught.value.__cause__) is GptImgContentPolicyError
    assert submitted(emulator) == ["Refused"]


def test_a_clear_submits_it_again(emulator, instance):
    run_first_attempt(emulator, instance)
    assert instance.clear().run(batch(REQUESTS))["mirrored"] == 3
    assert sorted(submitted(emulator)) == ["Lucky", "Refused", "Refused", "Unlucky", "Unlucky"]


def test_another_prompt_in_its_place_is_submitted(emulator, instance):
    run_first_attempt(emulator, instance)
    assert instance.retry().run(batch(["Milder", *REQUESTS[1:]]))["mirrored"] == 3


def test_a_partial_success_counts_it_as_failed(emulator, instance):
    emulator.fault("submit", "fail", error=REFUSED)
    summary = instance.run(batch(REQUESTS, max_in_flight=1, on_partial_failure="succeed"))
    assert (summary["mirrored"], summary["failed"], summary["credits"]) == (2, 1, 4)
    assert "moderation_blocked" in summary["errors"][0]
