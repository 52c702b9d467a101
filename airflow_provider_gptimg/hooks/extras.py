# SPDX-License-Identifier: Apache-2.0
"""Read the extra of a connection: values as people, forms and URIs write them."""

from __future__ import annotations

import json
import logging
import re
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from airflow_provider_gptimg.api.texts import nearest
from airflow_provider_gptimg.exceptions import GptImgRequestError

if TYPE_CHECKING:
    from airflow_provider_gptimg.airflow_compat import Connection

__all__ = ["extra_hint", "read_count", "read_extra", "read_seconds", "read_verify", "unknown_extras"]

log: logging.Logger = logging.getLogger(__name__)

_EXTRAS = (
    "final_failure_codes",
    "first_poll_after",
    "max_connections",
    "media_hosts",
    "on_unknown_submission",
    "poll_interval",
    "reference_images_field",
    "timeout",
    "verify",
)
_SWITCHES = {
    **dict.fromkeys(("true", "yes", "on", "1", "none", "null", ""), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_LONGEST = 86_400.0
"""Greatest number of seconds of a setting. A timer set for centuries fails, just before a submit is sent."""


def read_extra(conn: Connection) -> dict[str, Any]:
    """Return the extra; warn once of each unknown name.

    :raises GptImgRequestError: It is not a JSON object.
    """
    # Not `extra_dejson`: it also masks, by a blocking call that a triggerer's event loop must not make.
    try:
        extra = json.loads(conn.extra) if conn.extra else {}
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise GptImgRequestError(f"Connection {conn.conn_id!r}: extra is not a JSON object")
    for name in unknown_extras(extra):
        _warn_of_extra(str(conn.conn_id), name)
    return extra


def unknown_extras(extra: dict[str, Any]) -> list[str]:
    """Return the names in the extra that have no effect."""
    return [name[:80] for name in extra if name not in _EXTRAS]


def extra_hint(name: str) -> str:
    """Return what an unknown name in the extra was probably meant to be, in words."""
    near = nearest(name, _EXTRAS)
    return f"did you mean {near!r}?" if near else f"the known ones are {', '.join(_EXTRAS)}"


@lru_cache(maxsize=256)  # once a process: a triggerer reads its connections each minute
def _warn_of_extra(conn_id: str, name: str) -> None:
    log.warning("Connection %r: extra %r is not known and has no effect; %s", conn_id, name, extra_hint(name))


def read_seconds(name: str, value: Any) -> float:
    """Return a number of seconds, also from text or a `timedelta`; only a first poll may come after none.

    :raises ValueError: It is not such a number; the message goes on after the value.
    """
    at_least = 0.0 if name == "first_poll_after" else 0.001
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if not at_least <= number <= _LONGEST or isinstance(value, bool):
        raise ValueError(f"is not a number of seconds from {at_least:g} to {_LONGEST:g}, a day")
    return number


def read_verify(value: Any) -> bool | str:
    """Return True, False, or the path of a CA bundle.

    :raises ValueError: It is something else.
    """
    if value is None or value in (0, 1):  # False and True too
        return value is None or bool(value)
    if isinstance(value, str):
        return _SWITCHES.get(value.strip().lower(), value.strip())
    raise ValueError("is neither true, false nor the path of a CA bundle")


def read_count(value: Any, default: int) -> int:
    """Return a whole number, also from text.

    :raises ValueError: It is not one from 1 to 9999.
    """
    if value is None or value == "":
        return default
    text = str(value).strip().removesuffix(".0")
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII) or int(text) < 1:
        raise ValueError("is not a whole number from 1 to 9999")
    return int(text)
