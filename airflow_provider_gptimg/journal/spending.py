# SPDX-License-Identifier: Apache-2.0
"""Read from the journal in S3 what was charged, refunded, saved by reuse, and may have been charged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from airflow_provider_gptimg.journal.entries import REUSED, Submitted
from airflow_provider_gptimg.journal.stores import S3Store, open_s3_journal, run_owner

__all__ = ["BY", "REFUNDS", "Amounts", "Spent", "note_refunds", "read_spending", "sum_by"]

REFUNDS = "refunds"
"""Folder with one entry for each image task whose generation was seen to have failed."""

_AFTER_TASKS = "reg"
"""Name after those of task instances, which are hexadecimal, and of refunds: what follows is not listed."""
_SLACK = 3600.0
"""Seconds by which S3's clock and a worker's may differ, and that a write may take."""


@dataclass(frozen=True)
class Amounts:
    """Credits.

    :param charged: Of accepted submissions, refunded ones too.
    :param refunded: Of those among them whose generation failed.
    :param reused: Saved: the cost of images that were reused.
    :param unknown: Of submissions without a known outcome, which may have been charged.
    """

    charged: int = 0
    refunded: int = 0
    reused: int = 0
    unknown: int = 0

    @property
    def net(self) -> int:
        """Charged and not refunded."""
        return self.charged - self.refunded

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Amounts)))

    def as_dict(self) -> dict[str, int]:
        """Return all amounts by name, `net` too."""
        return {each.name: getattr(self, each.name) for each in fields(Amounts)} | {"net": self.net}


@dataclass(frozen=True)
class Spent:
    """One submission, or one reuse.

    :param at: When it was sent, in Unix seconds.
    :param dag_id: None where an earlier release wrote it down; likewise the other names.
    :param task_id: Of the Airflow task.
    :param image_task: Id of the image task; None: it is not known.
    """

    at: float
    amounts: Amounts
    dag_id: str | None
    run_id: str | None
    task_id: str | None
    map_index: int | None
    conn_id: str | None
    image_task: str | None


BY: dict[str, Callable[[Spent], str]] = {
    "dag": lambda spent: spent.dag_id or "(unknown)",
    "day": lambda spent: f"{datetime.fromtimestamp(spent.at, UTC):%Y-%m-%d}",
    "connection": lambda spent: spent.conn_id or "(unknown)",
}
"""Group of a submission by the name of what is grouped by; a day is one of UTC."""


def sum_by(spent: Iterable[Spent], by: str) -> dict[str, Amounts]:
    """Return the sums of each group, in the groups' order.

    :param by: A name in :data:`BY`.
    """
    sums: dict[str, Amounts] = defaultdict(Amounts)
    for each in spent:
        sums[BY[by](each)] += each.amounts
    return dict(sorted(sums.items()))


def read_spending(
    journal: S3Store,
    *,
    since: float | None = None,
    until: float | None = None,
    runs: Iterable[tuple[str, str]] | None = None,
) -> list[Spent]:
    """Return all submissions and reuses, the earliest first.

    It takes one request for 1,000 entries of the journal, and one for each entry that may be of that time.

    :param journal: As :func:`.open_s3_journal` returns it.
    :param since: Only what was sent then or later, in Unix seconds; None: all.
    :param until: Only what was sent before, in Unix seconds; None: all.
    :param runs: Read these DAG runs only, DAG id and run id of each: one request lists a run. None: the whole journal.
    :raises GptImgError: The journal cannot be read.
    """
    if runs is None:
        times = journal.times(up_to=_AFTER_TASKS)
    else:
        times = journal.times_of([f"{REFUNDS}/", *(run_owner(*run) for run in runs)])
    written: dict[str, dict[str, float]] = defaultdict(dict)
    for name, at in times.items():
        folder, _, entry = name.partition("/")
        written[folder][entry] = at
    refunded = set(written.pop(REFUNDS, ()))
    earliest = float("-inf") if since is None else since - _SLACK
    wanted = [f"{folder}/{entry}" for folder, entries in written.items() for entry in _wanted(entries, earliest)]
    values: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in journal.get_all(wanted).items():
        folder, _, entry = name.partition("/")
        values[folder][entry] = value if isinstance(value, Mapping) else {}
    found = []
    for entries in values.values():
        refunded |= _refunded_in(entries)
        found += [*_submissions(entries), *_reuses(entries)]
    spent = (_spent(submission, entry, refunded) for submission, entry in found if submission.refused is None)
    in_time = [each for each in spent if (since is None or each.at >= since) and (until is None or each.at < until)]
    return sorted(in_time, key=lambda each: each.at)


def note_refunds(image_tasks: Iterable[str], log: Any) -> None:
    """Note in the journal in S3, if there is one, that generations failed, which costs nothing. It never fails."""
    try:
        if image_tasks and (journal := open_s3_journal()) is not None:
            refunds = journal.below(REFUNDS)
            for image_task in image_tasks:
                refunds.put(image_task, {})
    except Exception as error:
        log.warning("The refund is not noted for spending: %s", error)


def _wanted(entries: Mapping[str, float], earliest: float) -> Iterator[str]:
    """Return the names of a task instance's entries that have to be read.

    :param entries: When each was written, in Unix seconds, by name.
    :param earliest: What was written before is left out, unless it belongs to something later.
    """
    batch = [entry for entry in entries if _is_of_batch(entry)]
    if any(entries[entry] >= earliest for entry in batch):
        # `1.batch.0` has all that is in `1.batch.0.0`, `1.batch.0.1`, …
        yield from (entry for entry in batch if entry.count(".") == 2 or entry.rpartition(".")[0] not in entries)
    for entry, at in entries.items():
        if at >= earliest and entry.startswith(REUSED):
            yield entry
        elif at >= earliest and entry.endswith(".intent"):
            name = entry.removesuffix(".intent")
            yield entry
            yield from {f"{name}.outcome", f"{name}.end"} & entries.keys()


def _is_of_batch(entry: str) -> bool:
    """Return whether an entry holds facts of a batch, such as `1.batch.0` or `1.batch.0.3`."""
    return ".batch." in entry and entry.rpartition(".")[2].isdecimal()


def _facts(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Return the facts of a batch, each with the number of its attempt and the entry that it is in."""
    for entry in filter(_is_of_batch, entries):
        value = entries[entry]
        facts = value.get("facts")
        for fact in facts if isinstance(facts, list) else ():
            if isinstance(fact, Mapping):
                yield entry.partition(".")[0], fact, value


def _refunded_in(entries: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {fact["refunded"] for _, fact, _ in _facts(entries) if isinstance(fact.get("refunded"), str)}


def _submissions(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Submitted, Mapping[str, Any]]]:
    """Return each POST of a task instance, with the entry that says who wrote it."""
    for entry, value in entries.items():
        if entry.endswith(".intent"):
            name = entry.removesuffix(".intent")
            yield Submitted.read(name, value, entries.get(f"{name}.outcome"), entries.get(f"{name}.end")), value
    sent: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    outcomes: dict[str, Mapping[str, Any]] = {}
    for attempt, fact, value in _facts(entries):
        if "sent" in fact:
            sent[f"{attempt}.{fact['sent']}"] = fact, value
        elif "outcome" in fact:
            outcomes[f"{attempt}.{fact['outcome']}"] = fact
    for name, (fact, value) in sent.items():
        yield Submitted.read(name, fact, outcomes.get(name)), value


def _reuses(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[Submitted, Mapping[str, Any]]]:
    for entry, value in entries.items():
        if entry.startswith(REUSED):
            yield Submitted.read(REUSED, value), value
    for _, fact, value in _facts(entries):
        if REUSED in fact:
            yield Submitted.read(REUSED, fact), value


def _spent(submission: Submitted, entry: Mapping[str, Any], refunded: set[str]) -> Spent:
    writer = entry.get("writer")
    known: Mapping[str, Any] = writer if isinstance(writer, Mapping) else {}
    credits = submission.credits
    if submission.name == REUSED:
        amounts = Amounts(reused=credits)
    elif submission.task_id:
        is_refunded = submission.refunded or submission.task_id in refunded
        amounts = Amounts(charged=credits, refunded=credits if is_refunded else 0)
    else:
        amounts = Amounts(unknown=credits if submission.is_unknown else 0)
    return Spent(
        at=submission.at,
        amounts=amounts,
        dag_id=known.get("dag_id"),
        run_id=known.get("run_id"),
        task_id=known.get("task_id"),
        map_index=known.get("map_index"),
        conn_id=submission.conn_id or None,
        image_task=submission.task_id,
    )
