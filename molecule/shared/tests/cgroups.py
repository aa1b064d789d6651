"""What the kernel really holds a unit to, on cgroup version 1 and 2."""

from __future__ import annotations

from testinfra.host import Host


def read(host: Host, unit: str, version_1: str, version_2: str) -> str:
    """Content of a cgroup file of a unit. ``version_1`` is CONTROLLER/FILE, ``version_2`` is FILE."""
    group = host.check_output("systemctl show --property=ControlGroup --value %s", unit)
    controller, _, file = version_1.partition("/")
    paths = [f"/sys/fs/cgroup{group}/{version_2}", f"/sys/fs/cgroup/{controller}{group}/{file}"]
    for path in paths:
        if host.file(path).exists:
            return host.file(path).content_string.strip()
    raise AssertionError(f"{unit} has none of {paths}")


def memory_limit_bytes(host: Host, unit: str) -> int:
    return int(read(host, unit, "memory/memory.limit_in_bytes", "memory.max"))


def tasks_limit(host: Host, unit: str) -> int:
    return int(read(host, unit, "pids/pids.max", "pids.max"))


def cpu_quota_percent(host: Host, unit: str) -> int | None:
    """Percent of one CPU, None where there is no quota."""
    if host.file("/sys/fs/cgroup/cgroup.controllers").exists:
        quota, period = read(host, unit, "", "cpu.max").split()
    else:
        quota = read(host, unit, "cpu/cpu.cfs_quota_us", "")
        period = read(host, unit, "cpu/cpu.cfs_period_us", "")
    return None if quota in {"max", "-1"} else round(int(quota) * 100 / int(period))


def process_ids(host: Host, unit: str) -> set[int]:
    return {int(line) for line in read(host, unit, "pids/cgroup.procs", "cgroup.procs").split()}
