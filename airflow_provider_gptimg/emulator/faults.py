# SPDX-License-Identifier: Apache-2.0
"""Faults to order: what may go wrong, with which options, and the queue of what will."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Fault", "Faults"]

CALLS = ("submit", "poll", "image")

# The options of each fault, with their defaults.
_ERROR_OPTIONS: dict[str, Any] = {
    "code": None,
    "message": None,
    "retry_after": None,
    "request_id": None,
    "envelope": None,
}
_ANYWHERE: dict[str, dict[str, Any]] = {
    "html": {"status": 502},
    "empty": {"status": 200},
    "redirect": {"location": "https://example.com/elsewhere", "status": 302},
    "body": {"body": b"", "status": 200, "content_type": "application/json", "headers": {}},
    "lost_before": {},
    "lost_after": {},
    "cut_after": {},
    "hang_before": {"seconds": None},
    "hang_after": {"seconds": None},
}
_ON_SUBMIT: dict[str, dict[str, Any]] = {"fail": {"error": None}}
_ON_IMAGE: dict[str, dict[str, Any]] = {
    "short": {},
    "long_length": {"length": None},
    "stall": {"seconds": None},
    "endless": {},
    "wrong_type": {},
    "gone": {},
}
_ENVELOPES = (None, "nested", "flat", "header")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong: an HTTP status or the name of a fault, with every option it knows."""

    on: str
    what: int | str
    options: dict[str, Any]


class Faults:
    """The faults still to come; each call takes the first that is meant for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[tuple[Fault, int | None]] = []

    def add(self, on: str, what: int | str, times: int | None = 1, **options: Any) -> None:
        """Queue a fault for the next `times` calls of its kind (None: for all, until cleared)."""
        if on not in (*CALLS, "any"):
            raise ValueError(f"on must be submit, poll, image or any, not {on!r}")
        if times is not None and times < 1:
            raise ValueError(f"times must be 1 or more, or None, not {times!r}")
        known = _options_of(on, what)
        if unknown := sorted(options.keys() - known.keys()):
            raise TypeError(f"the fault {what!r} has no option {', '.join(unknown)}")
        fault = Fault(on, what, {**known, **options})
        if fault.options.get("envelope") not in _ENVELOPES:
            raise ValueError(f"envelope must be nested, flat or header, not {fault.options['envelope']!r}")
        with self._lock:
            self._queue.append((fault, times))

    def take(self, call: str | None) -> Fault | None:
        """Return the fault this call is to suffer, and count it as used."""
        if not self._queue or call is None:
            return None
        with self._lock:
            for position, (fault, times) in enumerate(self._queue):
                if fault.on in (call, "any"):
                    if times == 1:
                        del self._queue[position]
                    elif times is not None:
                        self._queue[position] = (fault, times - 1)
                    return fault
        return None

    def clear(self) -> None:
        """Forget the faults that have not come yet."""
        with self._lock:
            self._queue.clear()


def _options_of(on: str, what: int | str) -> dict[str, Any]:
    if isinstance(what, int) and 400 <= what <= 599:
        return _ERROR_OPTIONS
    if isinstance(what, str):
        if what in _ANYWHERE:
            return _ANYWHERE[what]
        if on == "submit" and what in _ON_SUBMIT:
            return _ON_SUBMIT[what]
        if on == "image" and what in _ON_IMAGE:
            return _ON_IMAGE[what]
    raise ValueError(f"no such fault on {on}: {what!r}")
