"""Sentences on a terminal."""

from __future__ import annotations

import textwrap
from typing import Final

COLUMNS: Final = 92
"""What Ansible's indentation leaves of a terminal of 100 columns."""


def wrap(sentence: str, *, indent: str = "  ", columns: int = COLUMNS) -> list[str]:
    """Break a sentence into lines; names and figures stay whole.

    Args:
        sentence: One line of text.
        indent: What the second and all further lines begin with.
        columns: What a line has room for.

    Returns:
        Lines, at least one.

    """
    return textwrap.wrap(sentence, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
