"""What a host lacks: sentences on what works less well there than the plan and the units say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .units import gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OPEN_FILES: Final = 65536
"""LimitNOFILE of the units. vLLM raises its own limit to 65535 and warns where it cannot (vllm/utils/system_utils.py, set_ulimit)."""

_LIMITS: Final = {
    "cpu": "CPUQuota and CPUWeight",
    "cpuset": "AllowedCPUs",
    "io": "IOWeight",
    "memory": "MemoryMax",
    "pids": "TasksMax",
}
"""What systemd cannot enforce without a controller."""


def host_warnings(condition: Mapping[str, Any]) -> list[str]:
    """Say what a host lacks, as ``library/citadel_host_condition.py`` has read it.

    Returns:
        One sentence each, with what follows from it and what to do. The platform works without any of it.

    """
    return [
        *_clock(condition["clock_synchronised"]),
        *_own_name(**condition["own_name"]),
        *_control_groups(**condition["control_groups"], swap_bytes=condition["swap_bytes"]),
        *_open_files(condition["open_files_max"]),
        *_overcommitment(**condition["memory"]),
        *(warning for setting in condition["kernel_settings"] for warning in _kernel_setting(**setting)),
    ]


def _clock(synchronised: str) -> Iterator[str]:
    if synchronised == "no":
        yield (
            "The clock is not synchronised: times in logs and metrics will not match those of other hosts. Install a time service"
            " (apt install systemd-timesyncd) or repair it; timedatectl shows what it does."
        )


def _own_name(name: str, resolved: str) -> Iterator[str]:
    if resolved != "yes":
        what = "is resolved only after a long wait" if resolved == "late" else "cannot be resolved"
        yield (
            f"The host's own name {name} {what}: logins, sudo and every program that asks for it wait for a name server, up to 10 s each."
            f' Put a line "127.0.1.1 {name}" into /etc/hosts.'
        )


def _control_groups(version: int, controllers: list[str], swap_bytes: int) -> Iterator[str]:
    if missing := [limits for name, limits in _LIMITS.items() if name not in controllers and (version == 2 or name != "cpuset")]:
        yield (
            f"systemd has no use of the control group controllers for {', '.join(missing)}: these limits of the plan are not enforced,"
            " and one service can take what is another's. Where the host is a container, have them delegated to it (systemd: Delegate=yes)."
        )
    if version == 1:
        yield (
            "The host has control groups of version 1: AllowedCPUs (CPUAffinity stands in for it), MemorySwapMax, OOMPolicy and"
            " IPAddressAllow/Deny have no effect. Boot it with systemd.unified_cgroup_hierarchy=1."
        )
        if swap_bytes:
            yield (
                f"{gib(swap_bytes)} of swap are switched on, and MemorySwapMax=0 cannot keep models out of it here: a model in"
                " swap answers minutes late. Switch it off (swapoff --all, and its line in /etc/fstab)."
            )


def _open_files(limit: int) -> Iterator[str]:
    if limit < OPEN_FILES:
        yield (
            f"systemd may give a service no more than {limit} open files, where the units ask for {OPEN_FILES} and vLLM warns below 65535:"
            " with very many connections at once, new ones fail. Where the host is a container, raise its limit (systemd: LimitNOFILE=)."
        )


def _overcommitment(overcommit_mode: int, commit_limit_bytes: int, memory_bytes: int) -> Iterator[str]:
    if overcommit_mode == 2 and commit_limit_bytes < memory_bytes:
        yield (
            f"vm.overcommit_memory is 2, so all processes together may ask for {gib(commit_limit_bytes)} of {gib(memory_bytes)}:"
            " services may not get what the plan grants them. Set vm.overcommit_memory to 0, or vm.overcommit_ratio to 100."
        )


def _kernel_setting(name: str, wanted: str, held: str | None, writable: bool) -> Iterator[str]:
    if held is None:
        yield f"The kernel has no setting {name}, which should be {wanted}."
    elif held != wanted and not writable:
        yield (
            f"{name} is {held} and should be {wanted}, but cannot be set here: set it where this container's kernel is administered,"
            " or take it out of host_kernel_settings."
        )
