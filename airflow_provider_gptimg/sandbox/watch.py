# SPDX-License-Identifier: Apache-2.0
"""News of a sandbox that stays up: credits spent, tasks that ask a person, runs that end, DAG files that are broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from airflow_provider_gptimg.sandbox.rest import FINAL_RUN_STATES, AirflowApi, DagRun
from airflow_provider_gptimg.sandbox.services import Services
from airflow_provider_gptimg.sandbox.show import answer_at, batch_lines, last_errors, mirrored_objects, save_images

__all__ = ["Watch"]


class Watch:
    """Look at Airflow and at the stand-in repeatedly, and report what has changed since the last look.

    :param output: Folder for the images of runs that end.
    """

    def __init__(self, api: AirflowApi, services: Services, output: Path) -> None:
        self._api = api
        self._services = services
        self._output = output
        self._entries = len(self._ledger())
        self._ended = set(self._ended_runs())
        self._asking: set[tuple[DagRun, str]] = set()
        self._errors = self._import_errors()

    def news(self) -> Iterator[str]:
        """Yield a line for each thing that has happened since the last look."""
        yield from self._spent()
        try:
            yield from self._broken()
            yield from self._asks()
            yield from self._over()
        except httpx.HTTPError:
            return  # Airflow is busy: the next look finds it

    def _spent(self) -> Iterator[str]:
        ledger = self._ledger()
        new, self._entries = ledger[self._entries :], len(ledger)
        totals = {kind: sum(entry.credits for entry in ledger if entry.kind == kind) for kind in ("charge", "refund")}
        for kind, done in (("charge", "charged"), ("refund", "refunded")):
            moved = [entry for entry in new if entry.kind == kind]
            if moved:
                tasks = moved[0].task_id if len(moved) == 1 else f"{len(moved)} image tasks"
                yield (
                    f"{sum(entry.credits for entry in moved)} credits {done} for {tasks}; "
                    f"in all {totals['charge']} charged, {totals['refund']} refunded"
                )

    def _broken(self) -> Iterator[str]:
        errors = self._import_errors()
        for path, error in errors.items():
            if self._errors.get(path) != error:
                yield f"{path} cannot be imported: {error}"
        for path in self._errors.keys() - errors.keys():
            yield f"{path} can be imported again"
        self._errors = errors

    def _over(self) -> Iterator[str]:
        for run, state, end in self._ended_runs():
            if (run, state, end) in self._ended:
                continue
            self._ended.add((run, state, end))
            files = save_images(mirrored_objects(run, self._services.s3), self._services.s3, self._output)
            images = f"; {len(files)} images saved to ./{self._output}/" if files else ""
            yield f"{run.dag_id} has ended: {state}{images}. See {run.url}"
            yield from batch_lines(run)
            yield from last_errors(run)

    def _asks(self) -> Iterator[str]:
        found = self._api.call("GET", "/dags/~/dagRuns/~/taskInstances", state="awaiting_input")["task_instances"]
        asking = {(DagRun(self._api, ti["dag_id"], ti["dag_run_id"]), ti["task_id"]) for ti in found}
        new, self._asking = asking - self._asking, asking
        for run, task_id in new:
            yield f"{run.dag_id}: {task_id}: waiting for a person, {answer_at(run, task_id)}"

    def _ended_runs(self) -> list[tuple[DagRun, str, str]]:
        """Return the runs that have ended, with their state, and the time of it: a run that is cleared ends again."""
        found = self._api.call("GET", "/dags/~/dagRuns", order_by="-start_date", limit=50)["dag_runs"]
        return [
            (DagRun(self._api, run["dag_id"], run["dag_run_id"]), run["state"], run["end_date"])
            for run in found
            if run["state"] in FINAL_RUN_STATES
        ]

    def _import_errors(self) -> dict[str, str]:
        errors = self._api.import_errors()
        return {error["filename"]: error["stack_trace"].strip().splitlines()[-1] for error in errors}

    def _ledger(self) -> list[Any]:
        return self._services.emulator.ledger if self._services.emulator else []
