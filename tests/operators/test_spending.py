# SPDX-License-Identifier: Apache-2.0
"""What the journal in S3 says was spent is what the API's own ledger says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from attempts import Instance, fails_at_once, may_be_retried
from journals import use_s3

from airflow_provider_gptimg.exceptions import GptImgContentPolicyError, GptImgTaskFailedError
from airflow_provider_gptimg.journal.spending import Amounts, read_spending, sum_by
from airflow_provider_gptimg.journal.stores import S3Store, open_s3_journal
from airflow_provider_gptimg.operators.gptimg import GptImgGenerateOperator, GptImgSubmitOperator
from airflow_provider_gptimg.operators.gptimg_batch import GptImgBatchToS3Operator
from airflow_provider_gptimg.sensors.gptimg import GptImgTaskSensor
from airflow_provider_gptimg.spending import main


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch, s3: Any) -> Callable[[], list[str]]:
    return use_s3(monkeypatch, s3)


def journal() -> S3Store:
    found = open_s3_journal()
    assert found is not None
    return found


def instance(task_id: str, dag_id: str = "pictures") -> Instance:
    made = Instance()
    made.dag_id, made.task_id = dag_id, task_id
    return made


def total(**options: Any) -> Amounts:
    return sum((spent.amounts for spent in read_spending(journal(), **options)), Amounts())


def of_the_ledger(emulator: Any) -> tuple[int, int]:
    return tuple(sum(entry.credits for entry in emulator.ledger if entry.kind == kind) for kind in ("charge", "refund"))  # type: ignore[return-value]


def test_submissions_failures_and_retries_add_up_to_the_ledger(emulator):
    emulator.fault("submit", "fail")
    generate = GptImgGenerateOperator(task_id="generate", prompt="a cat", n=2)
    paid = instance("generate")
    with may_be_retried(GptImgTaskFailedError):
        paid.attempt(generate)
    assert total() == Amounts(charged=4, refunded=4)
    paid.attempt(generate)
    assert total() == Amounts(charged=8, refunded=4)
    assert of_the_ledger(emulator) == (8, 4)


def test_a_refusal_that_a_later_attempt_finds_was_refunded(emulator):
    emulator.fault("submit", "fail", error={"code": "moderation_blocked", "message": "No."})
    generate, paid = GptImgGenerateOperator(task_id="generate", prompt="a cat"), instance("generate")
    paid.kill(generate)
    with fails_at_once(GptImgContentPolicyError):
        paid.attempt(GptImgGenerateOperator(task_id="generate", prompt="a cat"))
    assert total() == Amounts(charged=2, refunded=2)
    assert of_the_ledger(emulator) == (2, 2)


def test_a_sensor_notes_the_refund_of_what_another_task_submitted(emulator):
    emulator.fault("submit", "fail")
    image_task = instance("submit").attempt(GptImgSubmitOperator(task_id="submit", prompt="a cat"))
    assert total() == Amounts(charged=2)
    with may_be_retried(GptImgTaskFailedError):
        instance("wait").attempt(GptImgTaskSensor(task_id="wait", gptimg_task_id=image_task))
    assert total() == Amounts(charged=2, refunded=2)


def test_a_batch_adds_up_too(emulator, deferrable):
    emulator.fault("submit", "fail", times=2)
    requests = [{"prompt": f"picture {number}", "n": 1 + number % 2} for number in range(20)]
    batch = GptImgBatchToS3Operator(
        task_id="batch",
        requests=requests,
        s3_bucket="images",
        on_partial_failure="succeed",
        deferrable=deferrable,
        max_in_flight=5,
    )
    instance("batch").attempt(batch)
    charged, refunded = of_the_ledger(emulator)
    assert (charged, total()) == (60, Amounts(charged=charged, refunded=refunded))
    assert refunded


def test_an_unknown_outcome_is_told_apart(emulator):
    emulator.fault("submit", "lost_after")
    with pytest.raises(Exception, match="up to 2 credits"):
        instance("lost").attempt(GptImgGenerateOperator(task_id="lost", prompt="a cat"))
    assert total() == Amounts(unknown=2)


def test_a_refused_submit_cost_nothing(emulator):
    emulator.fault("submit", 402)
    with pytest.raises(Exception, match="402"):
        instance("refused").attempt(GptImgGenerateOperator(task_id="refused", prompt="a cat"))
    assert read_spending(journal()) == []


def test_by_dag_by_day_and_by_connection(emulator, monkeypatch):
    for dag_id in ("cats", "dogs", "cats"):
        instance(f"of-{dag_id}-{time.time()}", dag_id).attempt(GptImgSubmitOperator(task_id="t", prompt=dag_id))
    spent = read_spending(journal())
    assert {group: amounts.charged for group, amounts in sum_by(spent, "dag").items()} == {"cats": 4, "dogs": 2}
    assert sum_by(spent, "connection") == {"gptimg_default": Amounts(charged=6)}
    days = sum_by(spent, "day")
    assert sum(days.values(), Amounts()) == Amounts(charged=6)
    assert set(days) <= {time.strftime("%Y-%m-%d", time.gmtime(each.at)) for each in spent}


def test_a_period_and_some_runs_only(emulator):
    instance("first").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat"))
    (first,) = read_spending(journal())
    instance("second").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat", n=2))
    assert total(since=first.at) == Amounts(charged=6)
    assert total(since=first.at + 0.0001) == Amounts(charged=4)
    assert total(until=first.at + 0.0001) == Amounts(charged=2)
    instance("third", "others").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat", n=3))
    assert total(runs=[("pictures", "today")]) == Amounts(charged=6)
    assert total(runs=[("others", "today"), ("pictures", "yesterday")]) == Amounts(charged=6)
    assert total(runs=[]) == Amounts()
    assert (first.dag_id, first.run_id, first.task_id, first.map_index) == ("pictures", "today", "first", -1)


def test_what_is_older_is_not_read(emulator, monkeypatch):
    instance("first").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat"))
    read: list[str] = []
    get_all = S3Store.get_all

    def counted(self: S3Store, names: Any) -> dict[str, Any]:
        read.extend(names := list(names))
        return get_all(self, names)

    monkeypatch.setattr(S3Store, "get_all", counted)
    assert total(since=time.time() + 7200) == Amounts()
    assert read == []


def test_entries_of_an_earlier_release_count_under_unknown(emulator, s3, keys):
    instance("old").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat"))
    for key in keys():
        entry = json.loads(s3.get_object(Bucket="images", Key=key)["Body"].read())
        old = {name: value for name, value in entry.items() if name not in ("writer", "conn_id")}
        s3.put_object(Bucket="images", Key=key, Body=json.dumps(old))
    spent = read_spending(journal())
    assert sum_by(spent, "dag") == sum_by(spent, "connection") == {"(unknown)": Amounts(charged=2)}


def test_the_command_prints_a_table_and_json(emulator, capsys):
    instance("cat").attempt(GptImgSubmitOperator(task_id="t", prompt="a cat", n=3))
    assert main(["--since", "2026-01-01"]) == 0
    header, row, last = capsys.readouterr().out.splitlines()[-3:]  # before them, the S3 server's log
    assert header.split() == ["dag", "charged", "refunded", "reused", "unknown", "net"]
    assert row.split() == ["pictures", "6", "0", "0", "0", "6"]
    assert last.split() == ["total", "6", "0", "0", "0", "6"]
    assert main(["--by", "connection", "--since", "2026-01-01", "--json"]) == 0
    told = capsys.readouterr().out
    told = json.loads(told[told.rindex("\n{") if "\n{" in told else 0 :])
    amounts = {"charged": 6, "refunded": 0, "reused": 0, "unknown": 0, "net": 6}
    assert told == {
        "since": "2026-01-01T00:00:00+00:00",
        "until": None,
        "by": "connection",
        "rows": [{"connection": "gptimg_default", **amounts}],
        "total": amounts,
    }


def test_a_date_that_is_none_is_refused_with_the_way_out(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--since", "yesterday"])
    assert ended.value.code == 2
    assert "--since: 'yesterday' is not a date such as 2026-11-01" in capsys.readouterr().err


def test_without_a_journal_in_s3_the_command_says_what_to_set(monkeypatch, capsys):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "auto")
    assert main([]) == 2
    assert "AIRFLOW__GPTIMG__JOURNAL=s3://" in capsys.readouterr().err


def test_a_journal_that_cannot_be_read_is_not_nothing(s3, monkeypatch, capsys):
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://no-such-bucket/journal")
    assert main([]) == 1
    assert "cannot be listed" in capsys.readouterr().err
