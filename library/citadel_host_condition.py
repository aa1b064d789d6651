#!/usr/bin/python
"""Ansible module: what a host is like in those respects that the platform needs and does not set. Reads only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_host_condition
short_description: Reads in what condition a host is
description:
  - Reads clock, name resolution, control groups, swap, limit of open files, memory overcommitment and kernel settings.
  - What follows from it says the filter P(citadel_host_warnings#filter).
options:
  settings:
    description: Kernel settings that the platform wants.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the setting, as sysctl(8) writes it.
        type: str
        required: true
      value:
        description: Its value.
        type: str
        required: true
      reason:
        description: Why; not used here.
        type: str
attributes:
  check_mode:
    support: full
    description: Reads only.
"""

EXAMPLES = r"""
- name: Look at the host
  citadel_host_condition:
    settings:
      - {name: net.ipv4.ip_local_port_range, value: 32768 60999}
  register: condition
"""

RETURN = r"""
condition:
  description: Input of the filter P(citadel_host_warnings#filter).
  returned: always
  type: dict
"""

import os
import re
import socket
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel_kernel_setting import OPTION, KernelSetting, plain

CGROUPS = Path("/sys/fs/cgroup")
# Under which name version 1 has them.
CONTROLLERS_VERSION_1 = {"cpu": "cpu", "cpuset": "cpuset", "io": "blkio", "memory": "memory", "pids": "pids"}
NAME_SECONDS = 2


def output(*command):
    """What a command says; nothing where there is no such command or it hangs, which the filter reads as not known."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def own_name():
    """The host's name, and whether it is resolved: "yes", "no" or, where nobody has answered in NAME_SECONDS, "late"."""
    name = socket.gethostname()
    try:
        found = subprocess.run(["getent", "ahosts", name], capture_output=True, check=False, timeout=NAME_SECONDS)
    except subprocess.TimeoutExpired:
        return {"name": name, "resolved": "late"}
    return {"name": name, "resolved": "yes" if found.returncode == 0 else "no"}


def control_groups():
    """Version, and the controllers that the service manager can use here."""
    unified = CGROUPS / "cgroup.controllers"
    if unified.exists():
        usable = set(unified.read_text().split()) if os.access(CGROUPS / "cgroup.subtree_control", os.W_OK) else set()
        return {"version": 2, "controllers": sorted(usable & set(CONTROLLERS_VERSION_1))}
    # A container's manager often mounts them read-only; then nothing is enforced, and nobody says so.
    usable = {name for name, folder in CONTROLLERS_VERSION_1.items() if os.access(CGROUPS / folder / "cgroup.procs", os.W_OK)}
    return {"version": 1, "controllers": sorted(usable)}


def swap_bytes():
    return sum(int(line.split()[2]) for line in Path("/proc/swaps").read_text().splitlines()[1:]) * 1024


def open_files_max():
    """What the service manager can grant to a unit: its own hard limit."""
    return int(re.search(r"^Max open files\s+\d+\s+(\d+)", Path("/proc/1/limits").read_text(), re.MULTILINE).group(1))


def memory():
    fields = dict(re.findall(r"^(MemTotal|CommitLimit):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return {
        "overcommit_mode": int(Path("/proc/sys/vm/overcommit_memory").read_text()),
        "commit_limit_bytes": int(fields["CommitLimit"]) * 1024,
        "memory_bytes": int(fields["MemTotal"]) * 1024,
    }


def kernel_setting(name, wanted):
    setting = KernelSetting(name)
    return {"name": name, "wanted": plain(wanted), "held": setting.held(), "writable": setting.writable}


def main():
    module = AnsibleModule(
        argument_spec={
            "settings": OPTION,
        },
        supports_check_mode=True,
    )
    module.exit_json(
        changed=False,
        condition={
            "clock_synchronised": output("timedatectl", "show", "--property=NTPSynchronized", "--value"),
            "own_name": own_name(),
            "control_groups": control_groups(),
            "swap_bytes": swap_bytes(),
            "open_files_max": open_files_max(),
            "memory": memory(),
            "kernel_settings": [kernel_setting(setting["name"], setting["value"]) for setting in module.params["settings"]],
        },
    )


if __name__ == "__main__":
    main()
