"""What is gathered of a host, read from folders that look as the kernel makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from library.citadel_host_facts import numa_nodes


def make_node(folder: Path, number: int, *, cpus: str, memory_kib: int) -> None:
    node = folder / f"node{number}"
    node.mkdir()
    (node / "cpulist").write_text(f"{cpus}\n")
    (node / "meminfo").write_text(f"Node {number} MemTotal:       {memory_kib} kB\nNode {number} MemFree:        4 kB\n")


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    for name in ("has_cpu", "has_memory", "online"):
        (tmp_path / name).write_text("0\n")
    return tmp_path


def test_nodes_are_listed_by_number_with_or_without_cpus(nodes: Path) -> None:
    make_node(nodes, 0, cpus="0-11,24-35", memory_kib=64)
    make_node(nodes, 10, cpus="", memory_kib=96)  # a memory expander
    make_node(nodes, 2, cpus="12-23", memory_kib=0)  # a socket without memory of its own
    make_node(nodes, 3, cpus="", memory_kib=0)  # a device that only starts transfers
    assert numa_nodes(nodes) == [
        {"id": 0, "cpus": "0-11,24-35", "memory_bytes": 64 * 1024},
        {"id": 2, "cpus": "12-23", "memory_bytes": 0},
        {"id": 10, "cpus": "", "memory_bytes": 96 * 1024},
    ]


def test_a_kernel_that_knows_no_nodes_lists_none(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path / "missing") == []
