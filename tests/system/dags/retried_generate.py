# SPDX-License-Identifier: Apache-2.0
"""A generate that is retried at once."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator

with DAG("retried_generate", schedule=None):
    GptImgGenerateOperator(
        task_id="generate", prompt="A kite", retries=1, retry_delay=timedelta(seconds=1), deferrable=False
    )
