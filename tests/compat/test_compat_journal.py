# SPDX-License-Identifier: Apache-2.0
"""A repeated task pays once on every supported Airflow, wherever its journal lives."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from airflow_provider_gptimg.airflow_compat import AIRFLOW

pytestmark = pytest.mark.timeout(400)
HERE = Path(__file__).parent


@pytest.fixture
def run(airflow_db, emulator, connect, monkeypatch):
    """Run the DAG once, and return its run."""
    connect(emulator, poll_interval=0.3, first_poll_after=0.3)
    dags = Path(airflow_db) / "dags"
    dags.mkdir(exist_ok=True)
    shutil.copy(HERE / "dag_of_repeated_tasks.py", dags / "gptimg_repeated.py")
    monkeypatch.syspath_prepend(str(dags))

    def go():
        import gptimg_repeated

        return gptimg_repeated.dag.test()

    yield go
    (dags / "gptimg_repeated.py").unlink()
    sys.modules.pop("gptimg_repeated", None)


def variables() -> dict[str, str]:
    """Return the journal's Variables of this DAG with their descriptions; other tests may leave some of theirs."""
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session

    with create_session() as session:
        rows = session.query(Variable.key, Variable.description).all()
    return {key: told for key, told in rows if key.startswith("gptimg:") and "DAG gptimg_repeated," in told}


def charges(emulator) -> list[str]:
    return sorted(task.prompt for task in emulator.tasks)


@pytest.mark.parametrize("journal", ["auto", "S3"])
def test_a_retry_takes_up_what_is_paid_for(run, emulator, s3, monkeypatch, journal):
    if journal == "S3":
        monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://images/journal")
    ended = run()
    assert {(ti.task_id, ti.map_index): (str(ti.state), ti.try_number) for ti in ended.get_task_instances()} == {
        ("submit", -1): ("success", 2),
        ("mapped", 0): ("success", 2),
        ("mapped", 1): ("success", 2),
        ("held", -1): ("success", 2),
        ("deferred", -1): ("success", 2),
    }
    assert charges(emulator) == ["a", "b", "c", "d", "e"]
    assert variables() == {}, "what is delivered needs none"
    kept = [entry["Key"] for entry in s3.list_objects_v2(Bucket="images").get("Contents", ())]
    assert sum(key.endswith(".end.json") for key in kept) == (5 if journal == "S3" else 0), "deliveries are noted"


def test_variables_tell_what_they_are_for(run, emulator, monkeypatch):
    if (3, 3) <= AIRFLOW < (3, 4):
        pytest.skip("Airflow 3.3 has a state store that outlasts clears")
    seen = {}
    from airflow_provider_gptimg.journal.attempt import Attempt

    deliver = Attempt.deliver
    monkeypatch.setattr(Attempt, "deliver", lambda *given: seen.update(variables()) or deliver(*given))
    run()
    assert any("DAG gptimg_repeated" in told and "task mapped [1]" in told for told in seen.values())
    assert emulator.api_key not in repr(seen)
