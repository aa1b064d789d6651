"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

COLUMNS: Final = 132
"""What Ansible's indentation leaves of a terminal of 140 columns."""

Column = tuple[str, Callable[[str, int], str], int]
"""Heading, alignment (``str.ljust``, ``str.rjust``), and the most that a cell may take."""


def lay_out(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay rows out in columns that are as wide as they must be, two spaces between them.

    Args:
        columns: What each column is.
        rows: A cell for each column.

    Returns:
        The heading and a line per row, without trailing spaces. What is longer than its column may be ends with "…".

    """
    cells = [
        [_cut(cell, most) for cell, (_, _, most) in zip(row, columns, strict=True)] for row in ([name for name, _, _ in columns], *rows)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(align(cell, width) for cell, width, (_, align, _) in zip(row, widths, columns, strict=True)).rstrip() for row in cells
    ]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
