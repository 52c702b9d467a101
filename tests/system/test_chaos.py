# SPDX-License-Identifier: Apache-2.0
"""Many image tasks while worker processes and the triggerer are killed at random: each is paid for once.

`CHAOS_SEED` and `CHAOS_SECONDS` say which moments are chosen, and for how long.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
from kill_airflow import kill_task, killable_airflow
from kill_gate import Gate
from kill_report import TASK, delivered, failed_for_unknown_outcome, record_of, table

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.journal.spending import Amounts, read_spending, sum_by
from airflow_provider_gptimg.journal.stores import open_s3_journal
from airflow_provider_gptimg.sandbox import S3Server
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, DagRun
from airflow_provider_gptimg.sandbox.standalone import StandaloneAirflow

SEED = int(os.environ.get("CHAOS_SEED", "1"))
VICTIMS = ("task",) * 6 + ("machine",) * 2 + ("triggerer",)
"""What is killed in one round, in an order of chance."""


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An API that takes its time to answer, so that many a kill finds a task amid a submit."""
    schedule = {"first_poll_after": 3, "poll_interval": 1}
    with Emulator(durations=(2, 8), credits=10_000, seed=SEED, extra=schedule) as emulator:
        emulator.latency = 1.0
        yield emulator


@pytest.fixture
def airflow(emulator: Emulator) -> Iterator[StandaloneAirflow]:
    connections = {"gptimg_chaos": emulator.connection_json}
    with Gate(store_latency=0.3) as gate, killable_airflow(gate, connections, parallelism=6) as airflow:
        yield airflow


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_fifty_images_are_paid_for_once_while_processes_die(
    airflow: StandaloneAirflow, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    check(airflow, emulator, "chaos_50", float(os.environ.get("CHAOS_SECONDS", "240")), capsys)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_ten_images_are_paid_for_once_while_processes_die(
    airflow: StandaloneAirflow, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    check(airflow, emulator, "chaos_10", 45, capsys)


@pytest.mark.system
@pytest.mark.timeout(900)
def test_spending_equals_the_ledger_while_processes_die(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the journal in S3, and generations that fail."""
    extra = {"first_poll_after": 3, "poll_interval": 1}
    with (
        Emulator(durations=(2, 8), credits=10_000, fail_rate=0.2, seed=SEED, extra=extra) as emulator,
        S3Server("journals") as server,
        Gate() as gate,
    ):
        emulator.latency = 1.0
        connections = {"gptimg_chaos": emulator.connection_json, "aws_default": server.connection_json}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", server.connection_json)
        monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://journals/gptimg")
        settings = {"AIRFLOW__GPTIMG__JOURNAL": "s3://journals/gptimg"}
        with killable_airflow(gate, connections, parallelism=6, settings=settings) as airflow:
            run = airflow.trigger("chaos_10")
            kills = kill_at_random(airflow, run, 45)
            run.wait(700)
        journal = open_s3_journal()
        assert journal is not None
        spent = read_spending(journal)
    total = sum((each.amounts for each in spent), Amounts())
    charges = {entry.task_id: entry.credits for entry in emulator.ledger if entry.kind == "charge"}
    known = {each.image_task: each.amounts for each in spent if each.amounts.charged}
    refunds = {entry.task_id for entry in emulator.ledger if entry.kind == "refund"}
    with capsys.disabled():
        print(f"\n{dict(kills)}, ledger: {sum(charges.values())} charged, {len(refunds)} refunds; {total}")
    assert {task_id: charges[task_id] for task_id in known} == {id_: each.charged for id_, each in known.items()}
    assert {task_id for task_id, each in known.items() if each.refunded} == refunds & known.keys()
    lost = sum(credits for task_id, credits in charges.items() if task_id not in known)
    assert total.charged + lost == sum(charges.values())
    assert lost <= total.unknown
    assert sum_by(spent, "dag").keys() == {"chaos_10"}
    assert kills["task"], "nothing was tried"


def check(
    airflow: StandaloneAirflow, emulator: Emulator, dag_id: str, seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run a DAG while its processes are killed for so many seconds, and hold its end against the API's ledger."""
    run = airflow.trigger(dag_id)
    kills = kill_at_random(airflow, run, seconds)
    run.wait(900)

    charges = Counter(entry.task_id for entry in emulator.ledger if entry.kind == "charge")
    assert set(charges.values()) <= {1}
    paid = Counter(emulator.task(task_id).prompt for task_id in charges)
    ends: Counter[str] = Counter()
    wrong = []
    for ti in run.task_instances():
        number: int = ti["map_index"]
        mine = paid[f"picture {number}"]
        if ti["state"] == "success":
            result = delivered(run, emulator, number)
            well = mine == 1 and result is not None and emulator.task(result).prompt == f"picture {number}"
            ends["delivered"] += 1
        else:
            # Nothing is known of what was charged, and the task says so.
            well = mine <= 1 and record_of(run, number) == "intent" and failed_for_unknown_outcome(run, number)
            ends["unknown, charged" if mine else "unknown, not charged"] += 1
        if not well:
            wrong.append(f"{number}: {ti['state']}, {mine} charges, record {record_of(run, number)}")
    twice = {"charged twice": sum(number > 1 for number in paid.values())}
    rows = [(what, str(number)) for what, number in [*kills.items(), *ends.items(), *twice.items()]]
    report = table([("killed, and what came of it", f"seed {SEED}"), *rows])
    with capsys.disabled():
        print(f"\n{report}")
    assert not wrong, f"{wrong}\n{report}"
    assert max(paid.values()) == 1, report
    assert kills["task"], "nothing was tried"
    assert kills["triggerer"], "nothing was tried"


def kill_at_random(airflow: StandaloneAirflow, run: DagRun, seconds: float) -> Counter[str]:
    """Kill a process every few seconds until the run is over or time is up; return what was killed how often."""
    chance = random.Random(SEED)
    kills: Counter[str] = Counter()
    until = time.monotonic() + seconds
    victims: list[str] = []
    while time.monotonic() < until and run.state not in FINAL_RUN_STATES:
        time.sleep(chance.uniform(0, 3))
        victims = victims or chance.sample(VICTIMS, len(VICTIMS))
        if victims[-1] == "triggerer":
            airflow.kill("triggerer")
            airflow.launch("triggerer", timeout=180)
            killed = True
        else:
            killed = kill_a_task(airflow, run, chance, with_supervisor=victims[-1] == "machine")
        if killed:
            kills[victims.pop()] += 1
    return kills


def kill_a_task(airflow: StandaloneAirflow, run: DagRun, chance: random.Random, with_supervisor: bool) -> bool:
    """Kill one of the tasks that are running; return False if none could be caught."""
    running = [ti["map_index"] for ti in run.task_instances() if ti["state"] == "running"]
    try:
        return bool(running) and kill_task(
            *airflow.task_processes(run, TASK, chance.choice(running)), with_supervisor=with_supervisor
        )
    except psutil.NoSuchProcess:
        return False
