# SPDX-License-Identifier: Apache-2.0
"""Tables as the README can take them."""

from __future__ import annotations

__all__ = ["print_table"]


def print_table(title: str, names: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table, its columns in line."""
    widths = [max(len(line[column]) for line in [names, *rows]) for column in range(len(names))]

    def show(cells: list[str]) -> None:
        first, *others = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        print(f"| {' | '.join([first, *others])} |")

    print(f"\n{title}\n")
    show(names)
    print(f"|{'|'.join('-' * (width + 2) if not i else '-' * (width + 1) + ':' for i, width in enumerate(widths))}|")
    for row in rows:
        show(row)
    print(flush=True)
