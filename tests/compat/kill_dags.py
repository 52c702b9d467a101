# SPDX-License-Identifier: Apache-2.0
"""Tasks that kill their own process where the run's conf says, in names that all supported versions of Airflow have."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime, timedelta

from airflow import DAG

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def point_of(context):
    """Return where this process is to be killed: in the first attempt only."""
    return (context["dag_run"].conf or {}).get("point") if context["ti"].try_number == 1 else None


def set_traps(point):
    """Have this process killed at `point`."""
    from airflow_provider_gptimg.journal import attempt

    open_store = attempt.open_store

    def opened(context):
        store = open_store(context)
        put = store.put

        def put_or_die(name, entry):
            text = json.dumps(entry)
            what = "intent" if '"fingerprint"' in text else "outcome" if '"task_id"' in text else ""
            if point == f"before the {what}":
                die()
            is_there = put(name, entry)
            if point == f"after the {what}":
                die()
            return is_there

        store.put = put_or_die
        return store

    attempt.open_store = opened
    if point == "after the success":
        once_recorded = attempt.Attempt.once_recorded
        attempt.Attempt.once_recorded = lambda self, note: once_recorded(self, die)
    if point == "before the images' PUT":
        from botocore.client import BaseClient

        call = BaseClient._make_api_call
        BaseClient._make_api_call = lambda self, name, given: die() if name == "PutObject" else call(self, name, given)


class Killed:
    def execute(self, context, **of_airflow_2):
        set_traps(point_of(context))
        return super().execute(context, **of_airflow_2)

    def execute_complete(self, context, event, **more):
        if point_of(context) == "when it resumes":
            die()
        return super().execute_complete(context, event, **more)

    def post_execute(self, context, result=None):
        if point_of(context) == "when it has returned":
            die()


class Submit(Killed, GptImgSubmitOperator):
    pass


class Generate(Killed, GptImgGenerateOperator):
    pass


class Batch(Killed, GptImgBatchToS3Operator):
    pass


class ToS3(Killed, GptImgToS3Operator):
    pass


CONNECTION = {"gptimg_conn_id": "{{ dag_run.conf['connection'] }}"}
REQUEST = {"prompt": "{{ run_id }}", **CONNECTION}
IN_S3 = {"s3_bucket": "images", "s3_key": "{{ dag_run.conf['connection'] }}/{task_id}/{index}{ext}"}


def dag_of(dag_id, retries=2):
    given = {"retries": retries, "retry_delay": timedelta(0)}
    return DAG(dag_id, schedule=None, start_date=datetime(2026, 1, 1), default_args=given)


for suffix, retries in (("", 2), ("_once", 0)):
    with dag_of(f"kill_submit{suffix}", retries):
        Submit(task_id="images", **REQUEST)
    with dag_of(f"kill_generate{suffix}", retries):
        Generate(task_id="images", deferrable=False, **REQUEST)
    with dag_of(f"kill_deferred{suffix}", retries):
        Generate(task_id="images", deferrable=True, **REQUEST)
    with dag_of(f"kill_batch{suffix}", retries):
        Batch(task_id="images", requests=["a", "b", "c"], deferrable=False, **CONNECTION, **IN_S3)
    with dag_of(f"kill_chain{suffix}", retries):
        paid = GptImgSubmitOperator(task_id="submit", **REQUEST)
        waited = GptImgTaskSensor(task_id="images", gptimg_task_id=paid.output, deferrable=False, **CONNECTION)
        ToS3(task_id="mirror", gptimg_task_id=waited.output, **CONNECTION, **IN_S3)
