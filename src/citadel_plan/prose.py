"""Sentences on a terminal."""

from __future__ import annotations

import textwrap
from typing import Final

COLUMNS: Final = 92
"""What Ansible's indentation leaves of a terminal of 100 columns."""


def wrap(sentence: str, *, indent: str = "  ") -> list[str]:
    """Break a sentence into lines of at most :data:`COLUMNS`; names and figures stay whole.

    Args:
        sentence: One line of text.
        indent: What the second and all further lines begin with.

    Returns:
        Lines, at least one.

    """
    return textwrap.wrap(sentence, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
