"""What a unit holds and may hold, from files as both versions of the kernel's interface write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from module_utils.citadel_cgroup import Cgroup

GROUP = "/citadel.slice/citadel-llm.slice/citadel-llm@hermes-2.service"
VERSION_2 = {
    "memory.stat": "anon 1000\nfile 900000\nkernel 30\nkernel_stack 7\nshmem 200\nfile_mapped 5000\n",
    "memory.max": "1644167168\n",
    "cgroup.procs": "12\n13\n",
}
VERSION_1 = {
    "memory.stat": "cache 900000\nrss 1\nshmem 2\ntotal_cache 900000\ntotal_rss 1000\ntotal_shmem 200\n",
    "memory.kmem.usage_in_bytes": "30\n",
    "memory.limit_in_bytes": "1644167168\n",
    "cgroup.procs": "12\n13\n",
}
VERSIONS = pytest.mark.parametrize(("root", "files"), [(".", VERSION_2), ("memory", VERSION_1)], ids=["version 2", "version 1"])


def cgroup(cgroups: Path, root: str, files: dict[str, str]) -> Cgroup:
    folder = cgroups / root / GROUP.lstrip("/")
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return Cgroup(GROUP, cgroups)


@VERSIONS
def test_what_counts_is_what_cannot_be_reclaimed(tmp_path: Path, root: str, files: dict[str, str]) -> None:
    found = cgroup(tmp_path, root, files)
    assert found.held_bytes() == 1000 + 200 + 30
    assert found.limit_bytes() == 1568 << 20
    assert found.process_ids() == [12, 13]


@VERSIONS
def test_no_limit_is_0(tmp_path: Path, root: str, files: dict[str, str]) -> None:
    limits = {"memory.max": "max\n", "memory.limit_in_bytes": "9223372036854771712\n"}
    assert cgroup(tmp_path, root, files | {name: text for name, text in limits.items() if name in files}).limit_bytes() == 0


def test_a_cgroup_that_has_gone_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"memory\.stat"):
        Cgroup(GROUP, tmp_path).held_bytes()
