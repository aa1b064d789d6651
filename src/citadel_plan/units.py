"""Sizes as the inventory writes them: a number with a binary unit, and nothing else.

The specification says "GB"; systemd's ``MemoryMax=90G`` means 90 x 2**30 bytes. So that nobody has to
guess, a size without a unit and a size with a decimal unit are both refused.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
TIB: Final = 2**40

_BINARY_UNITS: Final = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")


def parse_size(value: object) -> int:
    """Turn ``"90GiB"`` into bytes.

    Args:
        value: A string of a number and one of KiB, MiB, GiB, TiB; decimals are allowed ("2.5GiB").

    Returns:
        Bytes, a whole number of MiB: the kernel counts memory in pages and would round anything finer.

    Raises:
        ValueError: The rest of a sentence that begins with the name and the value, and says the way out.

    """
    if isinstance(value, bool) or not isinstance(value, str):
        raise ValueError('is not a size: write a number with a binary unit, for example "4GiB" or "512MiB"')
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError('is not a size: write a number with a binary unit, for example "4GiB" or "512MiB"')
    number, unit = match["number"], match["unit"]
    if unit not in _BINARY_UNITS:
        if not unit:
            raise ValueError(f'has no unit: write "{number}GiB" or "{number}MiB"')
        guess = unit[0].upper().replace("B", "G") + "iB"
        shown = guess if guess in _BINARY_UNITS else "GiB"
        raise ValueError(
            f'has the unit "{unit}", which is not one of KiB, MiB, GiB, TiB: write "{number}{shown}"'
            " (the specification's GB is read as GiB)"
        )
    size = Fraction(number) * _BINARY_UNITS[unit]
    if size % MIB:
        raise ValueError(f'is not a whole number of MiB: write "{max(1, round(size / MIB))}MiB"')
    return int(size)


def gib(size_bytes: int) -> str:
    """Format bytes for a sentence: ``"4.7 GiB"``, small sizes in MiB.

    Args:
        size_bytes: Bytes; may be negative.

    Returns:
        One decimal in GiB from half a GiB up, whole MiB (rounded up) below.

    """
    if abs(size_bytes) >= GIB // 2 or size_bytes == 0:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{-(-size_bytes // MIB)} MiB"


def round_up(value: int, step: int) -> int:
    """Round up to the next multiple of ``step``."""
    return -(-value // step) * step
