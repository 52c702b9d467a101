# SPDX-License-Identifier: Apache-2.0
"""Stores of the journal: S3 objects, Airflow's task state store, Airflow Variables, or none.

Each entry has a key of its own and is written once, so a write that Airflow executes late or twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.airflow_compat import (
    STATE_OUTLASTS_CLEARS,
    conf,
    has_variables,
    read_variable,
)
from airflow_provider_gptimg.exceptions import GptImgError, GptImgRequestError

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
_WRITER = "writer"
_LARGEST = 1024 * 1024
"""Bytes of an entry in S3 that are read: it has 40 KB at the most."""
_AT_A_TIME = 32


class Store(ABC):
    """The store of one task instance's journal: JSON objects by name.

    A store that cannot be read or written raises an error that Airflow may retry; it never says "there is none".
    """

    lasts = True
    """True if it outlives the attempt."""
    forgets = False
    """True if what was delivered is deleted."""
    way_to_drop = "delete the journal"
    """Instruction for a person who wants the provider to forget the task instance."""

    @abstractmethod
    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""

    def read(self, name: str) -> Any:
        """Return an entry as :meth:`get` does, where :meth:`check` follows."""
        return self.get(name)

    def check(self) -> None:  # noqa: B027 - most stores have nothing to check
        """Check, after some calls of :meth:`read`, that what they did not find is not there.

        :raises GptImgError: Airflow has replaced this attempt.
        """

    @abstractmethod
    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once; return whether it is there now, and not another one in its place."""

    def list(self) -> set[str] | None:
        """Return the names of all entries; None: this store has no list, so ask for each."""
        return None

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""


class MemoryStore(Store):
    """Keeps the journal within one attempt only."""

    lasts = False

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""
        return self._entries.get(name)

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once."""
        return bool(self._entries.setdefault(name, entry) == entry)

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        self._entries.pop(name, None)


class StateStore(Store):
    """The task instance's state store (Airflow 3.3), which has no list and no condition.

    :param state: `context["task_state_store"]`.
    """

    way_to_drop = (
        "delete the entries gptimg… of the task instance's state (in Airflow's UI under Storage, or by its REST "
        "API: …/taskInstances/TASK_ID/state-store)"
    )

    def __init__(self, state: Any) -> None:
        self._state = state
        self._own: str | None = None

    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""
        entry = self.read(name)
        if entry is None:
            self.check()
        return entry

    def read(self, name: str) -> Any:
        """Return an entry; None: there is none, or this attempt is replaced."""
        with _told("read", self):
            return self._state.get(_PREFIX + name)

    def check(self) -> None:
        """Check that Airflow still knows this attempt: else it answers "there is none" to all that is read."""
        with _told("read", self):
            if self._own and self._state.get(self._own) is None:
                raise GptImgError("Airflow knows this attempt no longer: a later one has replaced it")

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once."""
        from airflow_provider_gptimg.airflow_compat import NEVER_EXPIRE

        with _told("written", self):
            # Kept as long as its DAG run: an expired entry would let a retry pay again.
            self._state.set(_PREFIX + name, entry, retention=NEVER_EXPIRE)
        self._own = _PREFIX + name
        return True

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        with _told("written", self):
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
        with _told("read", self):
            text = read_variable(self._prefix + name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return {}  # something was written, and nobody can tell what

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once."""
        from airflow_provider_gptimg.airflow_compat import Variable

        with _told("written", self):
            Variable.set(self._prefix + name, json.dumps(entry), description=self._description)
        return True

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        from airflow_provider_gptimg.airflow_compat import Variable

        with _told("written", self):
            if read_variable(self._prefix + name) is not None:
                Variable.delete(self._prefix + name)


class S3Store(Store):
    """Small objects in S3, which attempts cannot overwrite. It may be used from several threads.

    :param prefix: Of the store's objects, with a slash at its end.
    :param aws_conn_id: AWS connection.
    :param writer: Task instance that each entry names as its writer, for spending; None: none.
    :param parent: Store whose client it shares; None: it has its own.
    :param limits: Of its client, as :func:`.s3_client` takes them.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        aws_conn_id: str | None,
        writer: dict[str, Any] | None = None,
        parent: S3Store | None = None,
        **limits: Any,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._aws_conn_id = aws_conn_id
        self._writer = {_WRITER: writer} if writer else {}
        self._client: Any = None
        self._parent = parent
        self._limits = limits
        self.way_to_drop: str = f"delete the objects s3://{bucket}/{prefix}…"

    def below(self, folder: str, writer: dict[str, Any] | None = None) -> S3Store:
        """Return the store of a folder in this one, over the same client.

        :param folder: Its name, without a slash.
        :param writer: As of the class.
        """
        return S3Store(self._bucket, f"{self._prefix}{folder}/", self._aws_conn_id, writer, self)

    def beside(self, folder: str) -> S3Store:
        """Return the store of a folder that all task instances share, whose entries name the same writer."""
        return (self._parent or self).below(folder, self._writer.get(_WRITER))

    def get(self, name: str) -> Any:
        """Return an entry; None: there is none."""
        entry = self.get_signed(name)
        return {key: value for key, value in entry.items() if key != _WRITER} if isinstance(entry, dict) else entry

    def get_signed(self, name: str) -> Any:
        """Return an entry with its `writer`, the task instance that wrote it; None: there is none."""
        with _told("read", self):
            try:
                with closing(self._s3.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]) as body:
                    text = body.read(_LARGEST)
            except self._s3.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    return None
                raise
        try:
            return json.loads(text)
        except ValueError:
            return {}  # something was written, and nobody can tell what

    def get_all(self, names: Iterable[str]) -> dict[str, Any]:
        """Return entries by name as :meth:`get_signed` does, several at a time."""
        return self._each(self.get_signed, names)

    def times_of(self, starts: Iterable[str]) -> dict[str, float]:
        """Return as :meth:`times` what starts with any of `starts`, with one request for each, several at a time."""
        return {name: at for times in self._each(self.times, starts).values() for name, at in times.items()}

    def _each(self, call: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
        names = list(names)
        with _told("read", self):
            _ = self._s3  # made once, before several threads ask for it
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="gptimg-journal") as pool:
            return dict(zip(names, pool.map(call, names), strict=True))

    def put(self, name: str, entry: dict[str, Any]) -> bool:
        """Write an entry once; return whether it is there now, and not another one in its place."""
        text = json.dumps({**entry, **self._writer})
        item = {"Bucket": self._bucket, "Key": self._key(name), "Body": text, "ContentType": "application/json"}
        with _told("written", self):
            try:
                self._s3.put_object(**item, IfNoneMatch="*")
                return True
            except self._s3.exceptions.ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 501:  # the store knows no conditions
                    self._s3.put_object(**item)
                    return True
                if status not in (409, 412):
                    raise
        return bool(self.get_signed(name) == json.loads(text))  # it may be this very write, repeated

    def list(self) -> set[str]:
        """Return the names of all entries."""
        return set(self.times())

    def times(self, start: str = "", up_to: str = "") -> dict[str, float]:
        """Return when each entry was written, in Unix seconds by S3's clock, by name: one request for 1,000 entries.

        :param start: Only names that start so.
        :param up_to: Name that ends the list; empty: all.
        """
        times: dict[str, float] = {}
        with _told("listed", self):
            paginator = self._s3.get_paginator("list_objects_v2")
            pages = paginator.paginate(Bucket=self._bucket, Prefix=self._prefix + start)
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self._prefix).removesuffix(".json")
                    if up_to and name >= up_to:
                        return times
                    times[name] = item["LastModified"].timestamp()
        return times

    def delete(self, name: str) -> None:
        """Delete an entry, if it is there."""
        with _told("written", self):
            self._s3.delete_object(Bucket=self._bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}.json"

    @property
    def _s3(self) -> Any:
        if self._parent is not None:
            return self._parent._s3
        if self._client is None:
            from airflow.providers.amazon.aws.hooks.s3 import S3Hook

            from airflow_provider_gptimg.mirroring.store import s3_client

            self._client = s3_client(S3Hook(aws_conn_id=self._aws_conn_id), _AT_A_TIME, **self._limits)
        return self._client


@contextmanager
def _told(what: str, store: Store) -> Iterator[None]:
    """Say of an error that it was the journal's, and let Airflow retry it: what cannot be read is not "nothing"."""
    try:
        yield
    except GptImgError:
        raise
    except Exception as error:
        raise GptImgError(
            f"The journal of what was paid for cannot be {what} ({type(store).__name__}): {error}"
        ) from error


def open_s3_journal(**limits: Any) -> S3Store | None:
    """Return the journal of all task instances, if `[gptimg] journal` says that it is in S3; else None.

    :param limits: Of its client, as :func:`.s3_client` takes them.
    :raises GptImgRequestError: The setting is not understood.
    """
    setting = _setting()
    if not setting.startswith("s3://"):
        return None
    bucket, _, prefix = setting.removeprefix("s3://").partition("/")
    if not bucket:
        raise _not_understood(setting)
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    conn_id = conf.get("gptimg", "journal_aws_conn_id", fallback="aws_default") or None
    return S3Store(bucket, folder, conn_id, **limits)


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
    setting = _setting()
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
        raise _not_understood(setting)
    if STATE_OUTLASTS_CLEARS:
        state = context.get("task_state_store")
        return MemoryStore() if state is None else StateStore(state)
    if is_known and has_variables():
        place = ", ".join(f"{name} {part}" for name, part in zip(("DAG", "run", "task"), identity, strict=True))
        mapped = f" [{map_index}]" if map_index >= 0 else ""
        description = f"What {place}{mapped} has submitted to the gpt-image-2 API; deleted once it is delivered"
        return VariableStore(owner, description)
    return MemoryStore()


def _setting() -> str:
    return str(conf.get("gptimg", "journal", fallback="auto")).strip() or "auto"


def _not_understood(setting: str) -> GptImgRequestError:
    return GptImgRequestError(
        f"[gptimg] journal = {setting!r} in Airflow's configuration is not understood: use 'auto', 'none', or "
        "'s3://bucket/prefix'"
    )
