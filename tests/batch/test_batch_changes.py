# SPDX-License-Identifier: Apache-2.0
"""What a batch does when its requests, or its objects, are not what they were: between attempts, and within one."""

from __future__ import annotations

from typing import Any

import pytest
from batch_instance import Instance, batch, prompts

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import GptImgInsufficientCreditsError, GptImgTaskFailedError

pytestmark = pytest.mark.usefixtures("s3")


def charges(emulator: Any) -> list[str]:
    """The prompts that were paid for and not refunded, in order."""
    return sorted(task.prompt for task in emulator.tasks if task.status != "failed")


def test_a_list_that_changes_while_it_is_deferred_is_not_paid_for(emulator: Any, instance: Instance, s3: Any) -> None:
    """Airflow renders arguments, and we read an object, anew in each leg."""
    texts = prompts(10)

    def change() -> None:
        texts[:] = [f"{text} again" for text in texts]
        s3.put_object(Bucket="images", Key="in.jsonl", Body="\n".join(f'"{text}"' for text in texts))

    s3.put_object(Bucket="images", Key="in.jsonl", Body="\n".join(f'"{text}"' for text in texts))
    with pytest.raises(AirflowFailException, match="requests changed while the task was deferred") as caught:
        instance.run(batch("s3://images/in.jsonl", deferrable=True, max_in_flight=4, max_credits=20), change)

    assert charges(emulator) == sorted(prompts(4))
    assert instance.xcoms["credits"] == 8
    for task in emulator.tasks:
        assert task.task_id in str(caught.value), "a person can mirror it"


def test_what_is_under_way_when_the_list_grows_is_mirrored_all_the_same(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    requests = prompts(10)
    operator = batch(requests, deferrable=True, max_in_flight=4, max_credits=20)
    with pytest.raises(AirflowFailException, match=r"requests changed .* Of \d+ requests 4 are mirrored"):
        instance.run(operator, lambda: requests.append("More than max_credits allows"))
    assert charges(emulator) == sorted(prompts(4))
    assert s3.list_objects_v2(Bucket="images")["KeyCount"] == 4


def test_a_list_in_another_order_is_the_same_while_it_is_deferred(emulator: Any, instance: Instance) -> None:
    requests = [*prompts(6), "Twice", "Twice"]
    operator = batch(requests, deferrable=True, max_in_flight=4)
    summary = instance.run(operator, requests.reverse)
    assert (summary["mirrored"], len(emulator.tasks)) == (8, 8)
    assert instance.deferrals > 1


def test_the_journal_grows_by_few_values_with_each_deferral(emulator: Any, instance: Instance) -> None:
    instance.run(batch(prompts(100), deferrable=True, max_in_flight=10))
    assert instance.deferrals > 5
    assert instance.store is not None
    assert len(instance.store.segments) < 100 / 5


def test_what_was_paid_for_and_never_delivered_is_taken_up_after_a_clear(emulator: Any, instance: Instance) -> None:
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError, match="Of 3 requests 2 are mirrored"):
        instance.run(batch(["A", "B", "C"], max_in_flight=1))
    shorter = instance.retry()
    shorter.run(batch(["A"]))
    assert charges(emulator) == ["A", "B", "C"]

    others = shorter.clear()
    others.run(batch(["B", "C"]))
    assert others.xcoms["credits"] == 0
    assert charges(emulator) == ["A", "B", "C"]

    anew = others.clear()
    anew.run(batch(["B", "C"]))
    assert charges(emulator) == ["A", "B", "B", "C", "C"], "now they were delivered"


def test_of_equal_requests_the_one_that_is_paid_for_is_taken(emulator: Any, instance: Instance) -> None:
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError, match="Of 2 requests 1 are mirrored"):
        instance.run(batch(["A", "A"], max_in_flight=1))
    again = instance.retry()
    assert again.run(batch(["A"]))["taken_up"] == 1
    assert charges(emulator) == ["A"]


def test_an_object_that_somebody_wrote_anew_is_no_image_of_the_batch(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError, match="Of 3 requests 2 are mirrored"):
        instance.run(batch(prompts(3), max_in_flight=1))
    key = s3.list_objects_v2(Bucket="images")["Contents"][0]["Key"]
    s3.put_object(Bucket="images", Key=key, Body=b"somebody else's")
    with pytest.raises(AirflowFailException, match=f"s3://images/{key} exists and is not this image"):
        instance.retry().run(batch(prompts(3)))


def test_a_manifest_without_a_bucket_is_refused_before_paying(emulator: Any, instance: Instance) -> None:
    with pytest.raises(AirflowFailException, match=r"manifest_key='s3://elsewhere/m\.jsonl' names a bucket"):
        instance.run(batch(prompts(3), manifest_key="s3://elsewhere/m.jsonl"))
    assert not emulator.tasks


def test_a_manifest_that_is_refused_hides_no_other_error(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.set_balance(4)

    def take_the_name() -> None:
        s3.put_object(Bucket="images", Key="m.jsonl", Body=b"somebody else's")

    with pytest.raises(AirflowFailException) as caught:
        instance.run(batch(prompts(3), manifest_key="m.jsonl", deferrable=True), take_the_name)
    assert isinstance(caught.value.__cause__, GptImgInsufficientCreditsError)
