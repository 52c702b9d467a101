# SPDX-License-Identifier: Apache-2.0
"""What a reader may read: all Markdown pages, with their blocks, tables and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        ROOT / "benchmarks/README.md",
        *sorted(ROOT.glob("docs/**/*.md")),
    )
}

_FENCE = re.compile(r"^(`{3,})(\S*)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(*languages: str) -> list[Block]:
    """Return the blocks in these languages, or all."""
    found = [
        Block(page, number, language, text)
        for page, content in PAGES.items()
        for number, (_, language, text) in enumerate(_FENCE.findall(content), start=1)
    ]
    return [block for block in found if not languages or block.language in languages]


def prose(page: str) -> str:
    """Return a page without its blocks."""
    return _FENCE.sub("", PAGES[page])


def section(page: str, title: str) -> str:
    """Return what stands under a heading of the second level."""
    return PAGES[page].split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, their heads included."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not re.fullmatch(r"[|-]+", line)]


def names(cells: list[list[str]]) -> list[str]:
    """Return what is set as code in the first column."""
    return [name for first, *_ in cells for name in re.findall(r"`([^`]+)`", first)]


def links(page: str) -> Iterator[str]:
    """Yield the targets of a page's links and images."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: str) -> set[str]:
    """Return the anchors that a Git host, and the site, give to a page's headings."""
    headings = re.findall(r"^#{1,3} (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
