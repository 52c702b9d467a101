# SPDX-License-Identifier: Apache-2.0
"""A minimal client of Airflow's REST API: trigger a DAG, inspect its run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import httpx

__all__ = ["AirflowApi", "DagRun", "until"]

FINAL_RUN_STATES = ("success", "failed")
_ATTEMPTS = 10
"""Over SQLite the API server, asked while a worker writes, does nothing for 5 s and then answers 500."""


def until(condition: Callable[[], Any], timeout: float, what: str, pause: float = 0.3) -> Any:
    """Call `condition` until its result is true, and return that result.

    :param timeout: Seconds.
    :param what: What it waits for, for the error.
    :param pause: Seconds between two looks.
    :raises TimeoutError: It is still false after `timeout`.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"Waited {timeout:.0f} s in vain for {what}")
        time.sleep(pause)
    return result


class AirflowApi:
    """Calls of Airflow's REST API by one user.

    :param url: Of the API server.
    """

    def __init__(self, url: str, username: str, password: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._login = {"username": username, "password": password}

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    @cached_property
    def _headers(self) -> dict[str, str]:
        answer = self._http.post("/auth/token", json=self._login).raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """Return the JSON answer of `/api/v2{path}`; None if the answer is 404.

        :raises httpx.HTTPStatusError: Any other error.
        """
        for _ in range(_ATTEMPTS):
            answer = self._http.request(method, f"/api/v2{path}", json=body, params=params, headers=self._headers)
            if answer.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                break
            time.sleep(1)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return answer.raise_for_status().json() if answer.content else None

    def health(self) -> dict[str, dict[str, str | None]]:
        """Return the health of each component."""
        # What workers talk to is built at its first request, which takes seconds: now, rather than in a task.
        self._http.get("/execution/health")
        health: dict[str, dict[str, str | None]] = self._http.get("/api/v2/monitor/health").json()
        return health

    def trigger(
        self,
        dag_id: str,
        conf: Mapping[str, object] | None = None,
        timeout: float = 120.0,
        *,
        other_errors: bool = False,
    ) -> DagRun:
        """Run a DAG, and return its run at once.

        :param conf: Values for its params.
        :param timeout: Seconds for the DAG to be found.
        :param other_errors: Pass over files that cannot be imported, since the DAG is in another one.
        :raises RuntimeError: It cannot be imported, or its params are wrong; the message says why.
        """
        until(lambda: self._is_known(dag_id, other_errors), timeout, f"the DAG {dag_id} to be found")
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})
        # As the UI does: without a logical date, templates have no `ds`.
        body = {"logical_date": datetime.now(UTC).isoformat(), "conf": dict(conf or {})}

        def post() -> Any:
            try:
                return self.call("POST", f"/dags/{dag_id}/dagRuns", body)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (400, 422):
                    raise
                why = error.response.json().get("detail")
                raise RuntimeError(f"{dag_id} cannot be run with the defaults of its params: {why}") from None

        # Airflow lists a DAG a moment before it can run it.
        run = until(post, timeout, f"{dag_id} to be ready to run")
        return DagRun(self, dag_id, run["dag_run_id"])

    def add_connection(self, conn_id: str, connection: str) -> None:
        """Store a connection in Airflow's database.

        :param connection: Its fields as JSON, as in an `AIRFLOW_CONN_…` variable.
        """
        fields = json.loads(connection)
        fields["extra"] = json.dumps(fields.get("extra", {}))
        # Airflow 3.3's button Test sends port 0 for none, and answers "Bad Request" unless that is what is stored.
        self.call("POST", "/connections", {"connection_id": conn_id, "port": 0, **fields})

    def asset_events(self, **filters: Any) -> list[dict[str, Any]]:
        """Return asset events, each with its `extra`, and as `created_dagruns` the runs that it has started.

        :param filters: `asset_id`, `source_dag_id`, `source_run_id` and the like.
        """

        def ask() -> dict[str, Any] | None:
            try:
                answer: dict[str, Any] = self.call("GET", "/assets/events", **filters)
            except httpx.HTTPStatusError as error:
                # Airflow 3.3 fails to answer while a run that one of the events has started is still queued.
                if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                    raise
                return None
            return answer

        events: list[dict[str, Any]] = until(ask, 60, "the asset events")["asset_events"]
        return events

    def tiles(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return what the gallery shows of a run: its `tiles`, its `credits` and more."""
        answer = self._http.get(f"/gptimg/dags/{dag_id}/tiles", params={"run_id": run_id}, headers=self._headers)
        shown: dict[str, Any] = answer.raise_for_status().json()
        return shown

    def import_errors(self) -> list[dict[str, Any]]:
        """Return why files cannot be imported: of each its `filename` and `stack_trace`, and more."""
        errors: list[dict[str, Any]] = self.call("GET", "/importErrors")["import_errors"]
        return errors

    def _is_known(self, dag_id: str, other_errors: bool) -> bool:
        if self.call("GET", f"/dags/{dag_id}"):
            return True
        for error in () if other_errors else self.import_errors():
            raise RuntimeError(f"{error['filename']} cannot be imported:\n{error['stack_trace']}")
        return False


@dataclass(frozen=True)
class DagRun:
    """A run of a DAG, seen through the REST API. What it returns are the API's own JSON values."""

    api: AirflowApi = field(repr=False)
    dag_id: str
    run_id: str

    @property
    def url(self) -> str:
        """Its page in Airflow's UI."""
        return f"{self.api.url}/dags/{self.dag_id}/runs/{self.run_id}"

    @property
    def path(self) -> str:
        """Below `/api/v2`."""
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}"

    @property
    def state(self) -> str:
        """`queued`, `running`, `success` or `failed`."""
        state: str = self.api.call("GET", self.path)["state"]
        return state

    def wait(self, timeout: float = 300.0) -> str:
        """Return the run's final state.

        :param timeout: Seconds.
        :raises TimeoutError: It has not ended by then.
        """
        final: str = until(
            lambda: state if (state := self.state) in FINAL_RUN_STATES else None, timeout, f"the end of {self}"
        )
        return final

    def task_instances(self) -> list[dict[str, Any]]:
        """Return all its task instances, in the order in which they started; those to come are last."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.api.call("GET", f"{self.path}/taskInstances", limit=100, offset=len(found), order_by="id")
            found += page["task_instances"]
            if not page["task_instances"] or len(found) >= page["total_entries"]:
                return sorted(found, key=lambda ti: ti["start_date"] or "~")

    def task_instance(self, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return one task instance: its `state`, `try_number`, `pid` and more.

        :raises LookupError: The run has no such task instance.
        """
        ti: dict[str, Any] | None = self.api.call("GET", f"{self.path}/taskInstances/{task_id}/{map_index}")
        if ti is None:
            raise LookupError(f"{self} has no task instance {task_id}[{map_index}]")
        return ti

    def wait_for(self, task_id: str, *states: str, map_index: int = -1, timeout: float = 120.0) -> dict[str, Any]:
        """Return a task instance as soon as it is in one of `states`.

        :raises TimeoutError: It is in none of them after `timeout` seconds.
        """
        found: dict[str, Any] = until(
            lambda: ti if (ti := self.task_instance(task_id, map_index))["state"] in states else None,
            timeout,
            f"{task_id} of {self} to be {' or '.join(states)}",
            pause=0.1,
        )
        return found

    def xcom(self, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """Return what a task has pushed; None if nothing."""
        path = f"{self.path}/taskInstances/{task_id}/xcomEntries/{key}"
        entry = self.api.call("GET", path, map_index=map_index, deserialize=True)
        return entry and entry["value"]

    def credits(self) -> tuple[int, int]:
        """Return the credits charged and refunded, as far as Airflow has them on record; the gallery reads them."""
        recorded = self.api.tiles(self.dag_id, self.run_id)["credits"]
        return recorded["charged"], recorded["refunded"]

    def asset_events(self) -> list[dict[str, Any]]:
        """Return the asset events of its tasks, each with its `extra`, and as `created_dagruns` what it has started."""
        return self.api.asset_events(source_dag_id=self.dag_id, source_run_id=self.run_id)

    def started_runs(self, timeout: float = 30.0) -> list[DagRun]:
        """Return the runs that its asset events and its `TriggerDagRunOperator`s have started.

        :param timeout: Seconds to wait for a run of each DAG that those assets schedule; one that waits for other
            assets as well may have none.
        """
        found = [
            DagRun(self.api, ti["rendered_fields"]["trigger_dag_id"], self.xcom(ti["task_id"], "trigger_run_id"))
            for ti in self.task_instances()
            if ti["operator_name"] == "TriggerDagRunOperator" and ti["state"] == "success"
        ]
        assets = [self.api.call("GET", f"/assets/{event['asset_id']}") for event in self.asset_events()]
        scheduled = {reference["dag_id"] for asset in assets for reference in asset["scheduled_dags"]}
        scheduled = {dag_id for dag_id in scheduled if not self.api.call("GET", f"/dags/{dag_id}")["is_paused"]}

        def started() -> set[tuple[str, str]]:
            return {
                (reference["dag_id"], reference["run_id"])
                for event in self.asset_events()
                for reference in event["created_dagruns"]
            }

        with suppress(TimeoutError):
            until(lambda: scheduled <= {dag_id for dag_id, _ in started()}, timeout, f"the runs that {self} starts")
        return found + [DagRun(self.api, *reference) for reference in sorted(started())]

    def state_store(self, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return what a task keeps over its attempts."""
        path = f"{self.path}/taskInstances/{task_id}/state-store"
        entries = self.api.call("GET", path, map_index=map_index) or {"task_state_store": []}
        return {entry["key"]: entry["value"] for entry in entries["task_state_store"]}

    def log(self, task_id: str, try_number: int | None = None, map_index: int = -1) -> str:
        """Return the log of one attempt, the triggerer's part too.

        :param try_number: From 1; None: the latest.
        """
        if try_number is None:
            try_number = self.task_instance(task_id, map_index)["try_number"]
        path = f"{self.path}/taskInstances/{task_id}/logs/{try_number}"
        answer = self.api.call("GET", path, map_index=map_index, full_content=True) or {"content": []}
        return "\n".join(_text(entry) for entry in answer["content"])

    def clear(self, task_id: str, map_index: int | None = None) -> None:
        """Clear a task, whatever its state, as a person does in the UI.

        :param map_index: None: all instances of a mapped task.
        """
        body = {
            "dry_run": False,
            "dag_run_id": self.run_id,
            "task_ids": [task_id if map_index is None else [task_id, map_index]],
            "only_failed": False,
        }
        self.api.call("POST", f"/dags/{self.dag_id}/clearTaskInstances", body)

    def __str__(self) -> str:
        return f"{self.dag_id} {self.run_id}"


def _text(entry: dict[str, Any] | str) -> str:
    """Return an entry of a log as lines of text."""
    if isinstance(entry, str):
        return entry
    lines = [" ".join(str(entry[name]) for name in ("timestamp", "level", "event") if entry.get(name))]
    for error in entry.get("error_detail") or ():
        lines.append(f"    {error.get('exc_type')}: {error.get('exc_value')}")
    return "\n".join(lines)
