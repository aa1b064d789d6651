#!/usr/bin/python
"""Ansible module: what the plan needs to know of a host. Reads only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_host_facts
short_description: Gathers what the plan needs to know of a host
description:
  - Reads memory, processors, NUMA nodes, instruction set, GPUs, free storage and listening ports, in the shape of the variable C(citadel_host_facts).
  - Space that the models' own weights already take counts as free, so that a second run plans what the first one did.
options:
  models_folder:
    description: Folder that holds one folder of weights per model.
    type: path
    required: true
  models:
    description: Names of the models whose weights count as free space.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: Reads only.
"""

EXAMPLES = r"""
- name: Gather what the plan needs
  citadel_host_facts:
    models_folder: /opt/models
    models: [mixtral-8x7b, hermes-2]
"""

RETURN = r"""
host_facts:
  description: Input of the plan; the shape of C(citadel_host_facts).
  returned: always
  type: dict
system:
  description: Operating system, service manager version and architecture, for the support check.
  returned: always
  type: dict
"""

import os
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN = 10
# Widest first. vLLM's CPU backend tells these three apart when it loads its kernels (vllm/platforms/cpu.py, import_kernels).
ISA_FLAGS = (
    ("amx", {"amx_tile", "amx_bf16", "avx512f"}),
    ("avx512", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}),
    ("avx2", {"avx2"}),
)


def memory_bytes(text):
    return int(re.search(r"MemTotal:\s+(\d+) kB", text).group(1)) * 1024


def numa_nodes(folder=Path("/sys/devices/system/node")):
    """Nodes with CPUs, with memory, or both: memory that no CPU has is part of the host's, and no service may count on it."""
    nodes = []
    for node in sorted(folder.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        cpus, memory = (node / "cpulist").read_text().strip(), memory_bytes((node / "meminfo").read_text())
        if cpus or memory:
            nodes.append({"id": int(node.name[4:]), "cpus": cpus, "memory_bytes": memory})
    return nodes


def instruction_set():
    match = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(match.group(1).split()) if match else set()
    return next((name for name, needed in ISA_FLAGS if needed <= flags), "none")


def thread_siblings():
    """Distinct sets of logical CPUs that share a physical core."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return sorted({path.read_text().strip() for path in files})


def gpus():
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [{"id": int(index), "memory_bytes": int(mebibytes) << 20} for index, mebibytes in (line.split(",") for line in lines)]


def storage_free_bytes(folder, models):
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    status = os.statvfs(existing)
    own = sum(
        path.stat().st_blocks * 512
        for model in models
        if (folder / model).is_dir()
        for path in (folder / model).rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    return status.f_bavail * status.f_frsize + own


def address_of(text):
    """Address of /proc/net/tcp or tcp6: 32-bit words in host byte order, in hexadecimal."""
    words = struct.pack(f"<{len(text) // 8}I", *(int(text[start : start + 8], 16) for start in range(0, len(text), 8)))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)


def units_of_sockets():
    """Unit that holds each socket inode, from the cgroup of the process; readable for root only."""
    units = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            groups = (process / "cgroup").read_text()
            inodes = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
        except OSError:
            continue  # it ended while we looked
        found = re.findall(r"/([^/\n]+\.(?:service|socket|scope))(?:/|$)", groups, re.MULTILINE)
        for link in inodes:
            if link.startswith("socket:["):
                units[link[8:-1]] = found[-1] if found else ""
    return units


def listening_ports():
    units = units_of_sockets()
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            fields = line.split()
            if fields[3] == LISTEN:
                address, port = fields[1].split(":")
                found.add((int(port, 16), address_of(address), units.get(fields[9], "")))
    return [{"address": address, "port": port, "unit": unit} for port, address, unit in sorted(found)]


def system():
    release = dict(line.rstrip().split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    version = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=False).stdout.split()
    return {
        "distribution": release.get("ID", "").strip('"'),
        "version": release.get("VERSION_ID", "").strip('"'),
        "name": release.get("PRETTY_NAME", "").strip('"'),
        "architecture": os.uname().machine,
        "systemd_version": int(version[1]) if len(version) > 1 and version[1].isdigit() else 0,
        "systemd_running": Path("/run/systemd/system").is_dir(),
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "models_folder": {"type": "path", "required": True},
            "models": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    module.exit_json(
        changed=False,
        host_facts={
            "memory_bytes": memory_bytes(Path("/proc/meminfo").read_text()),
            "cpus": sorted(os.sched_getaffinity(1)),
            "numa_nodes": numa_nodes(),
            "thread_siblings": thread_siblings(),
            "isa": instruction_set(),
            "gpus": gpus(),
            "storage_free_bytes": storage_free_bytes(Path(module.params["models_folder"]), module.params["models"]),
            "listening_ports": listening_ports(),
        },
        system=system(),
    )


if __name__ == "__main__":
    main()
