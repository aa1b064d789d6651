"""Lists of CPU or GPU ids in the kernel's notation: ``"0-3,8"``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_RANGE: Final = re.compile(r"(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?")


def parse_ids(text: str) -> tuple[int, ...]:
    """Read ``"0-3,8"``.

    Args:
        text: Ids and inclusive ranges with commas between, as in ``/sys/devices/system/node/node0/cpulist``.

    Returns:
        The ids, ascending, each once.

    Raises:
        ValueError: The rest of a sentence that begins with the name and the value.

    """
    ids: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError('is not a list of ids such as "0-3,8"')
        first = int(match["first"])
        last = int(match["last"] or first)
        if last < first:
            raise ValueError(f'has a range that runs backwards ("{part.strip()}"): write "{last}-{first}"')
        ids.update(range(first, last + 1))
    return tuple(sorted(ids))


def format_ids(ids: Iterable[int]) -> str:
    """Write ids as the shortest list of ranges: ``(0, 1, 2, 3, 8)`` becomes ``"0-3,8"``."""
    parts: list[str] = []
    start = previous = -2
    for current in [*sorted(set(ids)), -1]:
        if current == previous + 1 and current > 0:
            previous = current
            continue
        if start >= 0:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = current
    return ",".join(parts)
