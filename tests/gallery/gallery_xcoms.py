# SPDX-License-Identifier: Apache-2.0
"""XComs as somebody may write them who means no good."""

from __future__ import annotations

from typing import Any

import pytest
from airflow import __version__ as airflow_version

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def set_xcom(run: Any, task_id: str, value: Any, client: Any = None) -> None:
    """Set what a task returned.

    :param client: Of who does it; None: the administrator.
    """
    if airflow_version.startswith("3.1."):
        pytest.skip("Airflow 3.1 serialises a value that is written by its API twice")
    path = f"{run.path}/taskInstances/{task_id}/xcomEntries"
    entry = {"key": "return_value", "value": value}
    if client is None:
        if run.api.call("PATCH", f"{path}/return_value", {"value": value}) is None:
            run.api.call("POST", path, entry)
        return
    answer = client.patch(f"/api/v2{path}/return_value", json={"value": value})
    if answer.status_code == 404:
        answer = client.post(f"/api/v2{path}", json=entry)
    answer.raise_for_status()
