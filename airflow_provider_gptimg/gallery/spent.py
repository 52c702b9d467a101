# SPDX-License-Identifier: Apache-2.0
"""Credits that a run, or the latest runs of a Dag, were charged, as the journal in S3 has them."""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

from sqlalchemy import select

from airflow_provider_gptimg.airflow_compat import DagRun, create_session
from airflow_provider_gptimg.gallery.runs import s3_journal
from airflow_provider_gptimg.journal.spending import Amounts, Spent, read_spending, sum_by
from airflow_provider_gptimg.spending import NO_JOURNAL

__all__ = ["DAYS", "MOST_RUNS", "spending"]

DAYS = 30
"""Days of a Dag's spending, today included."""
MOST_RUNS = 100
"""Runs of a Dag that are read: one listing each."""
_HOLDS = 20.0
"""Seconds for which all viewers share an answer."""
_MOST_ANSWERS = 64

_answers: OrderedDict[tuple[str, str | None], tuple[float, dict[str, Any]]] = OrderedDict()
_lock = Lock()


def spending(dag_id: str, run_id: str | None) -> dict[str, Any]:
    """Return the credits of a run by task, or of a Dag by day, as a JSON value.

    :param run_id: None: the runs of the last :data:`DAYS` days, and of those the latest :data:`MOST_RUNS`.
    :raises GptImgError: The journal cannot be read.
    """
    key = dag_id, run_id
    with _lock:
        at, answer = _answers.get(key, (float("-inf"), {}))
    if time.monotonic() - at < _HOLDS:
        return answer
    answer = _read(dag_id, run_id)
    with _lock:
        _answers[key] = time.monotonic(), answer
        while len(_answers) > _MOST_ANSWERS:
            _answers.popitem(last=False)
    return answer


def _read(dag_id: str, run_id: str | None) -> dict[str, Any]:
    journal = s3_journal()
    if journal is None:
        return {"missing": NO_JOURNAL}
    if run_id is not None:
        found = _of_dag(read_spending(journal, runs=[(dag_id, run_id)]), dag_id)
        groups: dict[str, Amounts] = {}
        for each in found:
            name = each.task_id or "(unknown)"
            groups[name] = groups.get(name, Amounts()) + each.amounts
        return _answer("task", dict(sorted(groups.items())))
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=DAYS - 1)
    runs = _latest_runs(dag_id, first)
    read = runs[:MOST_RUNS]
    found = _of_dag(read_spending(journal, since=first.timestamp(), runs=[(dag_id, run) for run in read]), dag_id)
    days = {f"{first + timedelta(days=day):%Y-%m-%d}": Amounts() for day in range(DAYS)}
    return _answer("day", days | sum_by(found, "day")) | {"runs": len(read), "cut": len(runs) > len(read)}


def _latest_runs(dag_id: str, since: datetime) -> list[str]:
    of = DagRun
    latest = (
        select(of.run_id)
        .where(of.dag_id == dag_id, of.run_after >= since)
        .order_by(of.run_after.desc())
        .limit(MOST_RUNS + 1)
    )
    with create_session(scoped=False) as session:
        return list(session.scalars(latest).all())


def _of_dag(found: list[Spent], dag_id: str) -> list[Spent]:
    # The names of journals are hashes; whoever may see this Dag sees what says that it is this Dag's.
    return [each for each in found if each.dag_id == dag_id]


def _answer(by: str, groups: dict[str, Amounts]) -> dict[str, Any]:
    rows = [{"name": name, **amounts.as_dict()} for name, amounts in groups.items()]
    return {"by": by, "rows": rows, "total": sum(groups.values(), Amounts()).as_dict()}
