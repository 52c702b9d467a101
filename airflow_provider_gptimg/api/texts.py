# SPDX-License-Identifier: Apache-2.0
"""Make texts that others wrote safe to show: in messages, logs, XComs and metrics."""

from __future__ import annotations

import re

__all__ = ["clean", "clean_url"]

# Also a query without a scheme before it, and one that is percent-encoded in another URL.
_QUERY = re.compile(r"(?:\?|%3f)[a-z0-9_%.~-][^\s\"'<>]*", re.IGNORECASE)
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
        text = _QUERY.sub("?…", text)
        text = _USER_INFO.sub("://***@", _FRAGMENT.sub(r"\1", text))
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_url(url: str) -> str:
    """Return a URL as it may be shown: without query and fragment, and without control characters."""
    return clean(re.split(r"[?#]", url, maxsplit=1)[0], 200)
