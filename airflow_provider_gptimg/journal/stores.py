# SPDX-License-Identifier: Apache-2.0
"""Stores of the journal: S3 objects, Airflow's task state store, Airflow Variables, or none.

Each entry has a key of its own and is written once, so a write that Airflow executes late or twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import STATE_OUTLASTS_CLEARS, has_variables, read_variable
from airflow_provider_gptimg.exceptions import GptImgError
from airflow_provider_gptimg.journal.s3_store import S3Store, journal_setting, not_understood, open_s3_journal
from airflow_provider_gptimg.journal.store import MemoryStore, Store, entry_of, told

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Context

__all__ = [
    "MemoryStore",
    "S3Store",
    "StateStore",
    "Store",
    "VariableStore",
    "open_s3_journal",
    "open_store",
    "owner_of",
    "run_owner",
]

_PREFIX = "gptimg:"


class StateStore(Store):
    """The task instance's state store (Airflow 3.3), which has no list and no condition.

    Airflow takes nothing more from an attempt that a later one has replaced.

    :param state: `context["task_state_store"]`.
    :param late: Where a replaced attempt leaves its outcomes for the next one; None: nowhere.
    """

    way_to_drop = (
        "delete the entries gptimg… of the task instance's state (in Airflow's UI under Storage, or by its REST "
        "API: …/taskInstances/TASK_ID/state-store)"
    )

    def __init__(self, state: Any, late: Store | None = None) -> None:
        self._state = state
        self._late = late
        self._own: str | None = None

    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""
        entry = self.read(name)
        if entry is None:
            self.check()
        return entry

    def read(self, name: str) -> Any:
        """Return an entry; None: there is none, or this attempt is replaced."""
        with told("read", self):
            return self._state.get(_PREFIX + name)

    def check(self) -> None:
        """Check that Airflow still knows this attempt: else it answers "there is none" to all that is read."""
        with told("read", self):
            if self._is_replaced:
                raise GptImgError("Airflow knows this attempt no longer: a later one has replaced it")

    @property
    def _is_replaced(self) -> bool:
        return self._own is not None and self._state.get(self._own) is None

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once."""
        from airflow_provider_gptimg.airflow_compat import NEVER_EXPIRE

        try:
            with told("written", self):
                # Kept as long as its DAG run: an expired entry would let a retry pay again.
                self._state.set(_PREFIX + name, entry, retention=NEVER_EXPIRE)
        except GptImgError:
            if self._late is None or not name.endswith(".outcome") or not self._is_replaced:
                raise
            return self._late.put(name, entry)
        self._own = _PREFIX + name
        return True

    def recover(self, name: str) -> Any:
        """Return an outcome that a replaced attempt left elsewhere; None: there is none."""
        entry = None if self._late is None else self._late.get(name)
        if self._late is not None and entry is not None:
            self.put(name, entry)
            self._late.delete(name)
        return entry

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        with told("written", self):
            self._state.delete(_PREFIX + name)
        if self._own == _PREFIX + name:
            self._own = None


class VariableStore(Store):
    """Airflow Variables, deleted once their images are delivered.

    :param owner: Of the task instance, hashed.
    :param description: Of each Variable, for people.
    """

    forgets = True

    def __init__(self, owner: str, description: str) -> None:
        self._prefix = f"{_PREFIX}{owner}:"
        self._description = description
        self.way_to_drop: str = f"delete the Variables {self._prefix}… (in Airflow's UI under Admin)"

    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""
        with told("read", self):
            text = read_variable(self._prefix + name)
        return None if text is None else entry_of(text)

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once."""
        from airflow_provider_gptimg.airflow_compat import Variable

        with told("written", self):
            Variable.set(self._prefix + name, json.dumps(entry), description=self._description)
        return True

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        from airflow_provider_gptimg.airflow_compat import Variable

        with told("written", self):
            Variable.delete(self._prefix + name)


def owner_of(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """Return the hash that a task instance's journal is kept under in S3 and in Variables."""
    return run_owner(dag_id, run_id) + _hash(task_id, str(map_index))


def run_owner(dag_id: str, run_id: str) -> str:
    """Return the start of :func:`owner_of` that all task instances of a DAG run share: one listing finds them."""
    return _hash(dag_id, run_id)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def open_store(context: Context) -> Store:
    """Return the store that `[gptimg] journal` says, for the task instance of `context`.

    :raises GptImgRequestError: The setting is not understood.
    """
    setting = journal_setting()
    ti: Any = context.get("ti")
    identity = [getattr(ti, name, None) for name in ("dag_id", "run_id", "task_id")]
    map_index = getattr(ti, "map_index", -1)
    map_index = map_index if isinstance(map_index, int) else -1
    is_known = all(isinstance(part, str) for part in identity)
    dag_id, run_id, task_id = map(str, identity)
    owner = owner_of(dag_id, run_id, task_id, map_index)
    if (journal := open_s3_journal()) is not None:
        if not is_known:
            return MemoryStore()
        writer = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
        return journal.below(owner, writer)
    if setting == "none":
        return MemoryStore()
    if setting != "auto":
        raise not_understood(setting)
    variables = None
    if is_known and has_variables():
        place = ", ".join(f"{name} {part}" for name, part in zip(("DAG", "run", "task"), identity, strict=True))
        mapped = f" [{map_index}]" if map_index >= 0 else ""
        description = f"What {place}{mapped} has submitted to the gpt-image-2 API; deleted once it is delivered"
        variables = VariableStore(owner, description)
    if STATE_OUTLASTS_CLEARS:
        state = context.get("task_state_store")
        return MemoryStore() if state is None else StateStore(state, variables)
    return variables or MemoryStore()
