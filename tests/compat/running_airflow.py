# SPDX-License-Identifier: Apache-2.0
"""A running Airflow of any supported version, whose tasks a test kills and clears.

Its runs have the methods of the sandbox's `DagRun` that are used here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from airflow_provider_gptimg.airflow_compat import AIRFLOW
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, DagRun, until
from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

_LIMIT = 240.0
"""Seconds that a condition may take on a busy machine."""


class Airflow3(StandaloneAirflow):
    """Airflow 3, by its REST API.

    A scheduler that ends is started again, as any service manager does: on SQLite, which locks no rows, it dies of a
    StaleDataError when a task instance changes under it, as by a clear.
    """

    def __init__(self, dags_folder: Path, env: Mapping[str, str]) -> None:
        # Airflow 3.0 appends to a file of passwords that is there already, which makes it unreadable, and has no issuer
        # by default, which the newest PyJWT does not take.
        own = {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__API_AUTH__JWT_ISSUER": "gptimg",
            # What a scheduler that ended has not taken in is found by these.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
        }
        super().__init__(dags_folder, {**own, **env})
        self._is_stopped = False
        self._stopping = threading.Lock()

    def start(self, timeout: float = 300.0) -> None:
        super().start(timeout)
        threading.Thread(target=self._keep_scheduler, name="scheduler", daemon=True).start()

    def stop(self) -> None:
        with self._stopping:
            self._is_stopped = True
        super().stop()

    def _keep_scheduler(self) -> None:
        while True:
            self._components["scheduler"].wait()
            with self._stopping:
                if self._is_stopped:
                    return
                print(f"The scheduler has ended, and is started again:\n{self.output('scheduler')}")
                self._components["scheduler"] = self._airflow("scheduler", ["scheduler", "--skip-serve-logs"])

    def queue(self, dag_id: str, conf: Mapping[str, object]) -> DagRun:
        """Make a run that does not start before its DAG is unpaused: SQLite is to have one writer at a time."""
        until(lambda: self.api.call("GET", f"/dags/{dag_id}"), _LIMIT, f"{dag_id} to be found")
        body = {"logical_date": None, "conf": conf}
        made = until(lambda: self.api.call("POST", f"/dags/{dag_id}/dagRuns", body), _LIMIT, f"{dag_id} to be ready")
        return DagRun(self.api, dag_id, made["dag_run_id"])

    def unpause(self, dag_id: str) -> None:
        self.api.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})


class Airflow2(StandaloneAirflow):
    """Airflow 2, which needs no server: the test reads and writes its database, as everybody could then."""

    def __init__(self, dags_folder: Path, env: Mapping[str, str]) -> None:
        database = f"sqlite:///{os.environ['AIRFLOW_HOME']}/airflow.db?timeout=60"
        own = {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            # Else the first of its processes makes a key, while the others start without one.
            "AIRFLOW__CORE__FERNET_KEY": "",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
            # A task whose process was killed is found at once. What is found again before the first callback has run
            # fails the next attempt, too.
            "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "120",
            "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "40",
        }
        super().__init__(dags_folder, {**own, **env})
        self._numbers = count()

    def start(self, timeout: float = 300.0) -> None:
        for name in ("scheduler", "triggerer"):
            self._components[name] = self._airflow(name, [name, "--skip-serve-logs"])

    def stop(self) -> None:
        from airflow.jobs.job import Job
        from airflow.utils.session import create_session

        super().stop()
        with create_session() as session:
            session.query(Job).delete()  # else `DAG.test` leaves its triggers to the triggerer that was here

    def queue(self, dag_id: str, conf: Mapping[str, object]) -> Run2:
        from airflow.api.common.trigger_dag import trigger_dag
        from airflow.models.dag import DagModel
        from airflow.models.serialized_dag import SerializedDagModel

        until(
            lambda: DagModel.get_current(dag_id) and SerializedDagModel.has_dag(dag_id), _LIMIT, f"{dag_id} to be found"
        )
        run_id = f"{dag_id}-{next(self._numbers)}"
        run = trigger_dag(dag_id, run_id=run_id, conf=dict(conf), replace_microseconds=False)
        assert run
        return Run2(self, dag_id, run.run_id)

    def unpause(self, dag_id: str) -> None:
        from airflow.models.dag import DagModel

        DagModel.get_dagmodel(dag_id).set_is_paused(is_paused=False)


@dataclass(frozen=True)
class Run2:
    """A run of Airflow 2."""

    airflow: Airflow2
    dag_id: str
    run_id: str

    @property
    def state(self) -> str:
        from airflow.models.dagrun import DagRun
        from airflow.utils.session import create_session

        with create_session() as session:
            [run] = DagRun.find(dag_id=self.dag_id, run_id=self.run_id, session=session)
            return str(run.state)

    def wait(self, timeout: float) -> str:
        return str(until(lambda: state if (state := self.state) in FINAL_RUN_STATES else "", timeout, f"{self}"))

    def task_instance(self, task_id: str) -> dict[str, Any]:
        from airflow.utils.session import create_session

        with create_session() as session:
            ti = self._task_instance(task_id, session)
            return {"state": ti.state and str(ti.state), "try_number": ti.try_number, "pid": ti.pid}

    def clear(self, task_id: str) -> None:
        from airflow.models.dagbag import DagBag
        from airflow.models.taskinstance import clear_task_instances
        from airflow.utils.session import create_session

        with create_session() as session:
            dag = DagBag(read_dags_from_db=True).get_dag(self.dag_id, session)
            clear_task_instances([self._task_instance(task_id, session)], session, dag=dag)

    def log(self, task_id: str) -> str:
        place = self.airflow.home / f"logs/dag_id={self.dag_id}/run_id={self.run_id}/task_id={task_id}"
        file = place / f"attempt={self.task_instance(task_id)['try_number']}.log"
        return file.read_text() if file.exists() else ""

    def _task_instance(self, task_id: str, session: Any) -> Any:
        from airflow.models.taskinstance import TaskInstance

        wanted = {"dag_id": self.dag_id, "run_id": self.run_id, "task_id": task_id}
        return session.query(TaskInstance).filter_by(**wanted).one()


RunningAirflow = Airflow3 if AIRFLOW >= (3, 0) else Airflow2
