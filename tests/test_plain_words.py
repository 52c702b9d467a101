# SPDX-License-Identifier: Apache-2.0
"""Refuse phrases that hide a plainer one, in the pages, in docstrings, comments and messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_pages import PAGES, ROOT, prose

PLAINER = {
    r"\banew\b": "again",
    r"\bshall\b": "must, will, or the imperative",
    r"\b(?<!there )(is|are) no (?!longer\b|more\b)": "is not a …, has no …",
    r"(?<!each )(?<!some )(?<!both )\bof which\b": "a sentence of its own",
    r"\bso (it does|they do)\b(?! not)": "repeat the verb",
    r"\bnot to be had\b": "is gone, is missing",
}
RIDDLE = re.compile(r"(What|How|Why|Whether|Which|Who)\b")
"""A docstring opens with a noun (a module, a class) or an imperative (a function)."""

SOURCES = [
    *sorted(ROOT.glob("example_dags/*.py")),
    *sorted(ROOT.glob("airflow_provider_gptimg/**/*.py")),
]


def stumbles(text: str) -> list[str]:
    text = " ".join(text.split())
    return [
        f"{match[0]!r} in {text[max(match.start() - 40, 0) : match.end() + 40]!r}: rather {plainer}"
        for phrase, plainer in PLAINER.items()
        for match in re.finditer(phrase, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_plain(page):
    assert stumbles(re.sub(r"`[^`\n]*`", "", prose(page))) == []


def texts(path: Path) -> Iterator[str]:
    """Yield the comments and all strings that may hold a sentence."""
    source = path.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_plain(path):
    assert [found for text in texts(path) for found in stumbles(text)] == []
    assert [text for text in docstrings(path) if RIDDLE.match(text)] == []
