"""What the kernel knows of a unit's memory and CPU time, on cgroup version 1 and 2, for all that measure and that show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT_BYTES = 2**60
"""Version 1 has no word for "none", but a number of bytes that no machine has."""


@dataclass(frozen=True)
class CpuTime:
    """CPU time since the unit started; periods are those of its quota, and 0 without one."""

    used_seconds: float
    periods: int
    throttled_periods: int
    throttled_seconds: float


class Cgroup:
    """Memory and CPU time of a unit. Raises OSError where the cgroup has gone with its service."""

    def __init__(self, group: str, cgroups: Path = CGROUPS) -> None:
        version_2 = cgroups / group.lstrip("/")
        self._is_version_2 = (version_2 / "memory.stat").exists()
        self._folder = version_2 if self._is_version_2 else cgroups / "memory" / group.lstrip("/")
        self._cpu_folder, self._cpuacct_folder, self._unified_folder = (
            version_2 if self._is_version_2 else cgroups / name / group.lstrip("/") for name in ("cpu", "cpuacct", "unified")
        )

    def held_bytes(self) -> int:
        """Memory that cannot be reclaimed: anonymous and shared memory and what the kernel keeps for it. Page cache is left out."""
        counts = self._counts("memory.stat")
        if "anon" in counts:
            return counts["anon"] + counts["shmem"] + counts.get("kernel", 0)
        return counts["total_rss"] + counts.get("total_shmem", 0) + int(self._read("memory.kmem.usage_in_bytes"))

    def anonymous_bytes(self) -> int:
        """What its processes have allocated themselves."""
        counts = self._counts("memory.stat")
        return counts["anon" if "anon" in counts else "total_rss"]

    def peak_bytes(self) -> int:
        """The most that was ever charged to it, page cache included; the kernel keeps no peak without."""
        return int(self._read("memory.peak" if self._is_version_2 else "memory.max_usage_in_bytes"))

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        return self._counts("memory.events" if self._is_version_2 else "memory.oom_control")["oom_kill"]

    def cpu_time(self) -> CpuTime:
        """CPU time that it has used, and what its quota has held back."""
        counts = _pairs((self._cpu_folder / "cpu.stat").read_text())
        throttled = counts.get("throttled_usec", 0) / 1e6 if self._is_version_2 else counts["throttled_time"] / 1e9
        # With version 1 the service manager leaves the accounting to version 2, where the kernel has that beside it.
        if (unified := self._unified_folder / "cpu.stat").exists():
            used = _pairs(unified.read_text())["usage_usec"] / 1e6
        else:
            used = int((self._cpuacct_folder / "cpuacct.usage").read_text()) / 1e9
        return CpuTime(used, counts.get("nr_periods", 0), counts.get("nr_throttled", 0), throttled)

    def limit_bytes(self) -> int:
        """The limit as the kernel knows it; 0 where there is none."""
        text = self._read("memory.max" if self._is_version_2 else "memory.limit_in_bytes").strip()
        return 0 if text == "max" or int(text) >= NO_LIMIT_BYTES else int(text)

    def process_ids(self) -> list[int]:
        """The processes in it."""
        return [int(line) for line in self._read("cgroup.procs").splitlines()]

    def _counts(self, file: str) -> dict[str, int]:
        return _pairs(self._read(file))

    def _read(self, file: str) -> str:
        return (self._folder / file).read_text()


def _pairs(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}
