# SPDX-License-Identifier: Apache-2.0
"""DAGs for random kills: many images, every other one waited for in the triggerer."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator

for size in (10, 50):
    with DAG(f"chaos_{size}", schedule=None, max_active_tasks=size):
        GptImgGenerateOperator.partial(
            task_id="images",
            gptimg_conn_id="gptimg_chaos",
            # More than there are kills: only an unknown outcome may fail a task.
            retries=50,
            retry_delay=timedelta(seconds=1),
        ).expand_kwargs([{"prompt": f"picture {number}", "deferrable": number % 2 == 0} for number in range(size)])
