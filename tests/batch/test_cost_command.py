# SPDX-License-Identifier: Apache-2.0
"""What a DAG costs, before it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from airflow_names import DAG, task, task_group

from airflow_provider_gptimg.cost import main, task_costs
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator

S3 = {"s3_bucket": "images"}


def costs(make, **dag_arguments) -> dict[str, int | str]:
    with DAG("costs", **dag_arguments) as dag:
        make()
    return {cost.task_id: cost.why if cost.images is None else cost.credits for cost in task_costs(dag)}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: GptImgSubmitOperator(task_id="t", prompt="x"), 2),
        (lambda: GptImgGenerateOperator(task_id="t", prompt="{{ ds }}", n="3"), 6),
        (lambda: GptImgSubmitOperator.partial(task_id="t", n=2).expand(prompt=["x", "y"]), 8),
        (lambda: GptImgSubmitOperator.partial(task_id="t").expand(prompt=["x", "y"], n=[1, 4]), 20),
        (
            lambda: GptImgSubmitOperator.partial(task_id="t").expand_kwargs([{"prompt": "x"}, {"prompt": "y", "n": 3}]),
            8,
        ),
        (lambda: GptImgBatchToS3Operator(task_id="t", requests=["x", {"prompt": "y", "n": "2"}], **S3), 6),
        (
            lambda: GptImgBatchToS3Operator.partial(task_id="t", **S3).expand(requests=[["x"], ["y", "z"]]),
            6,
        ),
    ],
)
def test_literal_requests_are_counted(make, expected):
    assert costs(make) == {"t": expected}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: GptImgSubmitOperator(task_id="t", prompt="x"), 4),
        (lambda: GptImgSubmitOperator.partial(task_id="t").expand(prompt=["x", "y"]), 8),
        (lambda: GptImgSubmitOperator.partial(task_id="t", n=1).expand(prompt=["x", "y"]), 4),
        (
            lambda: GptImgSubmitOperator.partial(task_id="t").expand_kwargs([{"prompt": "x"}, {"prompt": "y", "n": 3}]),
            10,
        ),
    ],
    ids=["unmapped", "mapped", "with its own", "by kwargs"],
)
def test_default_arguments_count(make, expected):
    assert costs(make, default_args={"n": 2}) == {"t": expected}


def test_default_arguments_limit_what_is_known_at_run_time():
    brake = "max_credits allows 7 credits an instance"
    assert costs(from_a_task, default_args={"max_credits": 7}) == {
        "mapped": "it is mapped over prompt, by a task's result; max_credits allows 4 credits an instance",
        "by_kwargs": f"it is mapped, by a task's result; {brake}",
        "batch": f"its requests are known at run time, by a task's result; {brake}",
        "n": f"n is rendered at run time; {brake}",
    }
    assert costs(mapped_functions, default_args={"max_credits": 7, **S3}) == {
        "one": f"its function decides; {brake}",
        "many": f"its function decides; {brake}",
    }


def from_a_task() -> None:
    @task
    def prompts():
        return ["x"]

    GptImgSubmitOperator.partial(task_id="mapped", max_credits=4).expand(prompt=prompts())
    GptImgSubmitOperator.partial(task_id="by_kwargs").expand_kwargs(prompts())
    GptImgBatchToS3Operator(task_id="batch", requests=prompts(), **S3)
    GptImgSubmitOperator(task_id="n", prompt="x", n=prompts())


def in_a_mapped_group() -> None:
    @task_group
    def group(prompt):
        GptImgSubmitOperator(task_id="submit", prompt=prompt)

    group.expand(prompt=["x", "y"])


def decorated() -> None:
    @task.gptimg(max_credits=2)
    def one():
        return "x"

    @task.gptimg_batch(s3_bucket="images")
    def many():
        return ["x"]

    one()
    many()


def mapped_functions() -> None:
    @task.gptimg
    def one(prompt):
        return prompt

    @task.gptimg_batch
    def many(prompt):
        return [prompt]

    one.expand(prompt=["x", "y"])
    many.expand(prompt=["x", "y"])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            from_a_task,
            {
                "mapped": "it is mapped over prompt, by a task's result; max_credits allows 4 credits an instance",
                "by_kwargs": "it is mapped, by a task's result",
                "batch": "its requests are known at run time, by a task's result",
                "n": "n is rendered at run time",
            },
        ),
        (in_a_mapped_group, {"group.submit": "its task group is mapped"}),
        (
            decorated,
            {"one": "its function decides; max_credits allows 2 credits an instance", "many": "its function decides"},
        ),
        (
            lambda: GptImgSubmitOperator(task_id="t", prompt="x", n="{{ params.n }}"),
            {"t": "n is rendered at run time"},
        ),
        (
            lambda: GptImgBatchToS3Operator(task_id="t", requests="s3://b/r.csv", **S3),
            {"t": "its requests are read at run time from s3://b/r.csv"},
        ),
    ],
    ids=["from a task", "mapped group", "decorated", "templated", "from S3"],
)
def test_what_is_known_at_run_time_is_said(make, expected):
    assert costs(make) == expected


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: GptImgSubmitOperator(task_id="t", prompt="x", n=9), "n=9"),
        (lambda: GptImgSubmitOperator.partial(task_id="t").expand_kwargs([{"n": 1}]), "prompt"),
    ],
)
def test_what_the_run_would_refuse_is_said(make, complaint):
    (why,) = costs(make).values()
    assert "the run would refuse it: " in str(why)
    assert complaint in str(why)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "beside_the_shop.py").write_text("IMAGES = 2\n")
    (tmp_path / "shop.py").write_text(
        "from airflow_names import DAG\n"
        "from beside_the_shop import IMAGES\n"
        "from airflow_provider_gptimg.operators.gptimg import GptImgSubmitOperator\n"
        "with DAG('shop'):\n"
        "    GptImgSubmitOperator(task_id='one', prompt='x', n=IMAGES)\n"
        "    GptImgSubmitOperator(task_id='other', prompt='x', n='{{ 2 }}')\n"
    )
    (tmp_path / "broken.py").write_text("from airflow_names import DAG\nraise OSError('broken')\n")
    monkeypatch.setattr("airflow.settings.DAGS_FOLDER", str(tmp_path))
    monkeypatch.setattr("sys.path", [*sys.path])

    assert main(["shop"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()] == [
        ["task", "images", "credits"],
        ["one", "2", "4"],
        ["known", "in", "all", "2", "4"],
        ["Not", "known", "before", "the", "run:"],
        ["other:", "n", "is", "rendered", "at", "run", "time"],
    ]

    assert main(["cafe"]) == 1
    said = capsys.readouterr().err
    assert "There is no DAG 'cafe'" in said
    assert "OSError: broken" in said


def test_a_request_that_a_task_makes_is_not_counted_as_one_image():
    def some_from_a_task() -> None:
        @task
        def made():
            return {"prompt": "x", "n": 4}

        GptImgBatchToS3Operator(task_id="batch", requests=["y", made()], **S3)

    assert costs(some_from_a_task) == {"batch": "its requests are known at run time, by a task's result"}


@pytest.mark.parametrize("requests", [None, {"prompt": "x", "n": 4}], ids=repr)
def test_what_is_no_list_is_not_counted(requests):
    told = costs(lambda: GptImgBatchToS3Operator(task_id="batch", requests=requests, **S3))
    assert str(told["batch"]).startswith("the run would refuse it: requests=")
