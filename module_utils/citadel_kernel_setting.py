"""Kernel settings as the kernel shows them below /proc/sys. Standard library only: modules ship it to the host."""

from __future__ import annotations

import os
from pathlib import Path

OPTION = {
    "type": "list",
    "elements": "dict",
    "required": True,
    "options": {
        "name": {"type": "str", "required": True},
        "value": {"type": "str", "required": True},
        "reason": {"type": "str"},
    },
}
"""The option `settings` of a module: what the platform wants of the kernel."""


def plain(value: str) -> str:
    """A value in which blanks and tabs are the same."""
    return " ".join(value.split())


class KernelSetting:
    """One setting, by the name that sysctl(8) gives it."""

    def __init__(self, name: str, folder: str = "/proc/sys") -> None:
        self.path = Path(folder) / name.replace(".", "/")

    @property
    def writable(self) -> bool:
        """Root may write everything, but not on a file system that is mounted read-only: access(2) knows."""
        return os.access(self.path, os.W_OK)

    def held(self) -> str | None:
        """What the kernel holds; None where it has no such setting or does not show it."""
        return plain(self.path.read_text()) if os.access(self.path, os.R_OK) else None

    def write(self, value: str) -> None:
        """Raises OSError where the kernel refuses the value."""
        self.path.write_text(value + "\n")
