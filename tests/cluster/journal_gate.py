# SPDX-License-Identifier: Apache-2.0
"""A gate in front of the S3 server that holds the journal: it stops an attempt where it reads or writes an entry."""

from __future__ import annotations

from urllib.parse import unquote

from aiohttp import web
from balancer import StallingGate, step_of_entry

from airflow_provider_gptimg.journal.stores import owner_of
from airflow_provider_gptimg.sandbox import DagRun

__all__ = ["JournalGate"]


class JournalGate(StallingGate):
    """Passes requests on to an S3 server whose objects `…/OWNER/ENTRY.json` are journals."""

    def introduce(self, run: DagRun, task_id: str, name: str) -> None:
        """Let the journal of a run's task be known by the name that :meth:`hold` and :meth:`stall` use."""
        self._runs[owner_of(run.dag_id, run.run_id, task_id)] = name

    def _call_of(self, request: web.Request, body: bytes) -> str | None:
        if "list-type" in request.query:
            return "read"
        return step_of_entry(request.method, unquote(request.path).rpartition("/")[2].removesuffix(".json"))

    def _run_of(self, request: web.Request) -> str | None:
        path = request.query.get("prefix") or unquote(request.path)
        return self._runs.get(path.rpartition("/")[0].rpartition("/")[2])
