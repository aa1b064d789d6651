"""Disk space: what was allocated is reported, what the chosen weights need is enforced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .problems import Kind
from .units import MIB, gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .inputs import Variant
    from .problems import Problems

OTHER_FILES_BYTES: Final = 64 * MIB
"""Tokenizer, configuration and templates beside the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Disk space of a host, in bytes."""

    requested_bytes: int
    needed_bytes: int
    free_bytes: int
    reserved_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What weights may take."""
        return max(0, self.free_bytes - self.reserved_bytes)


def storage_needed(variant: Variant) -> int:
    """Bytes of a model's folder."""
    return variant.weights_bytes + OTHER_FILES_BYTES


def check_storage(storage: Storage, largest: Sequence[tuple[str, int]], problems: Problems) -> list[str]:
    """Refuse weights that do not fit; warn of allocations that do not.

    Args:
        storage: The host's sums.
        largest: What each service needs, (name, bytes).
        problems: Takes what is wrong.

    Returns:
        Warnings.

    """
    usable = storage.usable_bytes
    if storage.needed_bytes > usable:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in sorted(largest, key=lambda item: (-item[1], item[0])))
        problems.add(
            f"The weights need {gib(storage.needed_bytes)} ({parts}) but {gib(usable)} of disk are usable"
            f" ({gib(storage.free_bytes)} free, {gib(storage.reserved_bytes)} kept by"
            f" citadel_plan_settings.storage_reserve), {gib(storage.needed_bytes - usable)} too little: free them, or set"
            " enabled: false on a model.",
            kind=Kind.SIZE,
        )
    if storage.requested_bytes > storage.free_bytes:
        return [
            f"storage: {gib(storage.requested_bytes)} are allocated, which is more than is free;"
            f" the chosen weights need {gib(storage.needed_bytes)}"
        ]
    return []
