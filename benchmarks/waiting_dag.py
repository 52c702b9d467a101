# SPDX-License-Identifier: Apache-2.0
"""What a DAG of many waits costs a running Airflow: wall time, worker processes and CPU, of each way to wait."""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import StandaloneAirflow
from benchmarks.tables import print_table

DAGS = Path(__file__).parent / "dags"
WAYS = {
    "loop": "`@task` that asks and sleeps in a loop",
    "deferred": "mapped sensor, deferrable",
    "triggerer": "sensor, starts and ends in the triggerer",
    "list": "one deferrable sensor for all",
}
REFERENCE = "loop"
AT_ONCE = 16
"""Tasks that run at a time on workers: with Airflow's default, 32, some failed at a locked SQLite database."""

# Each process that executes a task begins with this call.
_TASK_STARTED = re.compile(r"/execution/task-instances/[0-9a-f-]+/run\b")


@dataclass(frozen=True)
class Cost:
    """What one run of a DAG took, without its submit.

    :param cpu: Seconds of all processes of Airflow, beyond what it takes to do nothing.
    """

    wall: float
    processes: int
    cpu: float


def cpu_seconds(airflow: StandaloneAirflow) -> float:
    """Return the CPU time of Airflow's processes, also of those that have ended."""
    total = 0.0
    for process in airflow.processes():
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def processes_started(airflow: StandaloneAirflow) -> int:
    """Return how many processes have begun to execute a task so far."""
    return len(_TASK_STARTED.findall((airflow.home / "api-server.log").read_text(errors="replace")))


def idle_cpu(airflow: StandaloneAirflow, seconds: float) -> float:
    """Return the CPU seconds a second that Airflow takes to do nothing."""
    before = cpu_seconds(airflow)
    time.sleep(seconds)
    return (cpu_seconds(airflow) - before) / seconds


def run(airflow: StandaloneAirflow, way: str, idle: float, timeout: float) -> Cost:
    """Run one DAG once, and return what it cost from the end of its submit on."""
    dag_run = airflow.trigger(f"waits_{way}")
    dag_run.wait_for("submit", "success")
    cpu, processes, since = cpu_seconds(airflow), processes_started(airflow), time.time()
    state = dag_run.wait(timeout)
    if state != "success":
        raise RuntimeError(f"{dag_run} ended as {state}")
    cpu, until = cpu_seconds(airflow) - cpu, time.time()
    found = [ti for ti in dag_run.task_instances() if ti["task_id"] != "submit"]
    begun = dag_run.task_instance("submit")["end_date"]
    ended = max(ti["end_date"] for ti in found)
    return Cost(
        wall=(datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds(),
        processes=processes_started(airflow) - processes,
        cpu=cpu - idle * (until - since),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="200 waits instead of 20, and the mapped sensor too")
    parser.add_argument("--waits", type=int)
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, help="default: all, without --full all but the mapped sensor"
    )
    arguments = parser.parse_args()
    ways = arguments.ways or [way for way in WAYS if arguments.full or way != "deferred"]
    waits = arguments.waits or (200 if arguments.full else 20)
    with Emulator(credits=2 * waits * len(ways), record_calls=False) as emulator:
        env = {
            "BENCH_WAITS": str(waits),
            "AIRFLOW_CONN_GPTIMG_DEFAULT": emulator.connection_json,
            "AIRFLOW__CORE__PARALLELISM": str(AT_ONCE),
        }
        with StandaloneAirflow(DAGS, env) as airflow:
            time.sleep(10)
            idle = idle_cpu(airflow, 15)
            costs = {}
            for way in ways:
                costs[way] = run(airflow, way, idle, timeout=120 + 6.0 * waits)
                print(f"{way}: {costs[way]}", file=sys.stderr, flush=True)
    reference = costs.get(REFERENCE)
    print_table(
        f"{waits} waits for generations of 45–60 s, {AT_ONCE} tasks at a time on workers",
        ["wait", "wall s", "worker processes", "CPU s", "CPU to the loop"],
        [
            [
                WAYS[way],
                f"{cost.wall:.0f}",
                str(cost.processes),
                f"{cost.cpu:.1f}",
                f"{cost.cpu / reference.cpu:.2f} ×" if reference else "",
            ]
            for way, cost in costs.items()
        ],
    )


if __name__ == "__main__":
    main()
