# SPDX-License-Identifier: Apache-2.0
"""What a run left in Airflow's database of its image tasks, in a bounded number of queries."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Text, and_, cast, exists, func, or_, select
from sqlalchemy.orm import Session

from airflow_provider_gptimg.airflow_compat import DagRun, RenderedTaskInstanceFields, TaskInstance, XComModel
from airflow_provider_gptimg.api.requests import MAX_IMAGES
from airflow_provider_gptimg.api.tasks import CREDITS_PER_IMAGE
from airflow_provider_gptimg.batch.ledger import HEADER_KEY, Entry, page_key
from airflow_provider_gptimg.gallery.tiles import Listed, Picture, Record, mirrored_picture
from airflow_provider_gptimg.links.gptimg import ImagesLink

try:
    from airflow_provider_gptimg.airflow_compat import TaskStateStoreModel
except ImportError:  # before Airflow 3.3
    TaskStateStoreModel = None

__all__ = ["last_connections", "read_records"]

_RETURNED = "return_value"
_PROMPT = "prompt"
_OPERATORS = "%gptimg%"
_LARGEST = 8 * 1024 * 1024
"""Characters of an XCom or of a page that are read: ten thousand mirrored objects have fewer."""
_PAGE = re.compile(re.escape(page_key(0)[:-1]) + r"(\d+)")


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
                within(xcom),
                xcom.task_id.in_(task_ids),
                xcom.key.in_((_RETURNED, _PROMPT)),
                func.length(cast(xcom.value, Text)) <= _LARGEST,
            )
        )
    }
    listed: dict[tuple[str, int], list[Listed]] = defaultdict(list)
    if (state := TaskStateStoreModel) is not None:
        pages = session.execute(
            select(state.task_id, state.map_index, state.key, state.value).where(
                within(state),
                state.task_id.in_(task_ids),
                state.key.startswith(HEADER_KEY, autoescape=True),
                func.length(state.value) <= _LARGEST,
            )
        )
        attempts = {(row.task_id, row.map_index): row.try_number for row in rows}
        for page in sorted(pages, key=lambda page: _page_number(page.key)):
            place = (page.task_id, page.map_index)
            listed[place] += _read_page(page.key, _value(page.value), attempts.get(place))
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
                listed=tuple(listed[place]),
            )
        )
    return records


def last_connections(session: Session, dag_id: str, task_id: str) -> dict[str, Any]:
    """Return the connection ids that a task used last, for a run whose rendered fields Airflow keeps no longer."""
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


def _page_number(key: str) -> int:
    found = _PAGE.fullmatch(key)
    return int(found[1]) if found else -1


def _read_page(key: str, page: Any, try_number: int | None) -> Iterator[Listed]:
    """Yield the requests of a batch that stand in one page of its ledger; nothing of what cannot be read.

    :param try_number: Of the batch's attempt, to which errors of earlier ones mean nothing.
    """
    if _page_number(key) < 0 or not isinstance(page, list):
        return
    for number, value in enumerate(page):
        try:
            entry = Entry.from_json(value, _page_number(key), None)
            objects = (entry.mirrored or {}).get("objects") or ()
            pictures = [_read_object(entry.task_id, index, fact) for index, fact in enumerate(objects) if fact]
            failed = entry.error if entry.failed_by == try_number else None
            error = str(failed.get("message") or "It failed") if failed else None
            credits = entry.submission.credits if entry.submission else 0
            n = min(max(1, int(credits) // CREDITS_PER_IMAGE), MAX_IMAGES)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # people may edit the state store
        if entry.task_id or error:
            name = f"{_page_number(key)}.{number}"
            yield Listed(name, entry.task_id or None, n, entry.prompt or None, tuple(filter(None, pictures)), error)


def _read_object(image_task: str, index: int, fact: Mapping[str, Any]) -> Picture | None:
    uri = f"s3://{fact['bucket']}/{fact['key']}"
    return mirrored_picture({**fact, "uri": uri, "task_id": image_task, "index": index})


def _value(stored: Any) -> Any:
    """Return an XCom's value; the SDK stores it as JSON text within JSON."""
    if not isinstance(stored, str):
        return stored
    try:
        return json.loads(stored)
    except (ValueError, RecursionError):
        return stored
