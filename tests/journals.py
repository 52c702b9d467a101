# SPDX-License-Identifier: Apache-2.0
"""The three places where a journal can live, for tests that run once for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_gptimg import airflow_compat
from airflow_provider_gptimg.journal import stores
from airflow_provider_gptimg.journal.spending import Amounts, read_spending

KINDS = ("state store", "S3", "Variables")


class Variables:
    """Airflow's Variables, as much of them as the journal uses."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.descriptions: dict[str, str | None] = {}

    def set(self, key: str, value: str, description: str | None = None) -> None:
        assert len(key) <= 250
        self.values[key] = value
        self.descriptions[key] = description

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def use_variables(monkeypatch: pytest.MonkeyPatch) -> Variables:
    """Keep journals in Variables, as Airflow 3.2 and 3.4 do."""
    variables = Variables()
    monkeypatch.setattr(stores, "STATE_OUTLASTS_CLEARS", False)
    monkeypatch.setattr(stores, "has_variables", lambda: True)
    monkeypatch.setattr(stores, "read_variable", variables.values.get)
    monkeypatch.setitem(vars(airflow_compat), "Variable", variables)
    return variables


def use_s3(monkeypatch: pytest.MonkeyPatch, s3: Any) -> Callable[[], list[str]]:
    """Keep journals in S3; return what lists their objects."""
    monkeypatch.setenv("AIRFLOW__GPTIMG__JOURNAL", "s3://images/journal")

    def keys() -> list[str]:
        listed = s3.list_objects_v2(Bucket="images", Prefix="journal/")
        return [item["Key"] for item in listed.get("Contents", ())]

    return keys


def charged(emulator: Any) -> int:
    """Return the credits that the API has charged, refunded ones too."""
    return sum(entry.credits for entry in emulator.ledger if entry.kind == "charge")


def spent() -> Amounts:
    """Return the sums of the journal in S3."""
    journal = stores.open_s3_journal()
    assert journal is not None
    return sum((each.amounts for each in read_spending(journal)), Amounts())
