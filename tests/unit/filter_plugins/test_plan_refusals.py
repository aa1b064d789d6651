"""Bad inventories as an operator meets them: through Ansible's own templating, and through the playbook that plans."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from playing import run_playbook
from unit.citadel_plan.test_plan_bad_input import CASES
from unit.plan_examples import HOST, PROJECT, host_facts, refusal_of

PLAY = """
- name: Plan bad inventories without a connection
  hosts: hx-llm-server-01
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - name: Plan each
      ansible.builtin.set_fact:
        planned: >-
          {{ citadel_models | citadel_plan(overrides=item.overrides, host=inventory_hostname, host_facts=item.facts,
                                           settings=citadel_plan_settings | combine(item.settings, recursive=True)) }}
      loop: "{{ cases }}"
      loop_control:
        label: ""
      ignore_errors: true  # the refusals are what is looked at
      register: outcomes

    - name: Write what came out
      ansible.builtin.copy:
        content: "{{ {'messages': outcomes.results | map(attribute='msg', default=''), 'planned': planned is defined} | to_json }}"
        dest: "{{ destination }}"
        mode: "0600"
"""


def playbook(folder: Path, file: Path, variables: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return run_playbook(file, folder=folder, inventory=PROJECT / "inventory", variables=variables)


def as_case(arguments: dict[str, Any]) -> dict[str, Any]:
    changes = {key: value for key, value in arguments.items() if key not in {"facts", "overrides"}}
    return {"overrides": arguments.get("overrides", {}), "facts": arguments.get("facts", host_facts()), "settings": changes}


def test_every_bad_inventory_gives_its_sentence_through_ansible(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY, encoding="utf-8")
    destination = tmp_path / "results.json"
    variables = {"cases": [as_case(arguments) for arguments, _ in CASES], "destination": str(destination)}
    finished = playbook(tmp_path, tmp_path / "play.yml", variables)
    output = finished.stdout + finished.stderr
    assert "Traceback" not in output
    assert destination.exists(), output
    results = json.loads(destination.read_text(encoding="utf-8"))
    assert results["planned"] is False
    assert len(results["messages"]) == len(CASES) >= 30
    for message, (_, sentence) in zip(results["messages"], CASES, strict=True):
        assert f"No plan for {HOST}: 1 problem.\n  - {sentence}" in message


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"citadel_memory_reserve": "6GB"}, 'citadel_plan_settings.memory_reserve is "6GB", which has the unit "GB"'),
        (
            {"citadel_model_overrides": {"hermes-2": {"request": {"memroy": "20GiB"}}}},
            'citadel_model_overrides.hermes-2.request.memroy is not a key that is known here (did you mean "memory"?).',
        ),
        ({"citadel_host_facts": {**host_facts(), "cpus": []}}, "citadel_host_facts.cpus is [], which holds no CPU"),
        (
            {"citadel_host_facts": host_facts(memory_gib=100)},
            "less memory for mixtral-8x7b: set citadel_model_overrides.mixtral-8x7b.request.memory: 65GiB",
        ),
    ],
    ids=["unit", "misspelt", "facts", "refused"],
)
def test_the_playbook_ends_with_the_sentence(variables: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    finished = playbook(tmp_path, PROJECT / "playbooks" / "plan.yml", {"citadel_host_facts": host_facts(), **variables})
    output = finished.stdout + finished.stderr
    assert finished.returncode != 0
    assert sentence in " ".join(output.split())
    assert "Traceback" not in output


def test_the_message_of_the_playbook_is_that_of_the_planner(tmp_path: Path) -> None:
    facts = host_facts(memory_gib=64, nodes=2)
    finished = playbook(tmp_path, PROJECT / "playbooks" / "plan.yml", {"citadel_host_facts": facts})
    shown = " ".join((finished.stdout + finished.stderr).split())
    assert " ".join(str(refusal_of(facts=facts)).split()) in shown
