# SPDX-License-Identifier: Apache-2.0
"""XComs as somebody may write them who means no good."""

from __future__ import annotations

from typing import Any

import pytest
from airflow import __version__ as airflow_version

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def set_xcom(run: Any, task_id: str, value: Any) -> None:
    """Set what a task returned."""
    if airflow_version.startswith("3.1."):
        pytest.skip("Airflow 3.1 serialises a value that is written by its API twice")
    run.api.call("PATCH", f"{run.path}/taskInstances/{task_id}/xcomEntries/return_value", {"value": value})
