"""What a host lacks, from what was read of it."""

from __future__ import annotations

from typing import Any

import pytest

from citadel_plan import host_warnings

GIB = 2**30
GOOD: dict[str, Any] = {
    "clock_synchronised": "yes",
    "own_name": {"name": "hx-llm-server-01", "resolved": "yes"},
    "control_groups": {"version": 2, "controllers": ["cpu", "cpuset", "io", "memory", "pids"]},
    "swap_bytes": 0,
    "open_files_max": 1073741816,
    "memory": {"overcommit_mode": 0, "commit_limit_bytes": 64 * GIB, "memory_bytes": 128 * GIB},
    "kernel_settings": [
        {"name": "net.ipv4.ip_local_port_range", "wanted": "32768 60999", "held": "32768 60999", "writable": True},
    ],
}


def control_groups(version: int, *controllers: str) -> dict[str, Any]:
    return {"control_groups": {"version": version, "controllers": list(controllers)}}


def setting(held: str | None, *, writable: bool) -> dict[str, Any]:
    return {"kernel_settings": [{"name": "vm.swappiness", "wanted": "10", "held": held, "writable": writable}]}


def test_a_good_host_lacks_nothing() -> None:
    assert host_warnings(GOOD) == []


@pytest.mark.parametrize(
    ("differs", "begins"),
    [
        ({"clock_synchronised": "no"}, ["The clock is not synchronised: "]),
        ({"own_name": {"name": "box", "resolved": "no"}}, ["The host's own name box cannot be resolved: "]),
        ({"own_name": {"name": "box", "resolved": "late"}}, ["The host's own name box is resolved only after a long wait: "]),
        (
            control_groups(2, "cpu", "memory", "pids"),
            ["systemd has no use of the control group controllers for AllowedCPUs, IOWeight: "],
        ),
        (
            control_groups(1, "cpu", "cpuset", "io", "memory", "pids"),
            ["The host has control groups of version 1: AllowedCPUs (CPUAffinity "],
        ),
        (
            control_groups(1),
            [
                "systemd has no use of the control group controllers for CPUQuota and CPUWeight, IOWeight, MemoryMax, TasksMax: ",
                "The host has control groups of version 1: ",
            ],
        ),
        (
            control_groups(1, "cpu", "cpuset", "io", "memory", "pids") | {"swap_bytes": 8 * GIB},
            ["The host has control groups of version 1: ", "8.0 GiB of swap are switched on, and MemorySwapMax=0 cannot "],
        ),
        ({"open_files_max": 20000}, ["systemd may give a service no more than 20000 open files, "]),
        (
            {"memory": {"overcommit_mode": 2, "commit_limit_bytes": 64 * GIB, "memory_bytes": 128 * GIB}},
            ["vm.overcommit_memory is 2, so all processes together may ask for 64.0 GiB of 128.0 GiB: "],
        ),
        (setting("60", writable=False), ["vm.swappiness is 60 and should be 10, but cannot be set here: "]),
        (setting(None, writable=False), ["The kernel has no setting vm.swappiness, which should be 10."]),
    ],
)
def test_each_lack_is_a_sentence(differs: dict[str, Any], begins: list[str]) -> None:
    warnings = host_warnings(GOOD | differs)
    assert len(warnings) == len(begins)
    assert [warning[: len(begin)] for warning, begin in zip(warnings, begins, strict=True)] == begins


@pytest.mark.parametrize(
    "differs",
    [
        # Not told is not known to be wrong.
        {"clock_synchronised": ""},
        # MemorySwapMax=0 keeps the models out of it.
        {"swap_bytes": 8 * GIB},
        {"open_files_max": 65536},
        {"memory": {"overcommit_mode": 2, "commit_limit_bytes": 128 * GIB, "memory_bytes": 128 * GIB}},
        # The role is about to set it.
        setting("60", writable=True),
        setting("10", writable=False),
    ],
)
def test_what_does_no_harm_is_not_told(differs: dict[str, Any]) -> None:
    assert host_warnings(GOOD | differs) == []
