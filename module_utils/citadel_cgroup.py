"""What the kernel knows of a unit's memory, on cgroup version 1 and 2, for the modules that measure and that show it."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 2**60
"""Version 1 has no word for "none", but a number of bytes that no machine has."""


class Cgroup:
    """Memory of a unit. Raises OSError where the cgroup has gone with its service."""

    def __init__(self, group: str, cgroups: Path = CGROUPS) -> None:
        version_2 = cgroups / group.lstrip("/")
        self._is_version_2 = (version_2 / "memory.stat").exists()
        self._folder = version_2 if self._is_version_2 else cgroups / "memory" / group.lstrip("/")

    def held_bytes(self) -> int:
        """Memory that cannot be reclaimed: anonymous and shared memory and what the kernel keeps for it. Page cache is left out."""
        counts = dict(line.split() for line in self._read("memory.stat").splitlines())
        if "anon" in counts:
            return int(counts["anon"]) + int(counts["shmem"]) + int(counts.get("kernel", 0))
        return int(counts["total_rss"]) + int(counts.get("total_shmem", 0)) + int(self._read("memory.kmem.usage_in_bytes"))

    def limit_bytes(self) -> int:
        """The limit as the kernel knows it; 0 where there is none."""
        text = self._read("memory.max" if self._is_version_2 else "memory.limit_in_bytes").strip()
        return 0 if text == "max" or int(text) >= NO_LIMIT_BYTES else int(text)

    def process_ids(self) -> list[int]:
        """The processes in it."""
        return [int(line) for line in self._read("cgroup.procs").splitlines()]

    def _read(self, file: str) -> str:
        return (self._folder / file).read_text()
