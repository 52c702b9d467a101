# SPDX-License-Identifier: Apache-2.0
"""What a run left in Airflow's database of its image tasks, in a bounded number of queries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from airflow_provider_gptimg.gallery.tiles import Record
from airflow_provider_gptimg.links.gptimg import ImagesLink

__all__ = ["read_records"]

_RETURNED = "return_value"
_PROMPT = "prompt"
_OPERATORS = "%gptimg%"


def read_records(
    session: Session, dag_id: str, run_id: str, task_id: str | None = None, map_index: int | None = None
) -> list[Record]:
    """Return the task instances of a run that make, await or mirror images.

    These are known by their operator's name or, for subclasses, by the link that they have once they ran.

    :param task_id: Of these only; None: all.
    :param map_index: Likewise; -1 for a task that is not mapped.
    """

    def within(model: Any) -> Any:
        conditions = [model.dag_id == dag_id, model.run_id == run_id]
        if task_id is not None:
            conditions.append(model.task_id == task_id)
        if map_index is not None:
            conditions.append(model.map_index == map_index)
        return and_(*conditions)

    linked = exists().where(
        XComModel.dag_id == TaskInstance.dag_id,
        XComModel.run_id == TaskInstance.run_id,
        XComModel.task_id == TaskInstance.task_id,
        XComModel.map_index == TaskInstance.map_index,
        XComModel.key == ImagesLink().xcom_key,
    )
    ti = TaskInstance
    rows = session.execute(
        select(ti.task_id, ti.map_index, ti.state, ti.try_number, ti.operator, ti.custom_operator_name).where(
            within(ti), or_(ti.operator.ilike(_OPERATORS), ti.custom_operator_name.ilike(_OPERATORS), linked)
        )
    ).all()
    if not rows:
        return []
    task_ids = {row.task_id for row in rows}
    fields = RenderedTaskInstanceFields
    rendered = {
        (row.task_id, row.map_index): row.rendered_fields
        for row in session.execute(
            select(fields.task_id, fields.map_index, fields.rendered_fields).where(
                within(fields), fields.task_id.in_(task_ids)
            )
        )
    }
    xcom = XComModel
    pushed = {
        (row.task_id, row.map_index, row.key): _value(row.value)
        for row in session.execute(
            select(xcom.task_id, xcom.map_index, xcom.key, xcom.value).where(
                within(xcom), xcom.task_id.in_(task_ids), xcom.key.in_((_RETURNED, _PROMPT))
            )
        )
    }
    records = []
    for row in rows:
        place = (row.task_id, row.map_index)
        known = rendered.get(place)
        known = known if isinstance(known, Mapping) else {}
        prompt = pushed.get((*place, _PROMPT)) or known.get("prompt")
        records.append(
            Record(
                task_id=row.task_id,
                map_index=row.map_index,
                state=row.state,
                try_number=row.try_number,
                operator=row.operator or "",
                fields=known,
                result=pushed.get((*place, _RETURNED)),
                prompt=prompt if isinstance(prompt, str) else None,
            )
        )
    return records


def _value(stored: Any) -> Any:
    """Return an XCom's value; the SDK stores it as JSON text within JSON."""
    if not isinstance(stored, str):
        return stored
    try:
        return json.loads(stored)
    except ValueError:
        return stored
