# SPDX-License-Identifier: Apache-2.0
"""Several attempts of one task on the cluster: frozen and thawed, written late, marked failed and cleared."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil
from balancer import StallingGate
from cluster import Cluster
from journal_gate import JournalGate
from scene_report import page

from airflow_provider_gptimg.emulator import Emulator
from airflow_provider_gptimg.sandbox import DagRun
from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, until

TASK = "images"
UNKNOWN = "GptImgSubmissionUnknownError"
AT_ONCE = 8
"""Scenes under way at a time; each may hold two slots of a worker."""
SETTINGS = {"CLUSTER_SENSORS": "1", "AIRFLOW__CELERY__WORKER_CONCURRENCY": "14"}

JOURNALS = ("auto", "s3://images/journal")
"""Values of `[gptimg] journal`: each has a cluster of its own."""

# Where the first attempt is frozen: at a step of its journal, or at what the API makes of the submit.
GATES = {
    "journal read": ("read", "answer"),
    "before the intent": ("intend", "request"),
    "intent written": ("intend", "answer"),
    "looked, before the POST": ("look", "answer"),
    "answered, before the outcome is written": ("outcome", "request"),
    "outcome written": ("outcome", "answer"),
}
SUBMITS = {
    "in the POST, not accepted": ("hang_before", {}),
    "in the POST, accepted": ("hang_after", {}),
    "in the pause after a 429": (429, {"retry_after": 25}),
}


@dataclass
class Ended:
    """How a scene ended.

    :param charged: Image tasks that were charged: at the fault's end, at the run's end, and after a person's clear.
    :param allowed: How many may be.
    :param journal: Where it lives.
    """

    journal: str
    scene: str
    kind: str
    requests: int
    allowed: int
    charged: list[int] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    named: bool = False
    late_posts: int = 0

    @property
    def is_well(self) -> bool:
        return max(self.charged) <= self.allowed and (self.states[-1] == "success" or self.named)


@dataclass(frozen=True)
class Place:
    """A cluster whose tasks keep their journal in one place.

    :param journal: `[gptimg] journal`.
    :param gate: What each call passes that reads or writes a journal.
    """

    cluster: Cluster
    journal: str
    gate: StallingGate


class Stage:
    """One scene: an emulator, a connection and a run of its own.

    :param dag_id: `submit_fail`, `generate_fail`, `batch_fail`, or the same with `resubmit`.
    """

    def __init__(self, place: Place, name: str, dag_id: str, requests: int = 1) -> None:
        self._place, self.cluster, self.name, self.dag_id, self.requests = place, place.cluster, name, dag_id, requests
        self.emulator = Emulator(speed=20, credits=10_000, extra={"first_poll_after": 1, "poll_interval": 1})
        self._conf = {"name": name, "connection": name, "prompt": f"{name} 0"}
        if dag_id.startswith("batch"):
            self._conf["requests"] = [f"{name} {number}" for number in range(requests)]

    def __enter__(self) -> Stage:
        self.emulator.start()
        connection = json.loads(self.emulator.connection_json)
        connection["extra"] = json.dumps(connection["extra"])
        self.cluster.api.call("POST", "/connections", connection | {"connection_id": self.name})
        return self

    def __exit__(self, *_: object) -> None:
        self.emulator.stop()

    def run(self) -> DagRun:
        run = self.cluster.api.trigger(self.dag_id, self._conf, timeout=180)
        if isinstance(self._place.gate, JournalGate):
            self._place.gate.introduce(run, TASK, self.name)
        return run

    def ended(self, scene: str, allowed: int | None = None) -> Ended:
        allowed = self.requests * (1 if self.dag_id.endswith("fail") else 2) if allowed is None else allowed
        return Ended(self._place.journal, scene, self.dag_id, self.requests, allowed)

    def posts(self) -> int:
        return sum(call.method == "POST" for call in self.emulator.calls)

    def note(self, run: DagRun, ended: Ended) -> None:
        """Write down what is charged by now, and the run's state."""
        ended.charged.append(sum(entry.kind == "charge" for entry in self.emulator.ledger))
        ended.states.append(run.state)
        ti = run.task_instance(TASK)
        ended.named = UNKNOWN in "".join(run.log(TASK, attempt) for attempt in range(1, ti["try_number"] + 1))


def frozen(place: Place, name: str, dag_id: str, point: str) -> Ended:
    """Freeze attempt 1 with its supervisor until attempt 2 has ended; thaw it; then clear what failed."""
    requests = 24 if dag_id.startswith("batch") else 1
    with Stage(place, name, dag_id, requests) as stage:
        ended = stage.ended(point)
        hold = place.gate.hold(name, *GATES[point]) if point in GATES else None
        if point in SUBMITS:
            what, options = SUBMITS[point]
            stage.emulator.fault("submit", what, **options)
        run = stage.run()
        if hold:
            assert hold.reached.wait(240), f"{name}: {point} was not reached"
        elif what == 429:
            until(lambda: [call.status for call in stage.emulator.calls] == [429], 240, "the pause", pause=0.05)
        else:
            until(lambda: stage.emulator.waiting(what), 240, "the POST", pause=0.05)
        process = psutil.Process(run.task_instance(TASK)["pid"])
        chain = [each for each in (process.parent(), process) if each]
        for each in chain:
            each.suspend()
        try:
            until(lambda: _second_ended(run), 300, "attempt 2", pause=1)
            stage.note(run, ended)
            before = stage.posts()
        finally:
            # The network first: its buffers hold what the frozen process reads when it wakes.
            if hold:
                hold.let_go()
            stage.emulator.release()
            for each in chain:
                with suppress(psutil.NoSuchProcess):
                    each.resume()
        psutil.wait_procs([process], 60)
        _finish(stage, run, ended, posts=before)
        return ended


def written_late(place: Place, name: str, dag_id: str, step: str) -> Ended:
    """Let a stalled server execute a write when its repetition is long done."""
    requests = 24 if dag_id.startswith("batch") else 1
    with Stage(place, name, dag_id, requests) as stage:
        ended = stage.ended(f"a late write: {step}")
        stalled = place.gate.stall(name, step)
        run = stage.run()
        assert stalled.reached.wait(240), f"{name}: {step} was not reached"
        until(lambda: run.state in FINAL_RUN_STATES, 300, "the run", pause=1)
        stage.note(run, ended)
        stalled.let_go()
        assert stalled.executed.wait(60), f"{name}: the late write was not executed"
        _finish(stage, run, ended, posts=stage.posts())
        return ended


def marked_failed(place: Place, name: str, dag_id: str, when: str) -> Ended:
    """Mark a running task failed amid its submit, and clear it when it has ended."""
    requests = 300 if dag_id.startswith("batch") else 1
    with Stage(place, name, dag_id, requests) as stage:
        ended = stage.ended(f"marked failed {when}")
        if when == "in the pause after a 429":
            stage.emulator.fault("submit", 429, retry_after=4)
        elif when == "in a slow POST":
            stage.emulator.fault("submit", "hang_after", seconds=3)
        run = stage.run()
        if requests > 1:
            until(lambda: stage.posts() >= 16, 240, "some POSTs", pause=0.02)
        else:
            until(lambda: stage.posts() == 1, 240, "the POST", pause=0.02)
        process = psutil.Process(run.task_instance(TASK)["pid"])
        run.api.call("PATCH", f"{run.path}/taskInstances/{TASK}", {"new_state": "failed"})
        before = stage.posts()
        psutil.wait_procs([process], 60)
        stage.note(run, ended)
        _finish(stage, run, ended, posts=before)
        return ended


def _second_ended(run: DagRun) -> bool:
    ti = run.task_instance(TASK)
    return bool(run.state in FINAL_RUN_STATES or (ti["try_number"] >= 2 and ti["state"] in ("success", "failed")))


def _finish(stage: Stage, run: DagRun, ended: Ended, posts: int) -> None:
    """Wait for the run's end; where it failed, clear it once, as a person would.

    :param posts: That went out before the thaw or the click.
    """
    run.wait(300)
    time.sleep(2)  # for what a thawed process may still do after its last word
    ended.late_posts = stage.posts() - posts
    stage.note(run, ended)
    if ended.states[-1] == "failed":
        body = {"dry_run": False, "dag_run_id": run.run_id, "only_failed": True}
        run.api.call("POST", f"/dags/{run.dag_id}/clearTaskInstances", body)
        run.wait(300)
        stage.note(run, ended)


def all_scenes() -> list[tuple[Callable[..., Ended], str, str]]:
    """Return each scene's function with its DAG and its last argument."""
    points = [*GATES, *SUBMITS]
    scenes: list[tuple[Callable[..., Ended], str, str]] = []
    for kind in ("submit", "generate"):
        scenes += [(frozen, f"{kind}_fail", point) for point in points]
        scenes += [(written_late, f"{kind}_fail", step) for step in ("intend", "outcome")]
        scenes += [(marked_failed, f"{kind}_fail", when) for when in ("in the pause after a 429", "in a slow POST")]
    scenes += [(frozen, "batch_fail", point) for point in ("intent written", "looked, before the POST")]
    scenes += [(written_late, "batch_fail", "intend"), (marked_failed, "batch_fail", "while it submits")]
    scenes += [(frozen, "submit_resubmit", point) for point in ("in the POST, accepted", "outcome written")]
    return scenes


@contextmanager
def standing(journal: str, settings: Mapping[str, str]) -> Iterator[Place]:
    """Run a cluster whose tasks keep their journal there."""
    where = {"AIRFLOW__GPTIMG__JOURNAL": journal, "AIRFLOW__GPTIMG__JOURNAL_AWS_CONN_ID": "journal"}
    with Cluster(1, {**settings, **where}) as cluster:
        if not journal.startswith("s3://"):
            yield Place(cluster, journal, cluster.balancer)
            return
        with JournalGate() as gate:
            gate.upstream = cluster.s3_server.endpoint_url
            connection = json.loads(cluster.s3_server.connection_json)
            # A stalled server is given up soon, and asked again.
            extra = connection["extra"] | {"endpoint_url": gate.url, "config_kwargs": {"read_timeout": 5}}
            connection |= {"connection_id": "journal", "extra": json.dumps(extra)}
            cluster.api.call("POST", "/connections", connection)
            yield Place(cluster, journal, gate)


def main() -> int:
    """Return the exit status: 0 if no scene charged more than was allowed or lost what was paid for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression of `kind: scene`")
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    parser.add_argument("--journal", action="append", help="a value of [gptimg] journal; the state store and S3")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="Airflow environment")
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    chosen = [scene for scene in all_scenes() if re.search(options.only, f"{scene[1]}: {scene[0].__name__} {scene[2]}")]
    began, failed = time.monotonic(), 0
    ends: list[Ended] = []
    settings = SETTINGS | dict(pair.split("=", 1) for pair in options.set)
    for journal in options.journal or JOURNALS:
        with standing(journal, settings) as place, ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [
                (f"{dag_id}: {argument}", pool.submit(scene, place, f"scene{number}", dag_id, argument))
                for number, (scene, dag_id, argument) in enumerate(chosen)
            ]
            for name, future in asked:
                try:
                    ends.append(future.result())
                    print(json.dumps(asdict(ends[-1])), flush=True)
                except (AssertionError, TimeoutError, httpx.HTTPError, psutil.Error):
                    failed += 1
                    print(f"{name} did not come to its end", flush=True)
                    traceback.print_exc()
    text = page(ends, failed, time.monotonic() - began)
    print(text)
    if options.report:
        options.report.write_text(text)
    return 1 if failed or not all(end.is_well for end in ends) else 0


if __name__ == "__main__":
    sys.exit(main())
