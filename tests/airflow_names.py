# SPDX-License-Identifier: Apache-2.0
"""The Airflow names that tests need and the package does not, on every Airflow."""

from __future__ import annotations

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

__all__ = ["DAG", "HookLineageReader", "Param", "TaskDeferred", "task", "task_group"]
