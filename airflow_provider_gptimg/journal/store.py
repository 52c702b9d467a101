# SPDX-License-Identifier: Apache-2.0
"""The store of one task instance's journal: get an entry, put it once, list, delete."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_provider_gptimg.exceptions import GptImgError

__all__ = ["MemoryStore", "Store", "entry_of", "told"]


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

    def recover(self, name: str) -> Any:
        """Return an entry that an attempt could leave elsewhere only, since a later one had begun; None: there is none.

        It is here from then on.
        """
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


def entry_of(text: str | bytes) -> dict[str, Any]:
    """Return an entry from its JSON; an empty one if it cannot be read: something was written, nobody can tell what."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}


@contextmanager
def told(what: str, store: Store) -> Iterator[None]:
    """Turn any error into one that names the journal and that Airflow may retry: unreadable is not "nothing"."""
    try:
        yield
    except GptImgError:
        raise
    except Exception as error:
        raise GptImgError(
            f"The journal of what was paid for cannot be {what} ({type(store).__name__}): {error}"
        ) from error
