# SPDX-License-Identifier: Apache-2.0
"""The load of the cluster runs. A prompt names its DAG, its run and its number, so that the ledger can be read."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, dag, get_parsing_context, task, task_group

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.transfers.gptimg_to_s3 import GptImgToS3Operator

BUCKET = "images"
SENSORS = int(os.environ["CLUSTER_SENSORS"])
DEFAULTS = {"retries": 6, "retry_delay": timedelta(seconds=2)}
KEY = "/{{ run_id }}/{task_id}-{index}{ext}"


def numbered(**context):
    """Return the run's prompts, as many as its conf says."""
    run = context["dag_run"]
    return [f"{run.dag_id} {run.run_id} {number}" for number in range(int(run.conf["images"]))]


def chains():
    @dag("chains", schedule=None, default_args=DEFAULTS)
    def chains():
        @task_group
        def chain(prompt):
            images = GptImgGenerateOperator(task_id="generate", prompt=prompt, deferrable=True)
            GptImgToS3Operator(
                task_id="mirror", gptimg_task_id=images.output, s3_bucket=BUCKET, s3_key="chains" + KEY, deferrable=True
            )

        chain.expand(prompt=task(task_id="prompts")(numbered)())

    chains()


def sensors():
    with DAG("sensors", schedule=None, default_args=DEFAULTS):
        for number in range(SENSORS):
            submit = GptImgSubmitOperator(task_id=f"submit{number}", prompt=f"sensors {{{{ run_id }}}} {number}")
            wait = GptImgTaskSensor(
                task_id=f"wait{number}",
                gptimg_task_id=submit.output,
                deferrable=True,
                start_from_trigger=True,
                end_from_trigger=True,
            )
            mirror = GptImgToS3Operator(
                task_id=f"mirror{number}", gptimg_task_id=wait.output, s3_bucket=BUCKET, s3_key="sensors" + KEY
            )
            submit >> wait >> mirror


def batch():
    with DAG("batch", schedule=None, default_args=DEFAULTS):
        GptImgBatchToS3Operator(
            task_id="batch",
            requests=task(task_id="prompts")(numbered)(),
            s3_bucket=BUCKET,
            s3_key="batch" + KEY,
            deferrable=True,
            max_in_flight=60,
        )


wanted = get_parsing_context().dag_id
for make in (chains, sensors, batch):
    if wanted in (None, make.__name__):
        make()
