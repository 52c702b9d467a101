# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the cluster: one fault after another, in an order of chance."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
from cluster import HEARTBEAT_TIMEOUT, Cluster

from airflow_provider_gptimg.sandbox.rest import until

__all__ = ["FAULTS", "Happened", "Scene"]

RECOVERY = 240.0
"""Seconds after a fault within which a task must succeed again."""


@dataclass
class Happened:
    """A fault that was made.

    :param lasted: Seconds.
    :param healthy: Seconds from its end until all components were well again.
    :param next_success: Seconds from its end until the next task instance succeeded.
    """

    name: str
    detail: str = ""
    lasted: float = 0.0
    healthy: float | None = None
    next_success: float | None = None
    restarted: dict[str, int] = field(default_factory=dict)


@dataclass
class Scene:
    """What faults work on.

    :param label: The run id of the load.
    """

    cluster: Cluster
    label: str
    chance: random.Random
    marked: list[tuple[str, str, int]] = field(default_factory=list)

    def make(self, name: str) -> Happened:
        """Make a fault, and return how it went."""
        before, began = self.cluster.restarts.copy(), time.time()
        happened = Happened(name, detail=FAULTS[name](self) or "")
        over = time.time()
        happened.lasted = over - began
        success = f"select 1 from task_instance where state = 'success' and end_date > to_timestamp({over}) limit 1"
        happened.healthy = _seconds_until(lambda: self.cluster.healthy(over), over)
        happened.next_success = _seconds_until(lambda: self.cluster.query(success) or not self.goes_on(), over)
        happened.restarted = dict(self.cluster.restarts - before)
        return happened

    def goes_on(self) -> bool:
        """Tell whether a run of the load has not ended; also while nothing can be asked."""
        sql = f"select state in ('queued', 'running') from dag_run where run_id = '{self.label}'"
        rows = self.cluster.query(sql)
        return not rows or any(active for (active,) in rows)

    def pick(self, number: int, *state: str) -> list[dict[str, Any]]:
        """Choose task instances of the load in one of these states, with `generate` or a submit preferred."""
        sql = f"""select dag_id, task_id, map_index, pid, try_number from task_instance where run_id = '{self.label}'
            and state in ({", ".join(f"'{each}'" for each in state)}) and task_id <> 'prompts' order by 1, 2, 3"""
        keys = ("dag_id", "task_id", "map_index", "pid", "try_number")
        found = [dict(zip(keys, row, strict=True)) for row in self.cluster.query(sql)]
        return self.chance.sample(found, min(number, len(found)))


def _seconds_until(condition: Callable[[], Any], since: float) -> float | None:
    try:
        until(condition, RECOVERY, "", pause=0.5)
    except TimeoutError:
        return None
    return time.time() - since


def _kill(name: str, pause: float) -> Callable[[Scene], str]:
    def fault(scene: Scene) -> str:
        victim = name if name == "scheduler" else f"{name}-{scene.chance.choice('12')}"
        running = len(scene.pick(1000, "running"))
        scene.cluster.kill(victim)
        time.sleep(pause)
        scene.cluster.start(victim)
        return f"{victim}, while {running} tasks ran"

    return fault


def _api_server_frozen(scene: Scene) -> str:
    victim = f"api-server-{scene.chance.choice('12')}"
    with scene.cluster.frozen(victim):
        time.sleep(16)
    return victim


def _take_away(name: str, pause: float) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        scene.cluster.terminate(name)
        time.sleep(pause)
        scene.cluster.start(name)

    return fault


def _api_paused(scene: Scene) -> None:
    with scene.cluster.frozen("emulator"):
        time.sleep(20)


def _connections_reset(scene: Scene) -> str:
    """Cut polls, submits and downloads, before and after the API has done its part."""
    orders = {"poll": 10, "submit": 3, "image": 5}
    for on, times in orders.items():
        for what in ("lost_before", "lost_after"):
            scene.cluster.emulator.post("/_emulator/faults", json={"on": on, "what": what, "times": times})
    time.sleep(30)
    scene.cluster.emulator.delete("/_emulator/faults")
    return ", ".join(f"up to {2 * times} {on}s" for on, times in orders.items())


def _tasks_frozen(scene: Scene) -> str:
    """Freeze running tasks with their supervisors until Airflow has given them up, then let them go on."""
    chosen = until(lambda: [ti for ti in scene.pick(4, "running") if ti["pid"]] or not scene.goes_on(), 60, "a task")
    if chosen is True:
        return "no task ran"
    with ExitStack() as thaw:
        caught = []
        for ti in chosen:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(ti["pid"])
                supervisor = process.parent()
                if supervisor is None or not _is_of_a_worker(scene, supervisor):
                    continue
                for each in (supervisor, process):
                    each.suspend()
                    thaw.callback(_resume, each)
                caught.append(ti)
        time.sleep(HEARTBEAT_TIMEOUT if caught else 0)
        with suppress(TimeoutError):
            until(lambda: all(_given_up(scene, ti) for ti in caught), 60, "Airflow to give them up", pause=1)
    return f"{len(caught)} tasks"


def _is_of_a_worker(scene: Scene, process: psutil.Process) -> bool:
    workers = {scene.cluster.tree(f"worker-{number}")[0].pid for number in "12"}
    return process.pid not in workers and bool(workers & {parent.pid for parent in process.parents()})


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.resume()


def _given_up(scene: Scene, ti: dict[str, Any]) -> bool:
    sql = f"""select state, try_number from task_instance where run_id = '{scene.label}' and dag_id = '{ti["dag_id"]}'
        and task_id = '{ti["task_id"]}' and map_index = {ti["map_index"]}"""
    return any(state != "running" or attempt > ti["try_number"] for state, attempt in scene.cluster.query(sql))


def _marked_failed(scene: Scene) -> str:
    """Mark tasks failed that run or wait, and clear them a little later."""
    chosen = scene.pick(4, "running", "deferred")
    call = scene.cluster.api.call
    for ti in chosen:
        path = f"/dags/{ti['dag_id']}/dagRuns/{scene.label}/taskInstances/{ti['task_id']}"
        mapped = f"/{ti['map_index']}" if ti["map_index"] >= 0 else ""
        with suppress(httpx.HTTPStatusError):  # it has ended since
            call("PATCH", path + mapped, {"new_state": "failed"})
    time.sleep(10)
    for ti in chosen:
        ids = [[ti["task_id"], ti["map_index"]] if ti["map_index"] >= 0 else ti["task_id"]]
        body = {"dry_run": False, "dag_run_id": scene.label, "only_failed": True, "include_downstream": True}
        call("POST", f"/dags/{ti['dag_id']}/clearTaskInstances", body | {"task_ids": ids})
    return ", ".join(f"{ti['dag_id']}.{ti['task_id']}" for ti in chosen)


FAULTS: dict[str, Callable[[Scene], str | None]] = {
    "a worker killed": _kill("worker", 8),
    "a triggerer killed": _kill("triggerer", 8),
    "the scheduler killed": _kill("scheduler", 10),
    "an API server frozen": _api_server_frozen,
    "Redis away": _take_away("redis", 20),
    "PostgreSQL away": _take_away("postgres", 15),
    "the API paused": _api_paused,
    "the API's connections reset": _connections_reset,
    "running tasks frozen and thawed": _tasks_frozen,
    "tasks marked failed and cleared": _marked_failed,
}
