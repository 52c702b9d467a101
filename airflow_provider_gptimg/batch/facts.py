# SPDX-License-Identifier: Apache-2.0
"""Facts that attempts write down: values written once each and numbered without a gap, so nobody has to list them.

An attempt appends to its own values only. A write that is executed late, or twice, says what was said already.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.exceptions import GptImgError, GptImgSubmissionUnknownError

if TYPE_CHECKING:
    from airflow_provider_gptimg.journal.stores import Store

__all__ = ["Fact", "FactLog", "Get", "delivery_key", "unreadable"]

_VERSION = 2
_LARGEST = 20_000
"""Bytes that are written at once. A segment has up to twice as many: MySQL takes 64 KB of an encrypted Variable."""
_MERGED = 16
"""Values that are merged into one, a segment, so that later legs have fewer to read."""

Fact = dict[str, Any]
Get = Callable[[str], Any]


class FactLog:
    """The facts of one attempt, in the order in which they were written.

    :param get: Returns a value by key; None if there is none.
    :param attempt: Its number.
    :raises GptImgSubmissionUnknownError: A value cannot be read.
    """

    def __init__(self, get: Get, attempt: int) -> None:
        self.attempt = attempt
        self.facts: list[Fact] = []
        self._segment = 0
        while (value := get(self._key)) is not None:
            self.facts += _unpack(self._key, value)
            self._segment += 1
        self._single: list[list[Fact]] = []
        """Written since the last segment."""
        while (value := get(self._next_key)) is not None:
            self._single.append(_unpack(self._next_key, value))
        self.facts += (fact for facts in self._single for fact in facts)

    def append(self, store: Store, facts: Iterable[Fact]) -> None:
        """Write facts down, in as few values as hold them.

        :raises GptImgError: The store fails. This attempt ends then: what it wrote last may appear yet, or never.
        """
        for part in _parts(facts):
            key = self._next_key
            self._single.append(part)
            _put(store, key, part)
            if len(self._single) >= _MERGED or _size(self._single) > _LARGEST:
                self._merge(store)

    def _merge(self, store: Store) -> None:
        _put(store, self._key, [fact for facts in self._single for fact in facts])
        if store.forgets:
            for key in self._single_keys:
                store.delete(key)
        self._segment += 1
        self._single = []

    @property
    def keys(self) -> list[str]:
        """The keys of all its values."""
        return [f"{self.attempt}.batch.{segment}" for segment in range(self._segment)] + self._single_keys

    @property
    def _single_keys(self) -> list[str]:
        return [f"{self._key}.{number}" for number in range(len(self._single))]

    @property
    def _key(self) -> str:
        return f"{self.attempt}.batch.{self._segment}"

    @property
    def _next_key(self) -> str:
        return f"{self._key}.{len(self._single)}"


def delivery_key(attempt: int) -> str:
    """Return the key under which an attempt's success is noted."""
    return f"{attempt}.batch.delivered"


def unreadable(key: str) -> GptImgSubmissionUnknownError:
    """Build the error for a value that cannot be read."""
    return GptImgSubmissionUnknownError(
        f"The record {key!r} of this task instance is not what this release writes, so what was paid for cannot be "
        "known. Restore it, or delete all records of the task instance to submit all requests again"
    )


def _put(store: Store, key: str, facts: list[Fact]) -> None:
    value = {"version": _VERSION, "facts": facts}
    try:
        is_there = store.put(key, value)
    except GptImgError:
        is_there = store.put(key, value)  # the outcomes of submits are worth it, and the same again changes nothing
    if not is_there:
        raise GptImgError(f"Another process is writing the journal of this very attempt: {key!r} is there already")


def _unpack(key: str, value: Any) -> list[Fact]:
    facts = value.get("facts") if isinstance(value, Mapping) and value.get("version") == _VERSION else None
    if not isinstance(facts, list) or not all(isinstance(fact, dict) for fact in facts):
        raise unreadable(key)
    return facts


def _parts(facts: Iterable[Fact]) -> Iterator[list[Fact]]:
    part: list[Fact] = []
    for fact in facts:
        if part and _size(part) + _size(fact) > _LARGEST:
            yield part
            part = []
        part.append(fact)
    if part:
        yield part


def _size(facts: Any) -> int:
    return len(json.dumps(facts))
