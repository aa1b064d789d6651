"""The project's inventories, as Ansible itself reads them, planned for hosts that are given."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from playing import run_playbook
from rendering import PROJECT

GIB = 2**30
HOST = "hx-llm-server-01"

PRODUCTION_CPU = {
    "memory_bytes": 128 * GIB,
    "cpus": list(range(24)),
    "numa_nodes": [{"id": 0, "cpus": "0-23", "memory_bytes": 128 * GIB}],
    "isa": "amx",
    "gpus": [],
    "storage_free_bytes": 6000 * GIB,
    "listening_ports": [{"address": "0.0.0.0", "port": 22, "unit": "ssh.service"}],
}
PRODUCTION_CUDA = {**PRODUCTION_CPU, "gpus": [{"id": number, "memory_bytes": 80 * GIB} for number in range(2)]}
LAB = {
    "memory_bytes": 23 * GIB,
    "cpus": [0, 1],
    "numa_nodes": [{"id": 0, "cpus": "0-1", "memory_bytes": 23 * GIB}],
    "isa": "avx2",
    "gpus": [],
    "storage_free_bytes": 60 * GIB,
    "listening_ports": [],
}

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "production-cpu": (("inventory",), PRODUCTION_CPU),
    "production-cuda": (("inventory",), PRODUCTION_CUDA),
    "lab": (("inventory", "lab/inventory"), LAB),
}

_QUESTION = """
- hosts: {host}
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact:
        answer:
          plan: >-
            {{{{ citadel_models | citadel_plan(overrides=citadel_model_overrides, host=inventory_hostname,
                 host_facts=citadel_host_facts, settings=citadel_plan_settings) }}}}
          host_environment: "{{{{ host_environment }}}}"
    - ansible.builtin.copy:
        content: "{{{{ answer | to_json }}}}"
        dest: "{destination}"
        mode: "0600"
      delegate_to: localhost
      vars: {{ansible_connection: local, ansible_python_interpreter: "{python}"}}
"""


@cache
def planned(case: str, folder: Path) -> dict[str, Any]:
    """Plan one case with Ansible's own reading of the inventory; nothing is connected to."""
    inventories, facts = CASES[case]
    destination = folder / f"{case}.json"
    playbook = folder / f"{case}.yml"
    # Nothing is connected to, so how the lab would connect is not asked for either: without a lab it refuses to say.
    given = {"citadel_host_facts": facts, "ansible_connection": "local", "ansible_ssh_common_args": ""}
    playbook.write_text(_QUESTION.format(host=HOST, destination=destination, python=sys.executable))
    result = run_playbook(playbook, folder=folder, inventory=[PROJECT / inventory for inventory in inventories], variables=given)
    assert result.returncode == 0, result.stdout + result.stderr
    return dict(json.loads(destination.read_text()))
