# SPDX-License-Identifier: Apache-2.0
"""Load a run from Airflow's database and, where the journal is in S3, from there: one listing and a bounded number of
entries, which are read once, for none ever changes.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any

from airflow_provider_gptimg.airflow_compat import create_session
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.gallery.ledgers import STATE_KEYS, read_submissions
from airflow_provider_gptimg.gallery.recorded import Record
from airflow_provider_gptimg.gallery.records import Run, read_run
from airflow_provider_gptimg.journal.stores import S3Store, open_s3_journal, owner_of, run_owner

__all__ = ["load_run", "s3_journal", "with_journal"]

log: logging.Logger = logging.getLogger(__name__)

_KEEP_CLIENT = 300
"""Seconds after which a changed AWS connection is heeded."""
_LISTING_HOLDS = 4.0
"""Seconds for which all viewers of a run share one listing; the first look after its end takes a new one."""
_ENDED = {"success", "failed", "upstream_failed", "skipped", "removed"}
_MOST_READ = 2000
"""Entries that one look reads; the next look reads on."""
_KEPT = 16 * 1024 * 1024
"""Characters of entries that are kept."""


def s3_journal() -> S3Store | None:
    """Return the journal, if it is in S3; its client is kept for some minutes, and gives up soon."""
    return _open_journal(int(time.monotonic() // _KEEP_CLIENT))


@lru_cache(maxsize=1)
def _open_journal(_period: int) -> S3Store | None:
    return open_s3_journal(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})


def load_run(dag_id: str, run_id: str) -> Run:
    """Return all that is recorded of a run."""
    with create_session(scoped=False) as session:
        run = read_run(session, dag_id, run_id)
    return with_journal(run, dag_id, run_id)


def with_journal(run: Run, dag_id: str, run_id: str) -> Run:
    """Return the run with what the journal in S3 knows of its submissions, where it is in S3."""
    submits = [record for record in run.records if record.role.submits]
    try:
        if not submits or (journal := s3_journal()) is None:
            return run
        entries, is_cut = _read_entries(journal, dag_id, run_id, submits)
    except GptImgError as error:
        log.warning("Images under way of Dag %r are not shown: %s", dag_id, error)
        return replace(run, lacks_journal=True)

    def with_entries(record: Record) -> Record:
        found = entries.get((record.task_id, record.map_index))
        if not found:
            return record
        known = tuple(read_submissions(found, record.try_number, record.role))
        return replace(record, submissions=record.submissions + known, has_own_journal=False)

    records = [with_entries(record) for record in run.records]
    return replace(run, records=records, is_cut=run.is_cut or is_cut)


def _read_entries(
    journal: S3Store, dag_id: str, run_id: str, records: Iterable[Record]
) -> tuple[dict[tuple[str, int], dict[str, Any]], bool]:
    """Return entries by task instance and key, and whether there are more than may be read."""
    names: dict[str, set[str]] = defaultdict(set)
    is_over = all(each.state in _ENDED for each in records)
    for name in _kept.list(journal, run_owner(dag_id, run_id), is_over):
        owner, _, entry = name.partition("/")
        names[owner].add(entry)
    # Those first that still wait for something: each look shows at least these.
    waiting = sorted(records, key=lambda record: record.state == "success")
    owners = {owner_of(dag_id, run_id, each.task_id, each.map_index): each for each in waiting}
    wanted = [f"{owner}/{entry}" for owner in owners for entry in _needed(names.get(owner, set()))]
    values, is_cut = _kept.read(journal, wanted)
    found: dict[tuple[str, int], dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        owner, _, entry = name.partition("/")
        found[owners[owner].task_id, owners[owner].map_index][f"{STATE_KEYS}:{entry}"] = value
    return found, is_cut


def _needed(entries: set[str]) -> Iterator[str]:
    for entry in sorted(entries):
        # `1.batch.0` has all that is in `1.batch.0.0`, `1.batch.0.1`, …
        is_merged = ".batch." in entry and entry.count(".") == 3 and entry.rpartition(".")[0] in entries
        if not is_merged and not entry.endswith(".begun"):
            yield entry


@dataclass(frozen=True)
class _Listing:
    names: set[str]
    is_over: bool
    at: float


class _Kept:
    """Entries that were read, and listings for some seconds; of all viewers."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._listings: OrderedDict[str, _Listing] = OrderedDict()
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._size = 0

    def list(self, journal: S3Store, start: str, is_over: bool) -> set[str]:
        """Return the names of the entries that start so.

        :param is_over: No task writes more of them. A page looks no further then, so it must see the last.
        """
        with self._lock:
            listing = self._listings.get(start)
        if listing is None or listing.is_over is not is_over or time.monotonic() - listing.at > _LISTING_HOLDS:
            listing = _Listing(set(journal.times(start)), is_over, time.monotonic())
            with self._lock:
                self._listings[start] = listing
                while len(self._listings) > 16:
                    self._listings.popitem(last=False)
        return listing.names

    def read(self, journal: S3Store, names: Sequence[str]) -> tuple[dict[str, Any], bool]:
        """Return entries by name, and whether there are more than may be read at once."""
        with self._lock:
            texts = {name: self._texts[name] for name in names if name in self._texts}
        missing = [name for name in names if name not in texts]
        for name, value in journal.get_all(missing[:_MOST_READ]).items():
            if value is not None:
                texts[name] = json.dumps(value)
                self._keep(name, texts[name])
        return {name: json.loads(texts[name]) for name in names if name in texts}, len(missing) > _MOST_READ

    def _keep(self, name: str, text: str) -> None:
        with self._lock:
            if name in self._texts:
                return
            self._texts[name] = text
            self._size += len(text)
            while self._size > _KEPT:
                self._size -= len(self._texts.popitem(last=False)[1])


_kept = _Kept()
