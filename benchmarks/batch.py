# SPDX-License-Identifier: Apache-2.0
"""A batch on a running Airflow: what it keeps under kills and faults, and what an image costs beside other ways."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import DagRun, S3Server, StandaloneAirflow
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, until
from benchmarks.batch_runs import BUCKET, TASK, Scene, cpu_seconds, kill_at_random, memory_of
from benchmarks.tables import print_table

FAST = 20.0
"""How many times faster than the API's 45 to 60 s generations are, but for the part at its real pace."""
SCHEDULE = {"first_poll_after": 39.5 / FAST, "poll_interval": 5 / FAST}
LONGEST = 1800.0
KEPT = [
    "batch",
    "ends as",
    "wall s",
    "attempts",
    "killed",
    "accepted",
    "of them failed",
    "credits",
    "bought again",
    "exact in S3",
    "other in S3",
    "XCom bytes",
    "MB, early → peak",
]

MakeScene = Callable[..., Scene]


def row(scene: Scene, run: DagRun, title: str, wall: float, kills: Counter[str], memory: list[float]) -> list[str]:
    """Return what became of a batch as a row of `KEPT`."""
    exact, other = scene.exact()
    xcom = run.xcom(TASK)
    return [
        title,
        run.state,
        f"{wall:.0f}",
        str(run.task_instance(TASK)["try_number"]),
        ", ".join(f"{number} × {what}" for what, number in kills.items()) or "–",
        str(scene.accepted),
        str(scene.accepted - scene.alive),
        str(scene.charged),
        str(scene.bought_again),
        str(exact),
        str(other),
        str(len(json.dumps(xcom))) if xcom else "–",
        f"{memory[len(memory) // 10]:.0f} → {max(memory):.0f}" if len(memory) >= 10 else "–",
    ]


def see_through(scene: Scene, run: DagRun, title: str, kill: Callable[[], Counter[str]] = Counter) -> list[str]:
    """Wait for the end of a batch, and return its row."""
    print(title, file=sys.stderr, flush=True)
    began = time.monotonic()
    with memory_of(scene, run) as memory:
        kills = kill()
        run.wait(LONGEST)
    return row(scene, run, title, time.monotonic() - began, kills, memory)


def faults(make: MakeScene, many: int, seed: int) -> None:
    """Run the batch plain, killed, with failures and refusals, and with too few credits."""
    rows = []

    scene = make("plain")
    rows.append(see_through(scene, scene.airflow.trigger("plain"), "nothing happens"))

    for name, title in (("killed_held", "killed, holds its worker"), ("killed_deferred", "killed, deferrable")):
        scene = make(name)
        run = scene.airflow.trigger(name)
        kill = partial(kill_at_random, scene, run, many, random.Random(seed), deferrable="deferred" in name)
        rows.append(see_through(scene, run, title, kill))
        if run.state == "failed":
            scene.connect(on_unknown_submission="resubmit")
            run.clear(TASK)
            rows.append(see_through(scene, run, "… cleared, to resubmit the unknown"))

    scene = make("faulty", fail_rate=0.1, rate_limit_rate=0.05)
    rows.append(see_through(scene, scene.airflow.trigger("faulty"), "10 % failed, 5 % 429"))

    enough_for = many * 6 // 10
    scene = make("poor", credits=2 * enough_for)
    run = scene.airflow.trigger("poor")
    rows.append(see_through(scene, run, f"credits for {enough_for}"))
    scene.api.set_balance(2 * many)
    run.clear(TASK)
    rows.append(see_through(scene, run, "… topped up and cleared"))

    print_table(f"Batches of {many} at {FAST:g}×, 100 in flight", KEPT, rows)


def ways(make: MakeScene, some: int, mapped: int) -> None:
    """Compare a batch with mapped tasks and with a loop in one task."""
    contestants = (
        ("mapped", "mapped generate → mirror, deferrable", mapped),
        ("held", "batch, 20 in flight", some),
        ("deferred", "batch, 20 in flight, deferrable", some),
        ("wide", "batch, all in flight, deferrable", some),
        ("loop", "hand-written loop in one task, all in flight", some),
    )
    scenes = {name: make(name) for name, _, _ in contestants}
    airflow = scenes["mapped"].airflow
    make("first")
    airflow.trigger("first").wait(LONGEST)  # a triggerer takes seconds for the first connection that it reads
    before, began = cpu_seconds(airflow), time.monotonic()
    time.sleep(20)
    idle = (cpu_seconds(airflow) - before) / (time.monotonic() - began)
    rows = []
    reference = 0.0
    for name, title, images in contestants:
        scene, before, began = scenes[name], cpu_seconds(airflow), time.monotonic()
        run = airflow.trigger(name)
        # Each look costs Airflow 10 ms of CPU.
        until(lambda run=run: run.state in FINAL_RUN_STATES, LONGEST, f"the end of {run}", pause=2.0)
        wall = time.monotonic() - began
        time.sleep(5)  # the last task's process ends a little after its run
        an_image = (cpu_seconds(airflow) - before - idle * (time.monotonic() - began)) / images
        reference = reference or an_image
        exact, other = scene.exact()
        state = run.state
        if (state, exact, other) != ("success", images, 0):
            print(
                f"{name} ended as {state}: {exact} of {images} images and {other} other objects in S3",
                file=sys.stderr,
                flush=True,
            )
        share = f"1/{reference / an_image:.1f}"
        print(title, state, f"{wall:.0f} s", file=sys.stderr, flush=True)
        rows.append([title, str(images), f"{wall:.0f}", f"{images / wall * 60:.0f}", f"{an_image:.3f}", share])
    print_table(
        f"Generations at {FAST:g}×; CPU of all of Airflow's processes, less {idle:.2f} s/s when idle",
        ["way", "images", "wall s", "images/min", "CPU s an image", "to mapped"],
        rows,
    )


def pace(make: MakeScene, many: int) -> None:
    """Run the batch at the API's real pace, all requests in flight."""
    scene = make("pace", speed=1.0, extra={})
    rows = [see_through(scene, scene.airflow.trigger("pace"), "all in flight")]
    print_table(f"A batch of {many} at the API's pace, 45–60 s each", KEPT, rows)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("faults", "ways", "pace")
    parser.add_argument("--full", action="store_true", help="1,000 images for 120, 200 for 40, and 200 mapped for 8")
    parser.add_argument("--part", action="append", choices=parts, help="default: all, without --full all but the pace")
    parser.add_argument("--mapped", type=int, help="images made by mapped tasks, each for seconds of CPU")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    many, some, mapped = (1000, 200, 200) if options.full else (120, 40, 8)
    mapped = options.mapped or mapped
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server(BUCKET))
        env = {
            "AIRFLOW_CONN_AWS_DEFAULT": s3.connection_json,
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "6",
            "BENCHMARK_MANY": str(many),
            "BENCHMARK_SOME": str(some),
            "BENCHMARK_MAPPED": str(mapped),
        }
        airflow = stack.enter_context(StandaloneAirflow(Path(__file__).parent / "dags", env))

        def make(name: str, **arguments: object) -> Scene:
            """Give a DAG an API of its own."""
            arguments = {"speed": FAST, "extra": SCHEDULE, "credits": 100 * many, **arguments}
            api = stack.enter_context(Emulator(seed=options.seed, record_calls=False, **arguments))
            scene = Scene(name, api, airflow, s3.client())
            scene.connect()
            return scene

        for part in options.part or (parts if options.full else parts[:2]):
            if part == "faults":
                faults(make, many, options.seed)
            elif part == "ways":
                ways(make, some, mapped)
            else:
                pace(make, many)


if __name__ == "__main__":
    main()
