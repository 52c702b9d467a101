# SPDX-License-Identifier: Apache-2.0
"""Read from Airflow's database what a run recorded about images: few queries, and a bounded number of bytes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Text, and_, cast, func, select
from sqlalchemy.orm import Session

from airflow_provider_gptimg.airflow_compat import (
    DagRun,
    RenderedTaskInstanceFields,
    SerializedDagModel,
    TaskInstance,
    VariableModel,
    XComModel,
)
from airflow_provider_gptimg.gallery.ledgers import STATE_KEYS, read_submissions
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.roles import Graph
from airflow_provider_gptimg.journal.stores import owner_of, run_owner

try:
    from airflow_provider_gptimg.airflow_compat import TaskStateStoreModel
except ImportError:  # before Airflow 3.3
    TaskStateStoreModel = None

__all__ = ["Run", "read_run"]

_RETURNED = "return_value"
_PROMPT = "prompt"
_CREDITS = "credits"
_LARGEST = 8 * 1024 * 1024
"""Characters of an XCom that are read: ten thousand mirrored objects have fewer."""
_LARGEST_RUN = 24 * 1024 * 1024
"""Characters that are read of a run in all."""
_MOST_FAILED = 1000


@dataclass(frozen=True)
class Run:
    """A run's task instances that make, await or mirror images.

    :param failed: All its task instances that failed, of whatever kind.
    :param is_cut: There is more than is read.
    :param lacks_journal: The journal in S3 could not be read.
    """

    graph: Graph = field(default_factory=Graph)
    records: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    is_cut: bool = False
    lacks_journal: bool = False


def read_run(
    session: Session, dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None
) -> Run:
    """Return what a run recorded.

    :param task_id: Of this task only; None: of all.
    :param map_index: Likewise; -1 for a task that is not mapped.
    """

    def within(model: Any) -> Any:
        conditions = [model.dag_id == dag_id, model.run_id == run_id]
        if task_id is not None:
            conditions.append(model.task_id == task_id)
        if map_index is not None:
            conditions.append(model.map_index == map_index)
        return and_(*conditions)

    graph = _graph(session, dag_id, run_id)
    of_images = list(graph.roles) if task_id is None else [name for name in (task_id,) if name in graph.roles]
    if not of_images:
        return Run(graph)
    ti = TaskInstance
    columns = ti.task_id, ti.map_index, ti.state, ti.try_number
    rows = session.execute(select(*columns).where(within(ti), ti.task_id.in_(of_images))).all()
    failed = session.execute(select(*columns).where(within(ti), ti.state == "failed").limit(_MOST_FAILED)).all()
    fields = RenderedTaskInstanceFields
    rendered = {
        (row.task_id, row.map_index): row.rendered_fields
        for row in session.execute(
            select(fields.task_id, fields.map_index, fields.rendered_fields).where(
                within(fields), fields.task_id.in_(of_images)
            )
        )
    }
    budget = _Budget(_LARGEST_RUN)
    pushed = _read_xcoms(session, within, of_images, budget)
    states = _read_states(session, within, of_images, budget)
    places = [(row.task_id, row.map_index) for row in rows if graph.roles[row.task_id].submits]
    variables = _read_variables(session, dag_id, run_id, places, budget)
    records = []
    for row in rows:
        place = (row.task_id, row.map_index)
        known = rendered.get(place)
        known = known if isinstance(known, Mapping) else {}
        if not known and task_id is not None:
            known = _last_connections(session, dag_id, task_id)
        prompt = pushed.get((*place, _PROMPT)) or known.get("prompt")
        charged = pushed.get((*place, _CREDITS))
        records.append(
            Record(
                task_id=row.task_id,
                map_index=row.map_index,
                state=row.state,
                try_number=row.try_number,
                role=graph.roles[row.task_id],
                fields=known,
                result=pushed.get((*place, _RETURNED)),
                prompt=prompt if isinstance(prompt, str) else None,
                charged=charged if type(charged) is int else 0,
                submissions=tuple(
                    read_submissions(states[place] | variables.get(place, {}), row.try_number, graph.roles[row.task_id])
                ),
                has_own_journal=place not in variables,
            )
        )
    others = [Record(row.task_id, row.map_index, row.state, row.try_number) for row in failed]
    return Run(graph, records, others, budget.is_spent)


class _Budget:
    """A limit of characters to read."""

    def __init__(self, characters: int) -> None:
        self._left = characters
        self.is_spent = False

    def take(self, rows: Any) -> Iterator[Any]:
        """Yield rows, each with its `size`, until there have been too many characters."""
        for row in rows:
            self._left -= row.size or 0
            if self._left < 0:
                self.is_spent = True
                return
            yield row


def _read_xcoms(session: Session, within: Any, task_ids: list[str], budget: _Budget) -> dict[tuple[str, int, str], Any]:
    xcom = XComModel
    size = func.length(cast(xcom.value, Text)).label("size")
    found = session.execute(
        select(xcom.task_id, xcom.map_index, xcom.key, xcom.value, size)
        .where(within(xcom), xcom.task_id.in_(task_ids), xcom.key.in_((_RETURNED, _PROMPT, _CREDITS)), size <= _LARGEST)
        .order_by(xcom.task_id, xcom.map_index, xcom.key)
        .execution_options(yield_per=20)
    )
    return {(row.task_id, row.map_index, row.key): _value(row.value) for row in budget.take(found)}


def _read_states(
    session: Session, within: Any, task_ids: list[str], budget: _Budget
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the journals in the task state store (Airflow 3.3 and newer): values by key."""
    kept: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    state = TaskStateStoreModel
    if state is None:
        return kept
    size = func.length(state.value).label("size")
    found = session.execute(
        select(state.task_id, state.map_index, state.key, state.value, size)
        .where(
            within(state),
            state.task_id.in_(task_ids),
            state.key.startswith(STATE_KEYS, autoescape=True),
            size <= _LARGEST,
        )
        .order_by(state.task_id, state.map_index, state.key)
        .execution_options(yield_per=50)
    )
    for row in budget.take(found):
        kept[row.task_id, row.map_index][row.key] = _value(row.value)
    return kept


def _read_variables(
    session: Session, dag_id: str, run_id: str, places: Iterable[tuple[str, int]], budget: _Budget
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the journals in Airflow Variables, by one query for the run: values by key."""
    kept: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    owners = {owner_of(dag_id, run_id, *place): place for place in places}
    variable = VariableModel
    size = func.length(variable.val).label("size")
    start = f"{STATE_KEYS}:{run_owner(dag_id, run_id)}"
    found = session.execute(
        select(variable, size)
        .where(variable.key.startswith(start, autoescape=True), size <= _LARGEST)
        .order_by(variable.key)
        .execution_options(yield_per=50)
    )
    for row in budget.take(found):
        prefix, owner, name = row[0].key.split(":", 2)
        if (place := owners.get(owner)) is not None:
            kept[place][f"{prefix}:{name}"] = _value(row[0].get_val())
    return kept


def _graph(session: Session, dag_id: str, run_id: str) -> Graph:
    """Return the Dag's graph as the run's task instances were made from it."""
    ti, dag = TaskInstance, SerializedDagModel
    versions = session.scalars(
        select(ti.dag_version_id).where(ti.dag_id == dag_id, ti.run_id == run_id).distinct().limit(20)
    ).all()
    of_run = select(dag.dag_version_id, dag.dag_hash).where(dag.dag_id == dag_id)
    known = session.execute(
        of_run.where(dag.dag_version_id.in_([each for each in versions if each])).order_by(dag.created_at)
    ).all()
    # Runs from before an upgrade of Airflow have no version, and versions may be deleted.
    known = known or session.execute(of_run.order_by(dag.created_at.desc()).limit(1)).all()
    return Graph.merge(_graph_of(session, row.dag_version_id, row.dag_hash) for row in known)


_graphs: dict[tuple[str, str], Graph] = {}
_MOST_GRAPHS = 64


def _graph_of(session: Session, version_id: Any, dag_hash: str) -> Graph:
    key = str(version_id), dag_hash
    if key not in _graphs:
        dag = SerializedDagModel
        serialized = session.scalar(select(dag).where(dag.dag_version_id == version_id))
        while len(_graphs) >= _MOST_GRAPHS:
            _graphs.pop(next(iter(_graphs)), None)
        _graphs[key] = Graph.read(serialized.data if serialized else None)
    return _graphs[key]


def _last_connections(session: Session, dag_id: str, task_id: str) -> dict[str, Any]:
    """Return the connection ids that a task used last. Airflow drops the rendered fields of older runs."""
    fields = RenderedTaskInstanceFields
    rendered = session.scalar(
        select(fields.rendered_fields)
        .join(DagRun, and_(DagRun.dag_id == fields.dag_id, DagRun.run_id == fields.run_id))
        .where(fields.dag_id == dag_id, fields.task_id == task_id)
        .order_by(DagRun.run_after.desc())
        .limit(1)
    )
    known = rendered if isinstance(rendered, Mapping) else {}
    return {name: known.get(name) for name in ("aws_conn_id", "gptimg_conn_id")}


def _value(stored: Any) -> Any:
    """Return an XCom's value; the SDK stores it as JSON text within JSON."""
    if not isinstance(stored, str):
        return stored
    try:
        return json.loads(stored)
    except (ValueError, RecursionError):
        return stored
