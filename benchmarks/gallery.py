# SPDX-License-Identifier: Apache-2.0
"""Measure what 100 viewers of a trickling S3 cost a live API server: the latency of other calls, and memory.

It needs Airflow 3.3 and moto, as the environment of development has them: `.venv/bin/python -m benchmarks.gallery`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import psutil

from airflow_provider_gptimg.sandbox import StandaloneAirflow
from airflow_provider_gptimg.sandbox.rest import until
from benchmarks.tables import print_table

TESTS = Path(__file__).parents[1] / "tests/gallery"
sys.path.insert(0, str(TESTS))
from hostile_s3 import HostileS3  # noqa: E402

DAG = "gallery_slow"
"""Its transfer mirrors nothing; an XCom then names pictures that hang."""
VIEWERS = 100
CALLS = 150
LONGEST_P95 = 1.0
MOST_GROWTH = 64.0


class Load:
    """Viewers who look at pictures that hang, each as the page does: asked again where Airflow is busy."""

    def __init__(self, url: str, token: str, run_id: str) -> None:
        self._url = f"{url}/gptimg/dags/{DAG}/picture"
        self._runs = f"{url}/api/v2/dags/{DAG}/dagRuns"
        self._headers = {"authorization": f"Bearer {token}"}
        self._run_id = run_id
        self.answers: dict[int, int] = {}

    async def crowd(self) -> None:
        """Call Airflow's own API as often at once: each of its threads takes memory when it first works."""
        limits = httpx.Limits(max_connections=VIEWERS)
        async with httpx.AsyncClient(headers=self._headers, timeout=120, limits=limits, trust_env=False) as client:
            for _ in range(6):
                await asyncio.gather(*(client.get(self._runs) for _ in range(VIEWERS)))

    async def view(self, index: int) -> None:
        query: dict[str, Any] = {"run_id": self._run_id, "task_id": "mirror", "image_task": "t1", "index": index}
        async with httpx.AsyncClient(headers=self._headers, timeout=120, trust_env=False) as client:
            while True:
                async with client.stream("GET", self._url, params=query) as answer:
                    self.answers[answer.status_code] = self.answers.get(answer.status_code, 0) + 1
                    try:
                        async for _ in answer.aiter_raw():
                            pass
                    except httpx.HTTPError:
                        pass  # cut after its time
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))


def memory(pid: int) -> float:
    """Return the MiB that the API server and its children have to themselves."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(process.memory_full_info().uss for process in processes)) / 2**20


async def measure(url: str, pid: int) -> tuple[list[float], float]:
    """Return the seconds that each call of `/api/v2/version` took, and the highest memory meanwhile."""
    seconds, peak = [], memory(pid)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        for _ in range(CALLS):
            since = time.perf_counter()
            (await client.get("/api/v2/version")).raise_for_status()
            seconds.append(time.perf_counter() - since)
            peak = max(peak, memory(pid))
            await asyncio.sleep(0.1)
    return seconds, peak


async def run(airflow: StandaloneAirflow, slow: HostileS3, token: str, run_id: str, rest: float) -> bool:
    pid = airflow._components["api-server"].pid
    load = Load(airflow.url, token, run_id)
    # What an API server loads for its first pictures, it keeps.
    first = asyncio.create_task(load.view(0))
    while not slow.under_way:
        await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    stages = {"before": await measure(airflow.url, pid)}
    await load.crowd()
    stages[f"after {VIEWERS} calls at once of Airflow's own API"] = await measure(airflow.url, pid)
    viewers = [asyncio.create_task(load.view(index)) for index in range(VIEWERS)]
    while slow.under_way < 4:
        await asyncio.sleep(0.1)
    stages[f"while {VIEWERS} viewers hang"] = await measure(airflow.url, pid)
    for viewer in viewers:
        viewer.cancel()
    await asyncio.gather(*viewers, return_exceptions=True)
    await asyncio.sleep(rest)
    left = slow.under_way
    stages[f"{rest:.0f} s after they left"] = await measure(airflow.url, pid)
    (_, crowded, hanging, after) = stages.values()
    at_start = crowded[1]
    rows = []
    for stage, (seconds, peak) in stages.items():
        p95 = quantiles(seconds, n=20)[-1]
        times = [f"{1000 * each:.0f}" for each in (median(seconds), p95, max(seconds))]
        rows.append([stage, *times, f"{peak:.0f}", f"{peak - at_start:+.0f}"])
    heads = ["", "median, ms", "95th percentile, ms", "longest, ms", "memory, MiB", "growth"]
    print_table("An API server and a trickling S3", heads, rows)
    print(f"Answers to viewers: {load.answers}; pictures still under way at the end: {left}")
    is_fast = quantiles(hanging[0], n=20)[-1] < LONGEST_P95
    return is_fast and hanging[1] - at_start < MOST_GROWTH and after[1] - at_start < MOST_GROWTH and not left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rest", type=float, default=60.0, metavar="SECONDS", help="from the last viewer on")
    arguments = parser.parse_args()
    with HostileS3.running() as slow:
        env = {"AIRFLOW_CONN_GALLERY_SLOW_S3": slow.connection_json}
        with StandaloneAirflow(TESTS / "dags", env) as airflow:
            found = airflow.trigger(DAG)
            found.wait()
            objects = [
                {"uri": f"s3://images/{DAG}/hang/{index}.png", "task_id": "t1", "index": index}
                for index in range(VIEWERS)
            ]
            login = {"username": "admin", "password": airflow.password}
            answer = httpx.post(f"{airflow.url}/auth/token", json=login, timeout=60, trust_env=False)
            token = answer.raise_for_status().json()["access_token"]
            path = f"{found.path}/taskInstances/mirror/xcomEntries"
            found.api.call("POST", path, {"key": "return_value", "value": objects})
            is_fine = asyncio.run(run(airflow, slow, token, found.run_id, arguments.rest))
            until(lambda: not slow.under_way, 60, "the end of all pictures")
    print(json.dumps({"ok": is_fine}))
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
