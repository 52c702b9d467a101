# SPDX-License-Identifier: Apache-2.0
"""A task's role comes from what it is, whatever its class is called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, task
from airflow.serialization import serialized_objects

from airflow_provider_gptimg.gallery.roles import Graph, Role
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


class PosterTransfer(GptImgToS3Operator):
    """Mirrors posters."""


class SensorOfNothing(GptImgSubmitOperator):
    """Its name is misleading."""


class Gptimg(BaseOperator):
    """It has the name only."""


def _serialized(dag: DAG) -> Any:
    serialization = getattr(serialized_objects, "DagSerialization", None) or serialized_objects.SerializedDAG
    return json.loads(json.dumps(serialization.to_dict(dag), default=str))


def test_roles_and_edges_of_a_dag():
    with DAG("roles", schedule=None) as dag:
        asked = SensorOfNothing(task_id="asked", prompt="A cat")
        waited = GptImgTaskSensor(task_id="waited", gptimg_task_id=asked.output)
        PosterTransfer(task_id="mirrored", gptimg_task_id=waited.output, s3_bucket="b")
        generated = GptImgGenerateOperator.partial(task_id="generated").expand(prompt=["a", "b"])
        PosterTransfer.partial(task_id="each", s3_bucket="b").expand(gptimg_task_id=generated.output)
        GptImgBatchToS3Operator(task_id="batch", requests=["a"], s3_bucket="b")
        Gptimg(task_id="other") >> asked

        @task.gptimg
        def decorated() -> str:
            return "A cat"

        @task.gptimg_batch(s3_bucket="b")
        def decorated_batch() -> list[str]:
            return ["A cat"]

        decorated()
        decorated_batch()
    graph = Graph.read(_serialized(dag))
    assert graph.roles == {
        "asked": Role.SUBMIT,
        "waited": Role.WAIT,
        "mirrored": Role.MIRROR,
        "generated": Role.SUBMIT,
        "each": Role.MIRROR,
        "batch": Role.BATCH,
        "decorated": Role.SUBMIT,
        "decorated_batch": Role.BATCH,
    }
    assert list(graph.levels_above("mirrored")) == [{"waited"}, {"asked"}, {"other"}]
    assert list(graph.levels_above("each")) == [{"generated"}]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        5,
        {},
        {"dag": 5},
        {"dag": {"tasks": [5, {}, {"__var": 5}, {"__var": {"task_id": "t", "template_fields": [[]]}}]}},
    ],
)
def test_an_odd_dag_has_no_images(odd):
    assert Graph.read(odd) == Graph()


def test_a_circle_ends():
    graph = Graph(upstream={"a": {"b"}, "b": {"a"}})
    assert list(graph.levels_above("a")) == [{"b"}]
