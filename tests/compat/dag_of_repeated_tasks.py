# SPDX-License-Identifier: Apache-2.0
"""Tasks whose first attempt ends after it has paid, in names that all supported versions of Airflow have."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG

from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator


class Submit(GptImgSubmitOperator):
    """Ends its first attempt with the image task accepted and not returned."""

    def execute(self, context):
        if context["ti"].try_number > 1:
            return super().execute(context)
        self._obtain(context)
        raise GptImgError("interrupted")


class Generate(GptImgGenerateOperator):
    """Likewise."""

    def _wait(self, context, *given, **more):
        if context["ti"].try_number > 1:
            return super()._wait(context, *given, **more)
        raise GptImgError("interrupted")


with DAG(
    "gptimg_repeated",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    default_args={"retries": 2, "retry_delay": timedelta(0)},
) as dag:
    Submit(task_id="submit", prompt="a")
    Submit.partial(task_id="mapped").expand(prompt=["b", "c"])
    Generate(task_id="held", prompt="d", deferrable=False)
    Generate(task_id="deferred", prompt="e", deferrable=True)
