# SPDX-License-Identifier: Apache-2.0
"""The usual slips of a DAG author: each message says what was meant, before anything is paid for."""

from __future__ import annotations

import ast
import traceback
from typing import Any

import pytest
from airflow_names import DAG
from attempts import fails_at_once

from airflow_provider_gptimg.airflow_compat import AirflowFailException
from airflow_provider_gptimg.exceptions import (
    GptImgAuthError,
    GptImgRequestError,
    GptImgTaskFailedError,
    GptImgTaskNotFoundError,
)
from airflow_provider_gptimg.hooks.gptimg import GptImgHook
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


@pytest.mark.parametrize(
    ("operator", "arguments", "hint"),
    [
        (
            GptImgSubmitOperator,
            {"prompt": "x", "aspect_ration": "1:1"},
            "no argument 'aspect_ration': did you mean 'aspect_ratio'?",
        ),
        (GptImgGenerateOperator, {"prompt": "x", "poll_intervall": 5}, "did you mean 'poll_interval'?"),
        (GptImgToS3Operator, {"gptimg_task_id": "x", "bucket": "b"}, "did you mean 's3_bucket'?"),
        (GptImgBatchToS3Operator, {"requests": [], "max_inflight": 3}, "did you mean 'max_in_flight'?"),
        (GptImgTaskSensor, {"gptimg_task_id": "x", "retrys": 3}, "did you mean 'retries'?"),
        (GptImgTaskSensor, {"gptimg_task_id": "x", "retry_dely": 3}, "did you mean 'retry_delay'?"),
        (GptImgTaskSensor, {"gptimg_task_id": "x", "task_ids": 3}, "did you mean 'gptimg_task_id'?"),
        (GptImgBatchToS3Operator, {"requests": [], "bucket": "b"}, "did you mean 's3_bucket'?"),
    ],
)
def test_a_misspelt_argument_of_an_operator(operator, arguments, hint):
    with pytest.raises(Exception, match="Invalid arguments") as caught:  # Airflow 2 has a class of its own for it
        operator(task_id="slip", **arguments)
    # As Airflow shows why a DAG file cannot be imported.
    assert hint in "".join(traceback.format_exception(caught.value))


def test_no_argument_is_suggested_that_only_looks_alike():
    """Airflow has `params`."""
    with pytest.raises(Exception, match="Invalid arguments") as caught:
        GptImgBatchToS3Operator(task_id="slip", requests=[], promts=["a cat"])
    assert "did you mean" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("operator", [GptImgTaskSensor, GptImgToS3Operator])
@pytest.mark.parametrize("several", [False, True], ids=["one", "list"])
def test_the_id_of_an_airflow_task(emulator, s3, operator, several):
    """Found while the file is parsed, or before the wait where the DAG got that task later."""
    arguments = {"gptimg_task_id": ["submit"] if several else "submit"}
    if operator is GptImgToS3Operator:
        arguments["s3_bucket"] = "images"
    with DAG("slip") as dag:
        waiting = operator(task_id="wait", **arguments)
        GptImgSubmitOperator(task_id="submit", prompt="x")
        with fails_at_once(GptImgRequestError) as caught:
            operator(task_id="wait_too", **arguments)
    assert "as in gptimg_task_id=submit.output" in str(caught.value)
    with fails_at_once(GptImgRequestError) as caught:
        waiting.execute({"dag": dag})
    assert "as in gptimg_task_id=submit.output" in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"s3_key": "c/{{ ds }}/{map_index}{ext}", "s3_bucket": "images"}, "it has {map_index}. It may have {task_id}"),
        ({"s3_key": "c/{map_index}{ext}", "s3_bucket": "{{ var.value.bucket }}"}, "Jinja, as in {{ ti.map_index }}"),
        ({"s3_key": "{index:02d}{ext}", "s3_bucket": "images"}, "it formats {index}"),
        ({"s3_key": "{{ ds }}/{index{ext}", "s3_bucket": "images"}, "is not a pattern"),
        ({"s3_key": "s3://images/{index}{ext}", "s3_bucket": "images"}, "drop one"),
        ({"s3_bucket": "s3://images"}, "use the bucket's name"),
    ],
)
def test_a_destination_that_no_rendering_mends_is_an_import_error_of_the_dag(arguments, told):
    with DAG("slip"):
        submit = GptImgSubmitOperator(task_id="submit", prompt="x")
        with fails_at_once(GptImgRequestError) as caught:
            GptImgToS3Operator(task_id="mirror", gptimg_task_id=submit.output, **arguments)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"s3_key": "{{ var.value.root }}/{index}{ext}"},
        {"s3_key": "{{ {'a': {'b': 1}}['a'] }}/{% if 1 %}{task_id}{% endif %}{# {x} #}{ext}", "s3_bucket": "images"},
        {"s3_key": "s3://{{ var.value.bucket }}/{{ params.key }}"},
        {"s3_bucket": "{{ var.value.bucket }}"},
    ],
)
def test_a_destination_that_jinja_completes_is_none(arguments):
    with DAG("good") as dag:
        submit = GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["x"])
        GptImgToS3Operator(task_id="mirror", gptimg_task_id=submit.output, **arguments)
        GptImgToS3Operator(task_id="from_task", gptimg_task_id=submit.output, s3_key=submit.output, s3_bucket="images")
        GptImgToS3Operator.partial(task_id="each", **arguments).expand(gptimg_task_id=submit.output)
    assert len(dag.task_ids) == 4


def test_jinja_that_airflow_leaves_in_a_mapped_key_is_not_a_name(emulator, s3):
    key = "{{ dag_run.run_after | ds }}/lamp-{index}{ext}"
    mirror = GptImgToS3Operator(
        task_id="mirror", gptimg_task_id=emulator.add_task(), s3_bucket="images", s3_key=key, timeout=20
    )
    with fails_at_once(GptImgRequestError) as caught:
        mirror.execute({})
    assert f"s3_key={key!r} has Jinja in it that Airflow has not rendered" in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize("operator", [GptImgTaskSensor, GptImgToS3Operator])
def test_a_failed_generation_says_who_has_to_submit_again(emulator, s3, operator):
    failed, done = emulator.add_task(error="no cats"), emulator.add_task()
    arguments = {"s3_bucket": "images"} if operator is GptImgToS3Operator else {}
    with pytest.raises(GptImgTaskFailedError) as caught:
        operator(task_id="wait", gptimg_task_id=[done, failed], timeout=20, **arguments).execute({})
    assert "Another attempt to wait fails again: clear what submitted it, and all tasks downstream" in str(caught.value)
    assert f"Of 2 image tasks 1 failed: {failed} (in gptimg_task_id: [1])" in str(caught.value)


def test_a_failed_generation_of_a_task_that_submits_is_mended_by_its_next_attempt(emulator):
    emulator.fault("submit", "fail")
    with pytest.raises(GptImgTaskFailedError) as caught:
        GptImgGenerateOperator(task_id="make", prompt="x", timeout=20).execute({})
    assert "clear" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "prompt='' is blank: say what the images should show. If the prompt comes from a template"),
        (["a", "b"], "prompt=['a', 'b'] is not a text, but of type list: a request has one prompt"),
    ],
)
def test_a_prompt_that_is_none(emulator, prompt, told):
    with fails_at_once(GptImgRequestError) as caught:
        GptImgSubmitOperator(task_id="submit", prompt=prompt).execute({})
    assert told in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("None", "is what a template renders that finds nothing"),
        ("['gpt-image-2-a', 'gpt-image-2-b']", "a list or a finished task that a template has turned into text"),
        ("{'task_id': 'gpt-image-2-a'}", "pass the output itself, as in gptimg_task_id=submit.output"),
        ({"status": "completed"}, "{'status': 'completed'} is a dict without 'task_id'"),
    ],
)
def test_what_is_not_an_id(emulator, given, told):
    with fails_at_once(GptImgRequestError) as caught:
        GptImgTaskSensor(task_id="wait", gptimg_task_id=given).execute({})
    assert told in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("operator", [GptImgTaskSensor, GptImgToS3Operator])
def test_a_task_without_its_output_is_refused_while_the_file_is_parsed(operator, mapped, listed):
    arguments = {"s3_bucket": "images"} if operator is GptImgToS3Operator else {}
    with DAG("bad"):
        if mapped:
            task = GptImgSubmitOperator.partial(task_id="submit").expand(prompt=["x"])
        else:
            task = GptImgSubmitOperator(task_id="submit", prompt="x")
        with fails_at_once(GptImgRequestError) as caught:
            operator(task_id="wait", gptimg_task_id=[task] if listed else task, **arguments)
    assert str(caught.value) == (
        "gptimg_task_id='submit' is a task in this DAG, not the id of an image task: pass what that task returns, "
        "as in gptimg_task_id=submit.output"
    )


@pytest.mark.parametrize("given", ["KEY x", ["KEY/"], [{"a": "KEY"}], {"task_id": "KEY/"}, {"KEY"}, "['KEY']"], ids=str)
@pytest.mark.parametrize("operator", [GptImgTaskSensor, GptImgToS3Operator])
def test_what_holds_the_key_is_not_shown_as_an_id(emulator, s3, operator, given):
    given = ast.literal_eval(repr(given).replace("KEY", emulator.api_key))
    arguments = {"s3_bucket": "images"} if operator is GptImgToS3Operator else {}
    with fails_at_once(GptImgRequestError) as caught:
        operator(task_id="wait", gptimg_task_id=given, **arguments).execute({})
    assert "holds the API key of connection 'gptimg_default'" in str(caught.value)
    assert emulator.api_key not in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize("name", ["aspect_ratio", "n", "reference_images", "max_credits", "on_unknown_submission"])
@pytest.mark.parametrize("operator", [GptImgSubmitOperator, GptImgGenerateOperator])
def test_what_holds_the_key_is_not_shown_as_an_argument(emulator, operator, name):
    with fails_at_once(GptImgRequestError) as caught:
        operator(task_id="submit", prompt="x", **{name: emulator.api_key}).execute({})
    assert "holds the API key of connection 'gptimg_default'" in str(caught.value)
    assert emulator.api_key not in str(caught.value)
    assert not emulator.calls


@pytest.mark.parametrize("name", ["timeout", "poll_interval", "poke_interval"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "5", True])
def test_a_number_of_seconds_that_a_sensor_cannot_take(name, value):
    with fails_at_once(GptImgRequestError) as caught:
        GptImgTaskSensor(task_id="wait", gptimg_task_id="gpt-image-2-a", **{name: value})
    assert str(caught.value) == f"{name}={value!r} is not a number of seconds of at least 0"


def test_an_id_that_the_api_does_not_know_and_that_looks_like_none(emulator):
    with pytest.raises(GptImgTaskNotFoundError, match=r"Ids begin with 'gpt-image-2-'.*submit\.output"):
        GptImgHook().get_task("submit")
    with pytest.raises(GptImgTaskNotFoundError) as caught:
        GptImgHook().get_task("gpt-image-2-lost")
    assert "Ids begin" not in str(caught.value)


def test_a_wrong_key(emulator, quick):
    quick(password="another-key")
    with fails_at_once(GptImgAuthError) as caught:
        GptImgSubmitOperator(task_id="submit", prompt="x").execute({})
    assert str(caught.value).startswith("Connection 'gptimg_default': ")


def test_a_misspelt_field_of_the_body_is_sent_and_warned_of_once(emulator, log):
    hook = GptImgHook()
    for _ in range(2):
        hook.submit("x", extra_body={"aspect_ration": "1:1", "style": "linocut"})
    assert emulator.tasks[0].request["aspect_ration"] == "1:1"
    said = log()
    assert "style" not in said
    assert said.count("did you mean the argument 'aspect_ratio'?") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"acl_policy": "public_read"}, "acl_policy='public_read' is not a value .* did you mean 'public-read'"),
        ({"acl_policy": "everybody"}, "acl_policy='everybody' is not a value .* use private, public-read,"),
        ({"extra_args": {"ServerSideEncryption": "aes256"}}, "did you mean 'AES256'"),
        ({"extra_args": {"StorageClas": "GLACIER"}}, "'StorageClas', .* did you mean 'StorageClass'"),
        ({"verify": "/no/such/bundle.pem"}, "verify='/no/such/bundle.pem' is not"),
        ({"s3_bucket": "no such"}, "s3_bucket='no such' is not a valid bucket name"),
        ({"s3_bucket": None}, "pass s3_bucket"),
        ({"s3_key": "{taskid}"}, "it has {taskid}"),
        ({"manifest_key": "{index}"}, "manifest_key='{index}' is not a key"),
        ({"concurrency": 0}, "concurrency=0 is not"),
    ],
)
@pytest.mark.parametrize("operator", ["batch", "transfer"])
def test_a_fault_of_the_destination_comes_before_the_charge(emulator, s3, operator, arguments: dict[str, Any], told):
    arguments = {"s3_bucket": "images"} | arguments
    if operator == "batch":
        task = GptImgBatchToS3Operator(task_id="slip", requests=["x"], **arguments)
    else:
        task = GptImgToS3Operator(task_id="slip", gptimg_task_id=emulator.add_task(), **arguments)
    with pytest.raises(AirflowFailException, match=told):
        task.execute({})
    assert not emulator.calls


def test_another_vendors_storage_class_is_left_to_its_store(emulator, s3):
    """Which refuses it here, after it was asked."""
    task = GptImgToS3Operator(
        task_id="mirror",
        gptimg_task_id=emulator.add_task(),
        s3_bucket="images",
        extra_args={"StorageClass": "SPINNING_RUST"},
    )
    with pytest.raises(AirflowFailException, match="InvalidStorageClass"):
        task.execute({})
    assert emulator.calls
