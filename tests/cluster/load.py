# SPDX-License-Identifier: Apache-2.0
"""Start the load, and hold its end against the API's ledger, Airflow's states and S3."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from cluster import BUCKET, Cluster

from airflow_provider_gptimg.sandbox import DagRun
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, until

__all__ = ["Outcome", "Run", "clear_failed", "start", "verify"]

UNKNOWN = "GptImgSubmissionUnknownError"


@dataclass(frozen=True)
class Run:
    """A DAG run of the load, with the number of images it is to make."""

    run: DagRun
    images: int

    def prompts(self) -> list[str]:
        return [f"{self.run.dag_id} {self.run.run_id} {number}" for number in range(self.images)]


@dataclass
class Outcome:
    """What a run came to. The numbers count requests of one image each."""

    state: str
    paid: int = 0
    exact: int = 0
    charged_twice: list[str] = field(default_factory=list)
    wrong_bytes: list[str] = field(default_factory=list)
    paid_and_lost: list[str] = field(default_factory=list)
    unknown: int = 0
    unknown_charged: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


def start(cluster: Cluster, dag_id: str, images: int, label: str) -> Run:
    """Start a run of so many images."""
    until(lambda: cluster.api.call("GET", f"/dags/{dag_id}"), 180, f"the DAG {dag_id}")
    cluster.api.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})
    body = {"logical_date": None, "conf": {"images": images}, "dag_run_id": label}
    cluster.api.call("POST", f"/dags/{dag_id}/dagRuns", body)
    return Run(DagRun(cluster.api, dag_id, label), images)


def states(cluster: Cluster, label: str) -> Counter[str]:
    """Return how many task instances of the runs with this label are in each state."""
    sql = f"select coalesce(state, 'none'), count(*) from task_instance where run_id = '{label}' group by 1"
    return Counter(dict(cluster.query(sql)))


def ended(run: Run) -> bool:
    return run.run.state in FINAL_RUN_STATES


def clear_failed(cluster: Cluster, run: Run) -> None:
    """Clear the failed tasks of a run that has ended, as a person would."""
    body = {"dry_run": False, "dag_run_id": run.run.run_id, "only_failed": True, "include_downstream": True}
    cluster.api.call("POST", f"/dags/{run.run.dag_id}/clearTaskInstances", body)


def verify(cluster: Cluster, load: Run) -> Outcome:
    """Compare what was charged, what Airflow says and what is in S3."""
    run, prompts = load.run, set(load.prompts())
    made = [task for task in cluster.emulator.get("/_emulator/tasks").json() if task["prompt"] in prompts]
    kept = defaultdict(list)
    for task in made:
        if not task["refunded"]:
            kept[task["prompt"]].append(task)
    outcome = Outcome(run.state, paid=len(kept))
    outcome.charged_twice = [prompt for prompt, tasks in kept.items() if len(tasks) > 1]

    prefix = f"{run.dag_id}/{run.run_id}/"
    expected = {f"{prefix}{task['task_id']}-0.png": task for task in made if task["images"]}
    pages = cluster.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]

    def is_exact(key: str) -> bool:
        if key not in expected:
            return False
        image = cluster.emulator.get(f"/gpt-image-2-outputs/{expected[key]['images'][0]}").raise_for_status()
        return bool(cluster.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == image.content)

    with ThreadPoolExecutor(4) as pool:
        exact = {key for key, same in zip(keys, pool.map(is_exact, keys), strict=True) if same}
    outcome.exact, outcome.wrong_bytes = len(exact), sorted(set(keys) - exact)

    unknown, named = _failures(cluster, load, outcome)
    delivered = {expected[key]["prompt"] for key in exact}
    outcome.unknown = len(unknown) + named
    outcome.unknown_charged = len(unknown & set(kept))
    lost = sorted(set(kept) - delivered - unknown)
    # A batch's failure says how many of its requests are unknown, not which.
    outcome.paid_and_lost = lost[min(named, len(lost)) :]
    outcome.unknown_charged += min(named, len(lost))
    return outcome


def _failures(cluster: Cluster, load: Run, outcome: Outcome) -> tuple[set[str], int]:
    """Return the prompts whose task says that its submission is unknown, and how many a batch says are."""
    run, prompts, unknown, named = load.run, load.prompts(), set(), 0
    attempts: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    for ti in run.task_instances():
        attempts[ti["try_number"]] += 1
        if ti["state"] in ("success", "upstream_failed"):
            continue
        log = cluster.log_of(run.dag_id, run.run_id, ti["task_id"], ti["map_index"], ti["try_number"])
        errors = re.findall(r"\b(GptImg\w+Error|Airflow\w+Exception|\w+TimeoutError)\b", log)
        failures[UNKNOWN if UNKNOWN in log else errors[-1] if errors else ti["state"] or "none"] += 1
        if UNKNOWN not in log:
            continue
        if run.dag_id == "batch":
            named += max((int(number) for number in re.findall(r"(\d+) have an unknown outcome", log)), default=0)
        else:
            number = ti["map_index"] if ti["map_index"] >= 0 else int(re.sub(r"\D", "", ti["task_id"]))
            unknown.add(prompts[number])
    # Plain dicts, which survive `asdict`.
    outcome.attempts, outcome.failures = dict(attempts), dict(failures)
    return unknown, named


def summary(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return the sums over all runs."""
    values = outcomes.values()
    return {
        "paid for": sum(outcome.paid for outcome in values),
        "images exact": sum(outcome.exact for outcome in values),
        "wrong bytes": sum(len(outcome.wrong_bytes) for outcome in values),
        "charged twice": sum(len(outcome.charged_twice) for outcome in values),
        "paid and lost": sum(len(outcome.paid_and_lost) for outcome in values),
        "unknown and named": sum(outcome.unknown for outcome in values),
        "of these charged": sum(outcome.unknown_charged for outcome in values),
    }
