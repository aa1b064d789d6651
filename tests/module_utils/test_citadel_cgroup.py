"""What a unit holds and may hold, from files as both versions of the kernel's interface write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from module_utils.citadel_cgroup import Cgroup, CpuTime

GROUP = "/citadel.slice/citadel-llm.slice/citadel-llm@hermes-2.service"
VERSION_2 = {
    "memory.stat": "anon 1000\nfile 900000\nkernel 30\nkernel_stack 7\nshmem 200\nfile_mapped 5000\n",
    "memory.max": "1644167168\n",
    "cgroup.procs": "12\n13\n",
    "memory.peak": "1500000000\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
    "cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 40\nnr_throttled 10\nthrottled_usec 750000\n",
}
VERSION_1 = {
    "memory.stat": "cache 900000\nrss 1\nshmem 2\ntotal_cache 900000\ntotal_rss 1000\ntotal_shmem 200\n",
    "memory.kmem.usage_in_bytes": "30\n",
    "memory.limit_in_bytes": "1644167168\n",
    "cgroup.procs": "12\n13\n",
    "memory.max_usage_in_bytes": "1500000000\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "../cpu/cpu.stat": "nr_periods 40\nnr_throttled 10\nthrottled_time 750000000\n",
    "../cpuacct/cpuacct.usage": "2500000000\n",
}
VERSION_1_BESIDE_2 = {name: text for name, text in VERSION_1.items() if "cpuacct" not in name} | {
    "../unified/cpu.stat": "usage_usec 2500000\nuser_usec 1500000\nsystem_usec 1000000\n"
}
VERSIONS = pytest.mark.parametrize(
    ("root", "files"),
    [(".", VERSION_2), ("memory", VERSION_1), ("memory", VERSION_1_BESIDE_2)],
    ids=["version 2", "version 1", "version 1 beside version 2"],
)


def cgroup(cgroups: Path, root: str, files: dict[str, str]) -> Cgroup:
    """Write the files; `../cpu/cpu.stat` is one of another controller, which version 1 mounts beside that of memory."""
    for name, text in files.items():
        controller, _, file = name.removeprefix("../").rpartition("/")
        path = cgroups / (controller or root) / GROUP.lstrip("/") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Cgroup(GROUP, cgroups)


@VERSIONS
def test_what_counts_is_what_cannot_be_reclaimed(tmp_path: Path, root: str, files: dict[str, str]) -> None:
    found = cgroup(tmp_path, root, files)
    assert found.held_bytes() == 1000 + 200 + 30
    assert found.limit_bytes() == 1568 << 20
    assert found.process_ids() == [12, 13]


@VERSIONS
def test_what_is_measured_besides(tmp_path: Path, root: str, files: dict[str, str]) -> None:
    found = cgroup(tmp_path, root, files)
    assert (found.anonymous_bytes(), found.peak_bytes(), found.oom_kills()) == (1000, 1_500_000_000, 1)
    assert found.cpu_time() == CpuTime(used_seconds=2.5, periods=40, throttled_periods=10, throttled_seconds=0.75)


def test_without_a_quota_nothing_is_held_back(tmp_path: Path) -> None:
    """Version 2 leaves the lines out where the controller is not enabled for the unit."""
    found = cgroup(tmp_path, ".", VERSION_2 | {"cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n"})
    assert found.cpu_time() == CpuTime(used_seconds=2.5, periods=0, throttled_periods=0, throttled_seconds=0)


@VERSIONS
def test_no_limit_is_0(tmp_path: Path, root: str, files: dict[str, str]) -> None:
    limits = {"memory.max": "max\n", "memory.limit_in_bytes": "9223372036854771712\n"}
    assert cgroup(tmp_path, root, files | {name: text for name, text in limits.items() if name in files}).limit_bytes() == 0


def test_a_cgroup_that_has_gone_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"memory\.stat"):
        Cgroup(GROUP, tmp_path).held_bytes()
