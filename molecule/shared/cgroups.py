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


def held_bytes(host: Host, unit: str) -> int:
    """Memory that cannot be reclaimed: anonymous and shared memory and what the kernel keeps for the unit, without page cache."""
    text = read(host, unit, "memory/memory.stat", "memory.stat")
    counts = {name: int(value) for name, value in (line.split() for line in text.splitlines())}
    if "anon" in counts:
        return counts["anon"] + counts["shmem"] + counts.get("kernel", 0)
    kernel = int(read(host, unit, "memory/memory.kmem.usage_in_bytes", ""))
    return counts["total_rss"] + counts.get("total_shmem", 0) + kernel
