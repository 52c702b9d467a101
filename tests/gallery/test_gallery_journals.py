# SPDX-License-Identifier: Apache-2.0
"""The gallery reads a run's journal from whichever store holds it."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import event

from airflow_provider_gptimg.airflow_compat import VariableModel, create_session
from airflow_provider_gptimg.gallery import records
from airflow_provider_gptimg.journal.stores import owner_of

INTENT = {"fingerprint": "f", "credits": 2, "at": 1.0, "max_tries": 0}
ACCEPTED = {"task_id": "t1"}


def test_the_variables_of_a_run_are_read_by_one_query(airflow_db):
    def name(run_id: str, task_id: str, map_index: int, entry: str) -> str:
        return f"gptimg:{owner_of('posters', run_id, task_id, map_index)}:{entry}"

    kept = {
        name("r1", "submit", -1, "1.1.intent"): INTENT,
        name("r1", "submit", -1, "1.1.outcome"): ACCEPTED,
        name("r1", "each", 7, "1.1.intent"): INTENT,
        name("r1", "unasked", -1, "1.1.intent"): INTENT,
        name("r2", "submit", -1, "1.1.intent"): INTENT,
        "gptimg_other": INTENT,
    }
    queries: list[str] = []
    with create_session(scoped=False) as session:
        session.add_all([VariableModel(key=key, val=json.dumps(value)) for key, value in kept.items()])
        session.flush()

        def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            queries.append(statement)

        event.listen(session.connection(), "before_cursor_execute", note)
        try:
            places = [("submit", -1), ("each", 7)]
            found = records._read_variables(session, "posters", "r1", places, records._Budget(1 << 20))
            spent = records._Budget(10)
            assert records._read_variables(session, "posters", "r1", places, spent) == {}
            assert spent.is_spent
        finally:
            session.rollback()
    assert found == {
        ("submit", -1): {"gptimg:1.1.intent": INTENT, "gptimg:1.1.outcome": ACCEPTED},
        ("each", 7): {"gptimg:1.1.intent": INTENT},
    }
    assert len(queries) == 2, "one each"
