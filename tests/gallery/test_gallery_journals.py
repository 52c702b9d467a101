# SPDX-License-Identifier: Apache-2.0
"""The gallery reads a run's journal from whichever store holds it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event

from airflow_provider_gptimg.airflow_compat import VariableModel, create_session
from airflow_provider_gptimg.gallery import records, runs
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.records import Run
from airflow_provider_gptimg.gallery.roles import Role
from airflow_provider_gptimg.journal.stores import S3Store, open_s3_journal, owner_of

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


@pytest.fixture
def journal(s3, monkeypatch):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://images/journal")
    monkeypatch.setattr(runs, "_kept", runs._Kept())
    runs._open_journal.cache_clear()
    found = open_s3_journal()
    assert found is not None
    yield found
    runs._open_journal.cache_clear()


def _keep(journal: S3Store, task_id: str, map_index: int, **entries: Any) -> None:
    for name, entry in entries.items():
        journal.below(owner_of("posters", "r1", task_id, map_index)).put(name[1:].replace("_", "."), entry)


def _record(map_index: int, state: str = "deferred", role: Role = Role.SUBMIT) -> Record:
    return Record("submit", map_index, state, 1, role)


def test_a_run_in_s3_takes_one_listing_and_each_entry_once(journal, monkeypatch):
    for number in range(5):
        _keep(journal, "submit", number, a1_1_intent=INTENT, a1_1_outcome={"task_id": f"t{number}"}, a2_begun={})
    _keep(journal, "other", -1, a1_1_intent=INTENT)
    calls: list[str] = []
    for name in ("times", "get_signed"):
        real = getattr(S3Store, name)
        monkeypatch.setattr(
            S3Store, name, lambda self, *a, real=real, name=name: calls.append(f"{name} {a}") or real(self, *a)
        )
    run = Run(records=[_record(number) for number in range(5)] + [Record("wait", -1, "deferred", 1, Role.WAIT)])
    for _ in range(3):
        known = [record.submissions for record in runs.with_journal(run, "posters", "r1").records]
        assert [[sent.image_task for sent in each] for each in known] == [["t0"], ["t1"], ["t2"], ["t3"], ["t4"], []]
    assert len([call for call in calls if call.startswith("times")]) == 1
    assert len([call for call in calls if call.startswith("get")]) == 10
    monkeypatch.setattr(runs, "_LISTING_HOLDS", -1.0)
    _keep(journal, "submit", 0, a1_1_end={"refunded": True})
    calls.clear()
    assert runs.with_journal(run, "posters", "r1").records[0].submissions[0].state == "refunded"
    assert len(calls) == 2, "a listing, and what is new"


def test_the_first_look_at_a_run_that_is_over_sees_what_was_written_last(journal):
    _keep(journal, "submit", 0, a1_1_intent=INTENT, a1_1_outcome=ACCEPTED)
    under_way, over = (Run(records=[_record(0, state)]) for state in ("running", "failed"))
    assert runs.with_journal(under_way, "posters", "r1").records[0].submissions[0].state == "accepted"
    _keep(journal, "submit", 0, a1_1_end={"refunded": True})
    assert runs.with_journal(under_way, "posters", "r1").records[0].submissions[0].state == "accepted"
    assert runs.with_journal(over, "posters", "r1").records[0].submissions[0].state == "refunded"


def test_a_look_reads_a_bounded_number_of_entries_those_under_way_first(journal, monkeypatch):
    monkeypatch.setattr(runs, "_MOST_READ", 2)
    for number in range(3):
        _keep(journal, "submit", number, a1_1_intent=INTENT, a1_1_outcome={"task_id": f"t{number}"})
    run = Run(records=[_record(0, "success"), _record(1, "success"), _record(2)])
    first = runs.with_journal(run, "posters", "r1")
    assert [bool(record.submissions) for record in first.records] == [False, False, True]
    assert first.is_cut
    for _ in range(2):
        last = runs.with_journal(run, "posters", "r1")
    assert all(record.submissions for record in last.records)
    assert not last.is_cut


def test_a_batch_in_s3_reads_merged_values_once(journal):
    sent = {"sent": 1, "occurrence": 0, "prompt": "A lamp", **INTENT}
    facts = {"version": 2, "facts": [sent, {"outcome": 1, "task_id": "t1"}]}
    _keep(journal, "submit", -1, a1_batch_0=facts, a1_batch_0_0=facts, a1_batch_1_0={"version": 2, "facts": []})
    assert sorted(runs._needed({"1.batch.0", "1.batch.0.0", "1.batch.1.0", "2.begun"})) == ["1.batch.0", "1.batch.1.0"]
    (record,) = runs.with_journal(Run(records=[_record(-1, role=Role.BATCH)]), "posters", "r1").records
    assert [(sent.image_task, sent.prompt) for sent in record.submissions] == [("t1", "A lamp")]
    assert not record.has_own_journal


def test_a_journal_that_cannot_be_read_is_told_and_hides_nothing_else(journal, monkeypatch):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://absent-bucket/journal")
    runs._open_journal.cache_clear()
    run = Run(records=[_record(0)])
    assert runs.with_journal(run, "posters", "r1") == replace(run, lacks_journal=True)
