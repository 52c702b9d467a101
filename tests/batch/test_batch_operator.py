# SPDX-License-Identifier: Apache-2.0
"""The batch operator against the emulator and an S3 server: what it pays, delivers, tells, and does when repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from airflow_names import DAG, task
from batch_instance import Instance, batch, prompts

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.api.protocol import MAX_ATTEMPTS
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.exceptions import (
    GptImgError,
    GptImgInsufficientCreditsError,
    GptImgRateLimitError,
    GptImgRequestError,
    GptImgServerError,
    GptImgSubmissionUnknownError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
    GptImgTimeoutError,
)


def images_of(emulator: Any) -> dict[str, bytes]:
    """All images that completed tasks have, by the key that they should have in the bucket."""
    return {
        f"gptimg/{task.task_id}/{index}.png": image
        for task in emulator.tasks
        for index, image in enumerate(task.images)
    }


def spent(emulator: Any) -> int:
    return sum(entry.credits if entry.kind == "charge" else -entry.credits for entry in emulator.ledger)


def submits(emulator: Any) -> int:
    return sum(call.method == "POST" for call in emulator.calls)


def most_in_flight(emulator: Any) -> int:
    """The most image tasks that were processed at a time."""
    moments = [(task.created_at, 1) for task in emulator.tasks] + [(task.finished_at, -1) for task in emulator.tasks]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


@contextmanager
def fails(error_type: type[GptImgError], at_once: bool) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect an error of exactly this type, which lets Airflow try again or not."""
    with pytest.raises(AirflowFailException if at_once else error_type) as caught:
        yield caught
    assert type(caught.value.__cause__ if at_once else caught.value) is error_type


def test_brings_all_images_to_s3(
    emulator: Any, instance: Instance, stored: Callable[[], dict[str, bytes]], manifest: Any, deferrable: bool
) -> None:
    requests: list[Any] = [*prompts(20), {"prompt": "Two of it", "n": "2", "aspect_ratio": "16:9"}, "Picture 3"]
    operator = batch(requests, max_in_flight=6, deferrable=deferrable, manifest_key="run.jsonl")

    summary = instance.run(operator)

    assert summary == {
        "requests": 22,
        "mirrored": 22,
        "failed": 0,
        "unknown": 0,
        "not_submitted": 0,
        "taken_up": 0,
        "images": 23,
        "bytes": sum(map(len, images_of(emulator).values())),
        "credits": 46,
        "manifest": "s3://images/run.jsonl",
        "errors": [],
    }
    assert instance.xcoms == {"credits": 46}
    assert spent(emulator) == 46
    assert most_in_flight(emulator) <= 6
    objects = stored()
    del objects["run.jsonl"]
    assert objects == images_of(emulator)
    lines = manifest("run.jsonl")
    assert {line["uri"].removeprefix("s3://images/") for line in lines} == objects.keys()
    in_order = [*prompts(20), "Two of it", "Two of it", "Picture 3"]
    assert [emulator.task(line["task_id"]).prompt for line in lines] == in_order
    assert [line["prompt_sha256"] for line in lines] == [sha256(prompt.encode()).hexdigest() for prompt in in_order]
    assert bool(instance.deferrals) == deferrable


def test_one_that_holds_a_worker_says_so_once_and_names_the_way_out(
    emulator: Any, instance: Instance, s3: Any, deferrable: bool, log: Any
) -> None:
    instance.run(batch(prompts(6), max_in_flight=2, deferrable=deferrable))
    assert log().count("deferrable=True") == (0 if deferrable else 1)


def test_succeeds_with_what_there_is(emulator: Any, instance: Instance, stored: Any) -> None:
    emulator.fault("submit", "fail", times=2)

    summary = instance.run(batch(prompts(6), on_partial_failure="succeed"))

    assert (summary["mirrored"], summary["failed"], summary["credits"]) == (4, 2, 8)
    assert stored() == images_of(emulator)
    assert spent(emulator) == 8


def test_fails_in_the_end_and_does_only_what_is_missing_then(
    emulator: Any, instance: Instance, stored: Any, manifest: Any, deferrable: bool
) -> None:
    operator = batch(prompts(30), max_in_flight=16, deferrable=deferrable, manifest_key="m.jsonl")
    emulator.fault("submit", "fail", times=3)

    with fails(GptImgTaskFailedError, at_once=False) as caught:
        instance.run(operator)

    assert "Of 30 requests 27 are mirrored, 3 failed" in str(caught.value)
    assert len(stored()) == 27 + 1
    assert len(manifest("m.jsonl")) == 27
    assert instance.xcoms["credits"] == 60

    again = instance.retry()
    summary = again.run(operator)

    assert (summary["mirrored"], summary["taken_up"], summary["credits"]) == (30, 27, 60)
    assert again.xcoms["credits"] == 6
    assert submits(emulator) == 33
    assert len(manifest("m.jsonl")) == 30
    objects = stored()
    del objects["m.jsonl"]
    assert objects == images_of(emulator)


def test_a_retry_of_a_finished_batch_asks_neither_api_nor_image_host(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    operator = batch(prompts(10))
    instance.run(operator)
    before = len(emulator.calls)

    assert instance.retry().run(operator)["mirrored"] == 10
    assert len(emulator.calls) == before


def test_an_order_changed_is_the_same_batch(emulator: Any, instance: Instance, s3: Any) -> None:
    instance.run(batch(prompts(20)))

    summary = instance.retry().run(batch([*reversed(prompts(20)), "One more", "Picture 3"]))

    assert (summary["requests"], summary["taken_up"]) == (22, 20)
    assert submits(emulator) == 22, "the second of two equal requests is a request of its own"


def test_a_cleared_success_means_make_new_ones(emulator: Any, instance: Instance, s3: Any) -> None:
    operator = batch(prompts(10))
    instance.run(operator)
    assert instance.retry().run(operator)["credits"] == 20
    assert submits(emulator) == 10

    cleared = instance.clear()
    assert cleared.run(operator)["taken_up"] == 0
    assert submits(emulator) == 20
    assert cleared.retry().run(operator)["taken_up"] == 10
    assert submits(emulator) == 20


def test_a_clear_after_a_failure_takes_up_what_is_paid_for(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError):
        instance.run(batch(prompts(10)))

    assert instance.clear().run(batch(prompts(10)))["taken_up"] == 9
    assert submits(emulator) == 11


def test_another_key_pattern_mirrors_again_and_pays_nothing(emulator: Any, instance: Instance, stored: Any) -> None:
    instance.run(batch(prompts(5)))

    instance.retry().run(batch(prompts(5), s3_key="other/{task_id}-{index}{ext}"))

    assert len(stored()) == 10
    assert submits(emulator) == 5


@pytest.mark.parametrize("policy", ["fail", "succeed"])
def test_a_low_balance_ends_submission_and_what_is_accepted_is_delivered(
    emulator: Any, instance: Instance, stored: Any, policy: str
) -> None:
    emulator.set_balance(30)
    deferrable = policy == "fail"
    operator = batch(prompts(40), max_in_flight=10, on_partial_failure=policy, deferrable=deferrable)

    if policy == "fail":
        with fails(GptImgInsufficientCreditsError, at_once=True) as caught:
            instance.run(operator)
        assert "15 are mirrored" in str(caught.value)
        assert "25 were not submitted" in str(caught.value)
    else:
        summary = instance.run(operator)
        assert (summary["mirrored"], summary["not_submitted"], summary["credits"]) == (15, 25, 30)
        (why,) = summary["errors"]
        assert why.startswith("25 were not submitted: ")
        assert "HTTP 402" in why

    assert len(stored()) == 15
    assert emulator.balance() == 0
    assert submits(emulator) <= 15 + 8, "no more than the submits under way met the low balance"

    emulator.set_balance(1000)
    if policy == "fail":
        assert instance.clear().run(operator)["taken_up"] == 15
        assert emulator.balance() == 1000 - 50


def test_a_rate_limit_slows_down(emulator: Any, instance: Instance, stored: Any, deferrable: bool) -> None:
    emulator.fault("submit", 429, times=5, retry_after=0.2)
    emulator.fault("poll", 429, times=5, retry_after=0.1)

    summary = instance.run(batch(prompts(20), max_in_flight=10, deferrable=deferrable))

    assert summary["mirrored"] == 20
    assert submits(emulator) == 25
    assert spent(emulator) == 40
    posts = [call for call in emulator.calls if call.method == "POST"]
    last_refused = max(call.at for call in posts if call.status == 429)
    assert all(call.at >= last_refused + 0.2 for call in posts[8:]), "what was under way came before the pause"


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_api_is_tried_again_a_little(
    emulator: Any, instance: Instance, s3: Any, hasty: None, status: int
) -> None:
    emulator.fault("submit", status, times=3)
    assert instance.run(batch(prompts(6)))["mirrored"] == 6

    emulator.fault("submit", status, times=None)
    with fails(GptImgServerError, at_once=False):
        instance.retry().run(batch([*prompts(6), "New"]))
    assert len(emulator.tasks) == 6


def test_one_request_that_always_meets_a_failing_api_keeps_no_other(
    emulator: Any, instance: Instance, s3: Any, hasty: None, deferrable: bool
) -> None:
    """With one at a time, the order of submits is known: a leg begins with the first request that is left."""
    fails_first, accepted = (503, {}), ("hang_before", {"seconds": 0})
    in_order = [fails_first, accepted, fails_first, accepted] if deferrable else [fails_first, accepted, accepted]
    for what, options in in_order:
        emulator.fault("submit", what, **options)
    emulator.fault("submit", 503, times=None)

    with fails(GptImgServerError, at_once=False) as caught:
        instance.run(batch(["Never", "First", "Second"], max_in_flight=1, deferrable=deferrable))

    assert "Of 3 requests 2 are mirrored, 1 failed" in str(caught.value)
    assert [task.prompt for task in emulator.tasks] == ["First", "Second"]
    assert submits(emulator) == 2 + MAX_ATTEMPTS

    emulator.clear_faults()
    assert instance.retry().run(batch(["Never", "First", "Second"]))["mirrored"] == 3


def test_one_request_that_the_api_cannot_stand_keeps_no_other(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.fault("submit", 422, message="Not this one")

    with fails(GptImgRequestError, at_once=True) as caught:
        instance.run(batch(prompts(12)))

    assert "11 are mirrored, 1 failed" in str(caught.value)
    assert len(emulator.tasks) == 11


def test_an_error_that_a_retry_may_mend_stands_before_one_that_it_would_not(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    emulator.fault("submit", 422)
    emulator.fault("submit", "fail")
    with fails(GptImgTaskFailedError, at_once=False):
        instance.run(batch(prompts(12)))


@pytest.mark.parametrize("what", ["lost_after", "cut_after", "html"])
def test_an_unknown_outcome_is_reported_and_not_repeated(
    emulator: Any, instance: Instance, stored: Any, what: str
) -> None:
    deferrable = what == "lost_after"
    operator = batch(prompts(20), max_in_flight=20, deferrable=deferrable)
    emulator.fault("submit", what)

    with fails(GptImgSubmissionUnknownError, at_once=True) as caught:
        instance.run(operator)

    assert "19 are mirrored" in str(caught.value)
    assert "1 have an unknown outcome" in str(caught.value)
    assert submits(emulator) == 20
    with fails(GptImgSubmissionUnknownError, at_once=True):
        instance.clear().run(operator)
    assert submits(emulator) == 20

    resubmitting = batch(prompts(20), on_unknown_submission="resubmit", deferrable=deferrable)
    assert instance.clear().clear().run(resubmitting)["mirrored"] == 20
    assert submits(emulator) == 21


def test_resubmit_waits_for_the_next_attempt(emulator: Any, instance: Instance, s3: Any, deferrable: bool) -> None:
    operator = batch(prompts(10), on_unknown_submission="resubmit", max_in_flight=4, deferrable=deferrable)
    emulator.fault("submit", "lost_after")

    with fails(GptImgSubmissionUnknownError, at_once=False):
        instance.run(operator)
    assert submits(emulator) == 10

    assert instance.retry().run(operator)["mirrored"] == 10
    assert submits(emulator) == 11


def test_a_request_says_itself_whether_it_may_be_submitted_again(
    emulator: Any, instance: Instance, s3: Any, deferrable: bool
) -> None:
    """Its word stands above the operator's, so that of two that were lost one is left to a person."""
    again, never = ({"prompt": policy, "on_unknown_submission": policy} for policy in ("resubmit", "fail"))
    operator = batch([again, never, *prompts(3)], on_unknown_submission="resubmit", deferrable=deferrable)
    emulator.fault("submit", "lost_after", times=2)
    first = batch([again, never], deferrable=deferrable)

    with fails(GptImgSubmissionUnknownError, at_once=False):
        instance.run(first)
    assert submits(emulator) == 2

    with fails(GptImgSubmissionUnknownError, at_once=True) as caught:
        instance.retry().run(operator)
    assert "Of 5 requests 4 are mirrored, 0 failed, 1 have an unknown outcome" in str(caught.value)
    prompts_sent = [task.prompt for task in emulator.tasks]
    assert (prompts_sent.count("resubmit"), prompts_sent.count("fail")) == (2, 1)


def test_an_unknown_outcome_of_a_request_that_is_not_asked_for_any_more_is_reported(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    emulator.fault("submit", "lost_after")
    with pytest.raises(AirflowFailException):
        instance.run(batch(["Lost", "Kept"], max_in_flight=1))

    with fails(GptImgSubmissionUnknownError, at_once=True):
        instance.clear().run(batch(["Kept"]))
    assert instance.clear().run(batch(["Kept"], on_unknown_submission="resubmit"))["mirrored"] == 1
    assert submits(emulator) == 2


def test_a_proxy_that_swallows_answers_gets_no_more_submits(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.fault("submit", "lost_after", times=None)

    with fails(GptImgSubmissionUnknownError, at_once=True) as caught:
        instance.run(batch(prompts(100), max_in_flight=50))

    assert submits(emulator) <= 16
    assert "were not submitted" in str(caught.value)


def test_a_rejected_key_fails_at_once(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.revoke_key(emulator.api_key)
    with pytest.raises(AirflowFailException):
        instance.run(batch(prompts(20)))
    assert submits(emulator) <= 8


def test_an_image_that_cannot_be_had_keeps_no_other(emulator: Any, instance: Instance, stored: Any) -> None:
    emulator.fault("image", "wrong_type")
    with pytest.raises(GptImgError, match="5 are mirrored, 1 failed"):
        instance.run(batch(prompts(6)))
    assert len(stored()) == 5

    assert instance.retry().run(batch(prompts(6)))["mirrored"] == 6
    assert submits(emulator) == 6


def test_an_image_task_of_another_user_says_how_to_drop_the_journal(
    emulator: Any, instance: Instance, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.run(batch(prompts(3)))
    emulator.reset()
    store = instance.store
    assert store is not None
    for key, value in store.values.items():  # as if it had died before it mirrored
        facts = [fact for fact in value.get("facts", ()) if "objects" not in fact]
        store.set(key, {**value, "facts": facts})
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 120)  # a task that was just submitted may not be known yet

    with fails(GptImgTaskNotFoundError, at_once=True) as caught:
        instance.retry().run(batch(prompts(3)))
    assert "delete the entries gptimg…" in str(caught.value)


def test_without_a_state_store_it_holds_the_worker(emulator: Any, s3: Any, capfd: Any, caplog: Any) -> None:
    instance = Instance(None)

    assert instance.run(batch(prompts(12), deferrable=True))["mirrored"] == 12

    assert instance.deferrals == 0
    assert "Nothing outlasts this attempt" in "".join(capfd.readouterr()) + caplog.text


def test_it_can_be_executed_by_hand(emulator: Any, stored: Any, deferrable: bool) -> None:
    assert batch(prompts(2), deferrable=deferrable).execute({})["mirrored"] == 2

    @task.gptimg_batch(task_id="by_function", s3_bucket="images", deferrable=deferrable)
    def pictures() -> list[str]:
        return prompts(2)

    with DAG("by_hand"):
        by_function = pictures().operator
    assert by_function.execute({})["mirrored"] == 2
    assert len(stored()) == 4


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, "the function of @task.gptimg_batch returned None: return a list of prompts"),
        (["a cat", {"prompt": "a dog", "max_credits": 2}], "'max_credits' is an argument of @task.gptimg_batch("),
    ],
)
def test_what_a_function_returns_in_the_wrong_place_is_named(emulator: Any, returned: Any, complaint: str) -> None:
    @task.gptimg_batch(s3_bucket="images")
    def pictures() -> Any:
        return returned

    with DAG("by_hand"):
        operator = pictures().operator
    with pytest.raises(AirflowFailException) as refusal:
        operator.execute({})
    assert complaint in str(refusal.value)
    assert emulator.calls == []


@pytest.mark.parametrize(
    "returned", [["a cat", "a \0 dog"], ["a cat", "a dog KEY"], ["a cat", {"prompt": {1}}]], ids=str
)
def test_what_a_function_returns_is_checked_before_it_becomes_an_xcom(
    emulator: Any, instance: Instance, s3: Any, returned: Any
) -> None:
    @task.gptimg_batch(s3_bucket="images", deferrable=True)
    def pictures() -> Any:
        return [each.replace("KEY", emulator.api_key) if isinstance(each, str) else each for each in returned]

    with DAG("checked"):
        operator = pictures().operator
    with fails(GptImgRequestError, at_once=True):
        instance.run(operator)
    assert not instance.xcoms
    assert not emulator.calls


def test_an_empty_list_is_done_at_once(emulator: Any, instance: Instance, s3: Any) -> None:
    assert instance.run(batch([]))["requests"] == 0
    assert not emulator.calls


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"max_credits": 39}, "max_credits=39 refuses this batch of 20 requests: it would cost 40 credits"),
        ({"max_credits": "39"}, "2 an image. Nothing was sent; ask for fewer images, or raise max_credits"),
        ({"max_credits": "much"}, "max_credits='much'"),
        ({"max_in_flight": 0}, "max_in_flight=0"),
        ({"on_partial_failure": "ignore"}, "on_partial_failure='ignore'"),
        ({"timeout": timedelta(seconds=-5)}, "timeout="),
        ({"timeout": "5"}, "timeout='5'"),
        ({"timeout": None}, "timeout=None"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": None, "requests": "s3://images/none.jsonl"}, "timeout=None"),
        ({"on_unknown_submission": "guess"}, "on_unknown_submission='guess'"),
        ({"s3_key": "latest{ext}"}, "s3_key='latest{ext}' may give several images"),
        ({"s3_key": "{index}{ext}"}, "s3_key='{index}{ext}' may give several images"),
        ({"s3_key": "{index}{ext}"}, "put the whole {task_id} and {index} into it. Nothing was sent"),
        ({"s3_key": "{sku}-{index}{ext}"}, "use Jinja, as in {{ ti.map_index }}: it is rendered once for the task"),
        ({"s3_key": "{task_id:.30}/{index}{ext}"}, "it formats {task_id}"),
        ({"manifest_key": "m-{index}.jsonl"}, "manifest_key="),
        ({"manifest_key": "gptimg/x/0.png"}, "manifest_key="),
        ({"s3_bucket": "Bad_Bucket!!"}, "s3_bucket='Bad_Bucket!!'"),
        ({"extra_args": {"Metadata": "x"}}, "Metadata"),
        ({"extra_args": {"Tagging": {"a": "b"}}}, "Tagging"),
        ({"acl_policy": 5}, "acl_policy=5"),
        ({"max_image_bytes": None}, "max_image_bytes=None"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"requests": [*prompts(3), ""]}, "requests[3]: prompt"),
        ({"requests": [*prompts(3), {"prompt": "x", "n": 5}]}, "requests[3]: n=5"),
        ({"requests": [{"prompt": "x", "n": 2}], "s3_key": "{task_id}{ext}"}, "may give several images"),
    ],
    ids=lambda value: f"{value}" if isinstance(value, dict) else "",
)
def test_refuses_before_anything_is_sent(
    emulator: Any, instance: Instance, s3: Any, arguments: dict[str, Any], complaint: str
) -> None:
    with fails(GptImgRequestError, at_once=True) as caught:
        instance.run(batch(**{"requests": prompts(20), **arguments}))
    assert complaint in str(caught.value)
    assert not emulator.calls


def test_max_credits_allows_what_it_costs(emulator: Any, instance: Instance, s3: Any) -> None:
    assert instance.run(batch(prompts(5), max_credits="10"))["mirrored"] == 5


def test_presigns_a_reference_once(emulator: Any, instance: Instance, s3: Any) -> None:
    s3.put_object(Bucket="images", Key="style.png", Body=b"x")
    requests = [{"prompt": prompt, "reference_images": ["s3://images/style.png"]} for prompt in prompts(9)]

    instance.run(batch(requests))

    assert len({task.request["image_urls"][0] for task in emulator.tasks}) == 1


def test_the_summary_stays_small(emulator: Any, instance: Instance, s3: Any) -> None:
    """Whatever the number of failures and the length of what they say."""
    emulator.fault("submit", "fail", times=39, error={"code": "X", "message": "ß" * 300})

    summary = instance.run(batch(prompts(40), max_in_flight=40, on_partial_failure="succeed"))

    assert summary["failed"] == 39
    assert summary["errors"]
    assert all(error.endswith("…") for error in summary["errors"]), "each says that it goes on"
    assert len(json.dumps(summary)) < 4096


def test_the_summary_says_first_why_submission_ended(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.fault("submit", 422, times=7, message="ß" * 300)
    emulator.set_balance(2)

    summary = instance.run(batch(prompts(12), on_partial_failure="succeed"))

    assert (summary["mirrored"], summary["failed"], summary["not_submitted"]) == (1, 7, 4)
    assert summary["errors"][0].startswith("4 were not submitted: ")
    assert "HTTP 402" in summary["errors"][0]
    assert summary["errors"][1].startswith("requests[")
    assert len(json.dumps(summary)) < 4096


def test_a_rate_limit_that_lasts_ends_the_attempt_when_all_else_is_done(
    emulator: Any, instance: Instance, stored: Any
) -> None:
    operator = batch(prompts(24), max_in_flight=10, deferrable=True)

    with fails(GptImgRateLimitError, at_once=False) as caught:
        instance.run(operator, lambda: emulator.fault("submit", 429, times=None, retry_after=900))

    assert caught.value.retry_after == 900
    assert "10 are mirrored, 0 failed, 0 have an unknown outcome and 14 were not submitted" in str(caught.value)
    assert len(stored()) == 10
    emulator.clear_faults()
    assert instance.retry().run(operator)["taken_up"] == 10
    assert len(emulator.tasks) == 24


def test_a_long_pause_is_waited_out_beside_what_is_in_flight(
    emulator: Any, instance: Instance, s3: Any, hasty: None, deferrable: bool
) -> None:
    """Too long to do nothing else meanwhile, with the limit that `hasty` sets, but there is something to wait for."""
    emulator.fault("submit", 429, retry_after=0.2)

    assert instance.run(batch(prompts(8), deferrable=deferrable))["mirrored"] == 8

    assert submits(emulator) == 9


def test_what_is_not_finished_in_time_is_waited_for_by_the_next_attempt(
    emulator: Any, instance: Instance, s3: Any, clock: Any, deferrable: bool
) -> None:
    clock.stop()
    with fails(GptImgTimeoutError, at_once=False) as caught:
        instance.run(batch(prompts(4), timeout=0.3, deferrable=deferrable))
    assert "4 failed" in str(caught.value)

    clock.go()
    assert instance.retry().run(batch(prompts(4), timeout=60, deferrable=deferrable))["taken_up"] == 4
    assert submits(emulator) == 4


def test_execution_timeout_bounds_a_deferral(
    emulator: Any, instance: Instance, s3: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is deferred, Airflow does not see to that."""
    clock.stop()
    now = time.time

    def wait_for_two_hours() -> None:
        monkeypatch.setattr("time.time", lambda: now() + 7200)

    operator = batch(
        prompts(10), max_in_flight=4, timeout=100_000, execution_timeout=timedelta(hours=1), deferrable=True
    )
    with fails(GptImgTimeoutError, at_once=False) as caught:
        instance.run(operator, wait_for_two_hours)
    assert "4 failed, 0 have an unknown outcome and 6 were not submitted" in str(caught.value)
    assert submits(emulator) == 4


def test_a_clear_after_a_partial_success_takes_up_what_was_never_delivered(
    emulator: Any, instance: Instance, stored: Any
) -> None:
    operator = batch(prompts(4), on_partial_failure="succeed")
    emulator.fault("image", "wrong_type")
    assert instance.run(operator)["mirrored"] == 3

    assert instance.clear().run(operator)["mirrored"] == 4

    assert submits(emulator) == 4 + 3, "three were delivered and are made anew, one was not and is taken up"
    assert len(stored()) == 3 + 4


def test_a_partial_success_warns_of_what_may_have_been_charged(
    emulator: Any, instance: Instance, s3: Any, capfd: Any, caplog: Any
) -> None:
    emulator.fault("submit", "fail")
    emulator.fault("submit", "lost_after")
    instance.run(batch(prompts(3), on_partial_failure="succeed", max_in_flight=1))
    log = "".join(capfd.readouterr()) + caplog.text
    assert "1 of 3 requests: 1 failed, 1 have an unknown outcome and 0 were not submitted" in log
    assert "Up to 2 credits may have been charged for those with an unknown outcome" in log


def test_a_whole_success_warns_of_nothing(emulator: Any, instance: Instance, s3: Any, capfd: Any, caplog: Any) -> None:
    assert instance.run(batch(prompts(2), on_partial_failure="succeed"))["mirrored"] == 2
    assert "on_partial_failure" not in "".join(capfd.readouterr()) + caplog.text


def test_nothing_delivered_is_no_partial_success(emulator: Any, instance: Instance, s3: Any) -> None:
    emulator.fault("submit", "fail", times=3)
    with fails(GptImgTaskFailedError, at_once=False):
        instance.run(batch(prompts(3), on_partial_failure="succeed"))


def test_a_failed_generation_is_submitted_anew_by_the_next_attempt_only(
    emulator: Any, instance: Instance, s3: Any
) -> None:
    emulator.fault("submit", "fail", times=2)
    operator = batch(prompts(4), max_in_flight=1, deferrable=True)
    with fails(GptImgTaskFailedError, at_once=False):
        instance.run(operator)
    assert instance.deferrals > 3
    assert submits(emulator) == 4


@pytest.mark.parametrize("deferrable", [False, True], ids=["held", "deferred"])
def test_faults_of_all_kinds_at_once(instance: Instance, stored: Any, connect: Any, deferrable: bool) -> None:
    """10 % failed generations and 5 % 429: in the end each request is paid for once and every image is there."""
    with Emulator(speed=300, seed=2, fail_rate=0.1, rate_limit_rate=0.05, credits=1000) as faulty:
        connect(faulty, poll_interval=0.05, first_poll_after=0.1, timeout=5)
        operator = batch(prompts(60), max_in_flight=20, deferrable=deferrable)
        attempt, summary = instance, None
        while summary is None and attempt.try_number < 6:
            try:
                summary = attempt.run(operator)
            except GptImgTaskFailedError:
                attempt = attempt.retry()
        assert summary
        assert summary["mirrored"] == 60
        assert attempt.try_number > 1, "with this seed some generations fail"
        assert spent(faulty) == 120
        assert most_in_flight(faulty) <= 20
        assert stored() == images_of(faulty)
