# SPDX-License-Identifier: Apache-2.0
"""How often a generation is asked for, and how late its end is seen: the default schedule beside fixed intervals.

First simulated, by the provider's own `Wait` on a clock that jumps from poll to poll; then real triggers against the
emulator, whose time runs faster. The poll that an operator makes before it defers is not counted: all have it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import tempfile
import time
from collections.abc import Callable
from statistics import mean, quantiles

from airflow_provider_gptimg.api.tasks import COMPLETED, PROCESSING, ImageTask
from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.polling import Schedule, Wait
from benchmarks.tables import print_table

SCHEDULES = {
    "every 5 s from 5": Schedule(5, 0),
    "every 10 s from 10": Schedule(10, 0),
    "first at 30 s, then 5 s": Schedule(5, 30),
    f"default: first at {Schedule().first_poll_after:g} s, then 5 s": Schedule(),
    "first at 50 s, then 5 s": Schedule(5, 50),
}
DURATIONS: dict[str, Callable[[random.Random], float]] = {
    "45–60 s, uniform": lambda chance: chance.uniform(45, 60),
    "log-normal, median 52 s, 5 % > 90 s": lambda chance: chance.lognormvariate(
        math.log(52), math.log(90 / 52) / 1.6448536
    ),
}
COLUMNS = ["schedule"] + [f"{shape}: {what}" for shape in ("45–60 s", "log-normal") for what in ("polls", "delay s")]


def simulated(schedule: Schedule, duration: float, chance: random.Random) -> tuple[int, float]:
    """Return the number of polls and the seconds from the end of one generation to the poll that saw it."""
    wait = Wait(schedule, submitted_at=0.0, uniform=chance.uniform)
    wait.record("t", ImageTask("t", PROCESSING), 0.0)
    polls, now = 0, 0.0
    while (due := wait.next_at) is not None:
        now = due
        task_id = wait.pop_due(now)
        assert task_id is not None
        polls += 1
        wait.record(task_id, ImageTask(task_id, COMPLETED if now >= duration else PROCESSING), now)
    return polls, now - duration


def simulate(generations: int) -> None:
    """Print a table of so many simulated generations of each shape."""
    rows = []
    for label, schedule in SCHEDULES.items():
        row = [label]
        for duration in DURATIONS.values():
            chance = random.Random(7)
            seen = [simulated(schedule, duration(chance), chance) for _ in range(generations)]
            row += _cells([polls for polls, _ in seen], [delay for _, delay in seen])
        rows.append(row)
    print_table(f"{generations:,} simulated generations: polls, and mean / 95 % quantile of the delay", COLUMNS, rows)


def _cells(polls: list[int], delays: list[float]) -> list[str]:
    return [f"{mean(polls):.2f}", f"{mean(delays):.1f} / {quantiles(delays, n=20)[-1]:.1f}"]


async def wait_for(emulator: Emulator, schedule: Schedule, duration: float, speed: float) -> str:
    """Let one real trigger wait for a generation, and return its id."""
    from airflow_provider_gptimg.triggers.gptimg import GptImgTaskTrigger

    now = time.time()
    task_id = emulator.add_task(duration=duration, created_at=now)
    sped_up = Schedule(schedule.poll_interval / speed, schedule.first_poll_after / speed)
    trigger = GptImgTaskTrigger(
        task_id,
        "bench",
        poll_interval=sped_up.poll_interval,
        first_poll_after=sped_up.first_poll_after,
        submitted_at=now,
        first_poll_at=now + sped_up.next_poll_in(0.0),
        deadline=now + 3600,
    )
    async for event in trigger.run():
        assert event.payload["status"] == "finished", event
    return task_id


async def measure(emulator: Emulator, generations: int, speed: float) -> None:
    """Print a table of real waits, all of them at once."""
    seen = {}
    for shape, duration in DURATIONS.items():
        for label, schedule in SCHEDULES.items():
            chance = random.Random(7)
            waits = [wait_for(emulator, schedule, duration(chance), speed) for _ in range(generations)]
            seen[shape, label] = asyncio.gather(*waits)
            await asyncio.sleep(0.05)
    await asyncio.gather(*seen.values())
    rows = []
    for label in SCHEDULES:
        row = [label]
        for shape in DURATIONS:
            tasks = [emulator.task(task_id) for task_id in seen[shape, label].result()]
            delays = [speed * (task.poll_times[-1] - (task.finished_at or 0.0)) for task in tasks]
            row += _cells([task.polls for task in tasks], delays)
        rows.append(row)
    print_table(f"{generations:,} real waits each, on the emulator at {speed:g} times the speed", COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more generations, and slower ones: some minutes")
    full = parser.parse_args().full
    simulate(40_000 if full else 4_000)
    speed, generations = (2.0, 100) if full else (5.0, 40)
    with tempfile.TemporaryDirectory() as home, Emulator(speed=speed, record_calls=False) as emulator:
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
            "AIRFLOW_CONN_BENCH": emulator.connection_json,
        }
        asyncio.run(measure(emulator, generations, speed))


if __name__ == "__main__":
    main()
