"""What a role says to bad input before it touches a host."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from rendering import PROJECT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def refusals(role: str, cases: Mapping[str, Mapping[str, Any]], directory: Path) -> dict[str, str]:
    """Run the role's tasks/validate.yml with the variables of each case; return the sentences of those that were refused.

    One run for all, connecting to no host; `directory` holds what it needs.
    """
    tasks: list[dict[str, Any]] = [
        {
            "block": [{"name": "Check", "ansible.builtin.include_role": {"name": role, "tasks_from": "validate"}, "vars": dict(variables)}],
            "rescue": [
                {
                    "name": "Keep the refusal",
                    "ansible.builtin.set_fact": {"said": "{{ said | combine({case: ansible_failed_result.msg}) }}"},
                    "vars": {"case": case},
                }
            ],
        }
        for case, variables in cases.items()
    ]
    said = directory / "said.json"
    tasks.append({"name": "Write down", "ansible.builtin.copy": {"content": "{{ said | to_json }}", "dest": str(said), "mode": "0600"}})
    play = {
        "name": "Refuse",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"said": {}, "ansible_python_interpreter": sys.executable},
        "tasks": tasks,
    }
    playbook = directory / "playbook.yml"
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    command = [sys.executable, "-m", "ansible", "playbook", "--inventory", "localhost,", str(playbook)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return dict(json.loads(said.read_text(encoding="utf-8")))
