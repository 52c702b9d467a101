# SPDX-License-Identifier: Apache-2.0
"""XComs as somebody may write them who means no good."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from airflow import __version__ as airflow_version

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


home = Path()
"""Of the Airflow that runs."""


def set_xcom(run: Any, task_id: str, value: Any, client: Any = None) -> None:
    """Set what a task returned.

    :param client: Of who does it; None: the administrator.
    """
    if airflow_version.startswith("3.1."):  # whose API serialises a value twice
        return _write(run, task_id, value)
    path = f"{run.path}/taskInstances/{task_id}/xcomEntries"
    entry = {"key": "return_value", "value": value}
    if client is None:
        if run.api.call("PATCH", f"{path}/return_value", {"value": value}) is None:
            run.api.call("POST", path, entry)
        return None
    answer = client.patch(f"/api/v2{path}/return_value", json={"value": value})
    if answer.status_code == 404:
        answer = client.post(f"/api/v2{path}", json=entry)
    answer.raise_for_status()
    return None


def _write(run: Any, task_id: str, value: Any) -> None:
    """Write what a task of the DAG could push."""
    of = {"dag": run.dag_id, "run": run.run_id, "task": task_id, "value": json.dumps(json.dumps(value))}
    place = "dag_id = :dag AND run_id = :run AND task_id = :task AND key = 'return_value'"
    columns = "dag_run_id, task_id, map_index, key, dag_id, run_id, value, timestamp"
    values = "id, :task, -1, 'return_value', dag_id, run_id, :value, CURRENT_TIMESTAMP"
    with closing(sqlite3.connect(home / "airflow.db", timeout=60)) as database, database:
        if not database.execute(f"UPDATE xcom SET value = :value WHERE {place}", of).rowcount:
            found = "FROM dag_run WHERE dag_id = :dag AND run_id = :run"
            database.execute(f"INSERT INTO xcom ({columns}) SELECT {values} {found}", of)
