# SPDX-License-Identifier: Apache-2.0
"""@task.gptimg: what the function may return. How Airflow runs it, test_dag_runs.py tells."""

from __future__ import annotations

import ast

import pytest
from airflow_names import DAG, task
from attempts import fails_at_once, may_be_retried

from airflow_provider_gptimg.exceptions import GptImgRequestError, GptImgTimeoutError
from airflow_provider_gptimg.journal.attempt import NotSentError


def painter(function, **arguments):
    """Return the operator that `@task.gptimg` makes of `function`."""
    with DAG("decorated"):
        return task.gptimg(**arguments)(function)().operator


def returning(value):
    def paint():
        return value

    return paint


@pytest.mark.parametrize(
    ("returned", "arguments", "request_body"),
    [
        ("a cat", {}, {"prompt": "a cat", "n": 1}),
        ("{{ ti }} {% x %} {# y #}", {}, {"prompt": "{{ ti }} {% x %} {# y #}", "n": 1}),
        ("a cat", {"n": 2, "aspect_ratio": "1:1"}, {"prompt": "a cat", "n": 2, "aspect_ratio": "1:1"}),
        ({"prompt": "a cat", "n": "3"}, {}, {"prompt": "a cat", "n": 3}),
        (
            {"prompt": "a cat", "n": 3},
            {"n": 1, "aspect_ratio": "1:1"},
            {"prompt": "a cat", "n": 3, "aspect_ratio": "1:1"},
        ),
        (
            {"prompt": "{{ a }}", "reference_images": ["https://e.com/a.png"], "extra_body": {"style": "{{ b }}"}},
            {},
            {"prompt": "{{ a }}", "n": 1, "image_urls": ["https://e.com/a.png"], "style": "{{ b }}"},
        ),
    ],
    ids=["prompt", "no Jinja", "arguments beside it", "dict", "dict over arguments", "all in a dict"],
)
def test_what_it_returns_is_submitted(emulator, instance, deferrable, returned, arguments, request_body):
    operator = painter(returning(returned), deferrable=deferrable, **arguments)
    operator.render_template_fields({})
    result = instance.attempt(operator)
    assert emulator.tasks[0].request == request_body
    assert result["task_id"] == emulator.tasks[0].task_id
    assert instance.xcoms["credits"] == 2 * request_body["n"]


def test_a_stop_while_the_function_runs_sends_nothing(emulator, instance):
    def paint():
        operator.on_kill()
        return "a cat"

    operator = painter(paint)
    with pytest.raises(NotSentError, match="stopped"):
        operator.execute(instance.context)
    assert emulator.calls == []


@pytest.mark.parametrize("returned", ["{key}", {"prompt": "a cat", "{key}": 1}, {"n": "{key}"}, ["{key}"]], ids=str)
def test_a_text_that_holds_the_key_is_refused_and_not_shown(emulator, instance, returned):
    returned = ast.literal_eval(repr(returned).replace("{key}", emulator.api_key))
    with fails_at_once(GptImgRequestError) as caught:
        painter(returning(returned)).execute(instance.context)
    assert "holds the API key" in str(caught.value)
    assert emulator.api_key not in str(caught.value)
    assert emulator.calls == []


def test_arguments_beside_it_are_rendered(emulator, instance):
    operator = painter(returning("a cat"), n="{{ 1 + 1 }}")
    operator.render_template_fields({})
    instance.attempt(operator)
    assert emulator.tasks[0].n == 2


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (
            None,
            "the function of @task.gptimg returned None: return a prompt, or a dict of submit arguments "
            "(is a return missing?)",
        ),
        ("", "prompt"),
        (7, "prompt"),
        (["a cat"], "returned a list, and makes one request: map it over the values with .expand(), or use @task."),
        ({}, "the dict that the function of @task.gptimg returned has no 'prompt'"),
        ({"n": 2}, "the dict that the function of @task.gptimg returned has no 'prompt'"),
        ({"prompt": "a cat", "n": 9}, "n=9"),
        ({"prompt": "a cat", "size": "big"}, "'size'"),
        ({"prompt": "a cat", "timeout": 5}, "'timeout' is an argument of @task.gptimg(timeout=…)"),
        ({"prompt": "a cat", "gptimg_conn_id": "x"}, "'gptimg_conn_id' is an argument of @task.gptimg("),
        ({"prompt": "a cat", "max_credits": 2, "retries": 1}, "'max_credits' is an argument of @task.gptimg("),
        ({"prompt": "a cat", 7: 8}, "'7'"),
    ],
    ids=repr,
)
def test_what_is_no_request_is_refused_before_sending(emulator, instance, returned, told):
    with fails_at_once(GptImgRequestError) as caught:
        instance.attempt(painter(returning(returned)))
    assert told in str(caught.value)
    assert emulator.calls == []


def test_on_unknown_submission_may_come_from_the_function(emulator, instance):
    emulator.fault("submit", "lost_after")
    operator = painter(returning({"prompt": "a cat", "on_unknown_submission": "resubmit"}))
    with pytest.raises(Exception, match="next attempt submits again"):
        instance.attempt(operator)
    instance.attempt(operator)
    assert len(emulator.tasks) == 2


def test_the_function_gets_its_context(emulator, instance):
    def paint(ti, **context):
        assert ti is context["task_instance"]
        return f"a cat of {ti.max_tries}"

    instance.attempt(painter(paint))
    assert emulator.tasks[0].prompt == "a cat of 0"


def test_an_exception_of_the_function_is_its_own(emulator, instance):
    def paint():
        raise ValueError("no idea")

    with pytest.raises(ValueError, match="no idea"):
        instance.attempt(painter(paint))
    assert instance.store.records == {}


def test_a_function_that_says_the_same_again_pays_once(emulator, instance, deferrable, clock):
    clock.stop()
    with may_be_retried(GptImgTimeoutError):
        instance.attempt(painter(returning("a cat"), deferrable=deferrable, timeout=0.05))
    clock.go()
    instance.attempt(painter(returning("a cat"), deferrable=deferrable))
    assert len(emulator.tasks) == 1


def test_a_function_that_says_something_else_is_a_changed_request(emulator, instance, log):
    instance.kill(painter(returning("a cat")))
    instance.attempt(painter(returning("a dog")))
    assert [one.prompt for one in emulator.tasks] == ["a cat", "a dog"]
    assert "changed" in log()


def test_the_function_is_not_called_again_after_a_deferral(emulator, instance, clock):
    clock.stop()
    calls = []

    def paint():
        calls.append("once")
        return "a cat"

    instance.attempt(painter(paint, deferrable=True), while_deferred=clock.go)
    assert len(instance.deferrals) == 1
    assert calls == ["once"]


@pytest.mark.parametrize("decorator", ["gptimg", "gptimg_batch"])
def test_an_async_function_is_refused_when_the_dag_is_parsed(decorator):
    async def paint():
        return "a cat"

    async def paint_many():
        yield "a cat"

    decorate = getattr(task, decorator)
    arguments = {"s3_bucket": "images"} if decorator == "gptimg_batch" else {}
    for function in (paint, paint_many):
        with DAG("decorated"), pytest.raises(GptImgRequestError, match=f"^@task.{decorator} .*'{function.__name__}'"):
            decorate(**arguments)(function)()
