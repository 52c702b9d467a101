# SPDX-License-Identifier: Apache-2.0
"""A small simulation of the cluster under load: legs that share cores and slots, and waits in between."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

__all__ = ["simulate"]

SLOTS = 12
"""Tasks that the cluster's workers run at a time."""
IN_FLIGHT = 60
"""Image tasks of the batch that are under way at a time."""
GENERATION = (15.0, 20.0)
"""Seconds, of the emulator at the cluster's speed."""
FIRST_POLL, POLL_INTERVAL = 12.0, 2.0
LEGS = {"chains": 3, "sensors": 2}
"""Worker processes of an image: `generate` before and after its deferral, and `mirror`; submit, and mirror."""
COMPONENTS = ("worker", "api-server", "scheduler", "dag-processor", "triggerer", "postgres", "redis", "emulator")


@dataclass
class Job:
    """An image on its way.

    :param legs: CPU seconds of each leg; after the first one comes the wait.
    """

    legs: deque[float]
    on_a_worker: bool
    left: float = 0.0
    waited: bool = False


def simulate(costs: dict[str, dict[str, Any]], images: dict[str, int], cores: int, seed: int = 1) -> float:
    """Return the seconds until the last image of the load is in S3.

    All CPU that an image costs, wherever it is spent, is shared out to its legs. Legs on workers need a slot, and all
    share the cores evenly, one core at most for each.
    """
    chance, number = random.Random(seed), itertools.count()
    ready = {True: deque[Job](), False: deque[Job]()}
    for dag_id, amount in images.items():
        cpu = sum(costs[dag_id].get(f"CPU of {component}", 0.0) for component in COMPONENTS)
        legs = LEGS.get(dag_id, 2)
        for _ in range(amount):
            ready[dag_id in LEGS].append(Job(deque([cpu / legs] * legs), dag_id in LEGS))
    running: list[Job] = []
    waiting: list[tuple[float, int, Job]] = []
    now, in_flight = 0.0, 0
    while running or waiting or any(ready.values()):
        while ready[True] and sum(job.on_a_worker for job in running) < SLOTS:
            running.append(_begun(ready[True].popleft()))
        while ready[False] and (ready[False][0].waited or in_flight < IN_FLIGHT):
            in_flight += not ready[False][0].waited
            running.append(_begun(ready[False].popleft()))
        speed = min(1.0, cores / len(running)) if running else 0.0
        step = min((job.left / speed for job in running), default=float("inf"))
        if waiting:
            step = min(step, waiting[0][0] - now)
        now += step
        for job in running:
            job.left -= step * speed
        for job in [job for job in running if job.left <= 1e-9]:
            running.remove(job)
            if not job.waited:
                job.waited = True
                heapq.heappush(waiting, (now + _seen_after(chance.uniform(*GENERATION)), next(number), job))
            elif job.legs:
                ready[job.on_a_worker].append(job)
            elif not job.on_a_worker:
                in_flight -= 1
        while waiting and waiting[0][0] <= now:
            job = heapq.heappop(waiting)[2]
            # What is paid for goes before what is not: Airflow, too, resumes before it starts.
            ready[job.on_a_worker].appendleft(job)
    return now


def _begun(job: Job) -> Job:
    job.left = job.legs.popleft()
    return job


def _seen_after(generation: float) -> float:
    """Return the seconds after a submit at which a poll sees the end."""
    late = max(0.0, generation - FIRST_POLL)
    return FIRST_POLL + -(-late // POLL_INTERVAL) * POLL_INTERVAL
