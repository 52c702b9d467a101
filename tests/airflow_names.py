# SPDX-License-Identifier: Apache-2.0
"""The Airflow names that tests need and the package does not, on every Airflow."""

from __future__ import annotations

from typing import Any

from airflow_provider_gptimg.airflow_compat import AIRFLOW, BaseOperator

try:
    from airflow.sdk import DAG, Param, task, task_group
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task, task_group
    from airflow.models.param import Param

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # before Airflow 3.2
    from airflow.exceptions import TaskDeferred

try:
    from airflow.sdk.lineage import HookLineageReader
except ImportError:  # before Airflow 3.2
    from airflow.lineage.hook import HookLineageReader

__all__ = ["DAG", "HookLineageReader", "Param", "TaskDeferred", "execute", "task", "task_group"]


def execute(operator: BaseOperator, context: Any) -> Any:
    """Execute as Airflow does: Airflow 2 takes it for nested otherwise, which only works on the main thread."""
    if AIRFLOW >= (3, 0) or operator.execute.__name__ != "execute":
        return operator.execute(context)
    from airflow.models.base import _sentinel

    return operator.execute(context, **{f"{type(operator).__name__}__sentinel": _sentinel})
