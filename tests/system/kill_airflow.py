# SPDX-License-Identifier: Apache-2.0
"""An Airflow to kill processes of: it notices a death within seconds, and its workers go through a gate."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from kill_gate import Gate

from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

DAGS = Path(__file__).parent / "dags_kill"

_SOON = {
    # A machine that is lost is given up after so many seconds, and so is a triggerer.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
    # A call that the gate holds is not to be made a second time.
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
}


@contextmanager
def killable_airflow(
    gate: Gate, connections: Mapping[str, str], parallelism: int, settings: Mapping[str, str] | None = None
) -> Iterator[StandaloneAirflow]:
    """Run an Airflow behind `gate`.

    :param connections: Airflow connections in JSON by their ids.
    :param parallelism: Tasks that run at a time at the most.
    :param settings: Further environment variables.
    """
    env = {
        **_SOON,
        **(settings or {}),
        **{f"AIRFLOW_CONN_{conn_id.upper()}": connection for conn_id, connection in connections.items()},
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{gate.url}/execution/",
    }
    airflow = StandaloneAirflow(DAGS, env)
    gate.upstream = airflow.url
    with airflow:
        yield airflow


def kill_task(process: psutil.Process, supervisor: psutil.Process, with_supervisor: bool) -> bool:
    """Kill a task's process; return False if it has ended by itself.

    :param with_supervisor: As when a machine is lost: nobody is left who could tell Airflow.
    """
    try:
        # While its task is alive, the supervisor is busy with it. An idle one holds the executor's queue, and
        # would take the queue's lock to its grave.
        process.send_signal(signal.SIGSTOP)
        if process.status() == psutil.STATUS_ZOMBIE or process.ppid() != supervisor.pid:
            return False
    except psutil.NoSuchProcess:
        return False
    if with_supervisor:
        supervisor.kill()
    process.kill()
    return True
