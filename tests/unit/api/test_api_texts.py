# SPDX-License-Identifier: Apache-2.0
"""Foreign texts, made safe to show."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from airflow_provider_gptimg.api.texts import clean, clean_url, texts_of, unsendable

SIGNED = "https://bucket.s3.amazonaws.com/in/cat.png?X-Amz-Credential=AK&X-Amz-Signature=5ec4e7"

QUERIES = (
    "&X-Amz-Signature=5ec4e7",
    "=5ec4e7",
    "[token]=5ec4e7",
    "/5ec4e7",
    "ü=5ec4e7",
    "\u200btoken=5ec4e7",
    "filename*=UTF-8''cat.png&X-Amz-Signature=5ec4e7",
    "'5ec4e7",
)
"""Such that no form has, and one as JavaScript leaves it."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("processing", "processing"),
        ("no such task", "no such task"),
        ("two\nlines\r\n", "two lines"),
        ("a\x1b[31mred\x07", "a [31mred"),
        ("c1\x9b31m", "c1 31m"),
        ("\u202egnp.exe", "gnp.exe"),
        ("zero\u200bwidth", "zero width"),
        ("nul\0", "nul"),
        (f"403 at {SIGNED}", "403 at https://bucket.s3.amazonaws.com/in/cat.png?…"),
        (
            f"<{SIGNED}> and '{SIGNED}'",
            "<https://bucket.s3.amazonaws.com/in/cat.png?…> and 'https://bucket.s3.amazonaws.com/in/cat.png?…'",
        ),
        (f"cannot fetch {SIGNED.removeprefix('https://')}", "cannot fetch bucket.s3.amazonaws.com/in/cat.png?…"),
        ("/in/cat.png?X-Amz-Signature=5ec4e7", "/in/cat.png?…"),
        ("x?u=https%3A%2F%2Fa%3FSignature%3D5ec4e7", "x?…"),
        ("https%3A%2F%2Fa.example%2Fx%3FSignature%3D5ec4e7", "https%3A%2F%2Fa.example%2Fx?…"),
        *((f"at https://a.example/x?{query} now", "at https://a.example/x?… now") for query in QUERIES),
        ("https://a.example/x#token=5ec4e7", "https://a.example/x"),
        ("https://user:5ec4e7@a.example/x", "https://***@a.example/x"),
        ("Really? Yes.", "Really? Yes."),
        ("What?! (Really?) So?", "What?! (Really?) So?"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_is_shown_as(text, shown):
    assert clean(text) == shown


@given(st.text(st.characters(exclude_categories=())), st.integers(2, 50))
def test_whatever_it_is(text, limit):
    shown = clean(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert unsendable(shown) is None


def test_a_url_is_shown_without_its_query():
    assert clean_url(SIGNED) == "https://bucket.s3.amazonaws.com/in/cat.png"
    assert clean_url("https://a.example/\x9b31m\u202e.png#x") == "https://a.example/ 31m .png"


def test_long_texts_take_no_time():
    for part in ("?", "://", "%3f", "a?", "#", "://#"):
        clean(part * 1000)


def test_finds_all_texts_of_a_value():
    assert list(texts_of({"a": ["b", {"c": 1}], "d": ("e", None)})) == ["a", "b", "c", "d", "e"]
