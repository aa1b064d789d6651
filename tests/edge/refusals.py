"""What a role says to bad input before it touches a host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from playing import local_play, run_playbook

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
    run = run_playbook(local_play(*tasks, vars={"said": {}}), folder=directory)
    assert run.returncode == 0, run.stdout + run.stderr
    return dict(json.loads(said.read_text(encoding="utf-8")))
