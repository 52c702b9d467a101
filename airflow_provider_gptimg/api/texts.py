# SPDX-License-Identifier: Apache-2.0
"""Make texts that others wrote safe to show: in messages, logs, XComs and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["clean", "clean_url", "nearest", "read_payload", "shorten", "texts_of", "unsendable"]

# After a scheme any question mark begins a query. Without one it may also end a sentence, or be percent-encoded in
# another URL. A quote ends a query, but not where a signed file name has one: filename*=UTF-8''cat.png&…
_IN_QUERY = r"(?:[^\s\"'<>]|'(?='*[\w&=%]))"
_QUERY = re.compile(rf"(?P<url>://[^\s\"'<>?]*)\?{_IN_QUERY}+|(?:\?|%3f)[a-z0-9_%.~-]{_IN_QUERY}*", re.IGNORECASE)
_FRAGMENT = re.compile(r"(://[^\s\"'<>#]{1,2000})#[^\s\"'<>]*")
_USER_INFO = re.compile(r"://[^\s\"'<>/@]{1,2000}@")


def clean(text: str, limit: int = 300) -> str:
    """Return a foreign text on one line, without control characters, and without the queries of URLs.

    A query may be a signature that opens a private object; a control character can forge log lines, or turn the
    direction of what follows.

    :param limit: Characters to keep.
    """
    has_url = "?" in text or "://" in text or "%3" in text
    if len(text) <= limit and not has_url and text.isprintable():  # as nearly all are
        return " ".join(text.split())
    text = text[: 4 * limit]
    if has_url:
        text = _QUERY.sub(lambda found: f"{found['url'] or ''}?…", text)
        text = _USER_INFO.sub("://***@", _FRAGMENT.sub(r"\1", text))
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return shorten(text, limit)


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, the last one an ellipsis if some are left out."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_url(url: str) -> str:
    """Return a URL as it may be shown: without query and fragment, and without control characters."""
    return clean(re.split(r"[?#]", url, maxsplit=1)[0], 200)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that a misspelt one probably meant, whatever its case; None if none is near.

    :param cutoff: How near it is at least, from 0 to 1 (`difflib`).
    """
    from difflib import get_close_matches

    by_lower_case = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[near[0]] if near else None


def texts_of(value: Any) -> Iterator[str]:
    """Yield all texts in a value such as JSON has, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from texts_of(name)
            yield from texts_of(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from texts_of(entry)


def unsendable(text: str) -> str | None:
    """Return in words what a text holds that no database takes in an XCom; None if there is nothing.

    An image bought with such a text could never be delivered, and a submit that breaks while it is written leaves an
    unknown outcome.
    """
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate"
    return None


def read_payload(body: bytes, secrets: tuple[str, ...]) -> Any:
    """Return `body` as JSON with each secret taken out of all its texts; None if it is not JSON.

    A server that echoes a key or a presigned URL must not bring it into a log or an XCom. A lone surrogate becomes a
    question mark and a NUL a space, since no database takes them in an XCom.
    """
    try:
        payload = json.loads(body)
        return _cleaned(payload, secrets) if _needs_cleaning(body, secrets) else payload
    except (ValueError, RecursionError):
        return None


def _needs_cleaning(body: bytes, secrets: tuple[str, ...]) -> bool:
    """Return whether a text in this JSON may hold a secret, as it is, behind an escape, or in UTF-16 or UTF-32, or a
    surrogate, whose UTF-8 begins with 0xED."""
    if b"\\" in body or b"\0" in body or b"\xed" in body:
        return True
    return any(secret.encode() in body for secret in secrets)


def _cleaned(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        value = value.encode(errors="replace").decode().replace("\0", " ")
        for secret in secrets:
            value = value.replace(secret, "***")
        return value
    if isinstance(value, list):
        return [_cleaned(entry, secrets) for entry in value]
    if isinstance(value, dict):
        return {_cleaned(name, secrets): _cleaned(entry, secrets) for name, entry in value.items()}
    return value
