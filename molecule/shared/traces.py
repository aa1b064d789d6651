"""What a service could leave behind on its host."""

from __future__ import annotations

from testinfra.host import Host


def traces(server: Host) -> set[str]:
    """What could be left behind: processes outside their units, shared memory, runtime files, mounts and cgroups of ours."""
    script = r"""
    for process in $(pgrep --uid agent0,citadel-gateway); do
      grep -q citadel-llm.slice /proc/$process/cgroup 2>/dev/null || echo "orphan $(tr '\0' ' ' < /proc/$process/cmdline)"
    done
    find /dev/shm -mindepth 1 -printf 'shared memory %p\n'
    find /run/citadel-llm -type f -name '*.pid' -printf 'file %p\n'
    awk '$2 ~ /citadel|\/opt\/models/ {print "mount " $2}' /proc/mounts
    find /sys/fs/cgroup -type d -path '*citadel-llm.slice/*' -printf 'cgroup %p\n'
    find /tmp /var/tmp -maxdepth 1 -name 'systemd-private-*citadel-llm*' | sed -E 's/-[0-9a-f]{32}-|-[A-Za-z0-9]{6}$/ /g' | sort | uniq -c
    """
    return set(server.check_output("sh -c %s", script).splitlines())
