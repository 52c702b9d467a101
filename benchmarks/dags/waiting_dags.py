# SPDX-License-Identifier: Apache-2.0
"""The same images waited for in four ways, a DAG each: `waits_<way>`."""

from __future__ import annotations

import os

from airflow.sdk import DAG, task

from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor

WAITS = int(os.environ["BENCH_WAITS"])


@task
def submit() -> list[str]:
    """Submit all images from one task."""
    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

    hook = GptImgHook()
    return [hook.submit(f"Kite {number}").task_id for number in range(WAITS)]


@task
def ask_and_sleep(gptimg_task_id: str) -> None:
    """Hold the worker in a loop, as one writes it without a sensor."""
    import time

    from airflow_provider_gptimg.hooks.gptimg import GptImgHook

    hook = GptImgHook()
    while not hook.get_task(gptimg_task_id).is_final:
        time.sleep(5)


with DAG("waits_loop", schedule=None, max_active_tasks=WAITS):
    ask_and_sleep.expand(gptimg_task_id=submit())

with DAG("waits_deferred", schedule=None, max_active_tasks=WAITS):
    GptImgTaskSensor.partial(task_id="wait", deferrable=True).expand(gptimg_task_id=submit())

with DAG("waits_list", schedule=None, max_active_tasks=WAITS):
    GptImgTaskSensor(task_id="wait", deferrable=True, gptimg_task_id=submit())

with DAG("waits_triggerer", schedule=None, max_active_tasks=WAITS):
    # A mapped task would start on a worker.
    submitted = submit()
    for number in range(WAITS):
        submitted >> GptImgTaskSensor(
            task_id=f"wait_{number}",
            gptimg_task_id=f"{{{{ ti.xcom_pull(task_ids='submit', map_indexes=-1)[{number}] }}}}",
            deferrable=True,
            start_from_trigger=True,
            end_from_trigger=True,
        )
