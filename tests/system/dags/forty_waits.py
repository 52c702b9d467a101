# SPDX-License-Identifier: Apache-2.0
"""Forty waits for images that one task submits, and one for an image that never comes."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor

WAITS = 40
CONN_ID = "gptimg_waits"
IN_TRIGGERER = {"deferrable": True, "start_from_trigger": True, "end_from_trigger": True}

with DAG("forty_waits", schedule=None):

    @task
    def submit() -> list[str]:
        from airflow_provider_gptimg.hooks.gptimg import GptImgHook

        hook = GptImgHook(CONN_ID)
        return [hook.submit(f"Kite {number}").task_id for number in range(WAITS)]

    submitted = submit()
    for number in range(WAITS):
        submitted >> GptImgTaskSensor(
            task_id=f"wait_{number}",
            gptimg_task_id=f"{{{{ ti.xcom_pull(task_ids='submit', map_indexes=-1)[{number}] }}}}",
            gptimg_conn_id=CONN_ID,
            timeout=3600,
            **IN_TRIGGERER,
        )
    GptImgTaskSensor(
        task_id="wait_in_vain",
        gptimg_task_id="{{ dag_run.conf['unending'] }}",
        gptimg_conn_id=CONN_ID,
        timeout=300,
        soft_fail=True,
        **IN_TRIGGERER,
    )
