"""The filters under a real ansible-playbook, with the inventory as committed: lazy containers, tagged strings and all."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel_plan import (
    diff_plans,
    diff_sentences,
    list_latency_objectives,
    list_metrics_targets,
    list_node_targets,
    list_upstreams,
    plan_page,
    plan_table,
)
from playing import run_playbook
from unit.plan_examples import HOST, PROJECT, host_facts, production_plan

PLAY = """
- name: Plan without a connection
  hosts: hx-llm-server-01
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    everybody: "{{ {inventory_hostname: {'plan': planned, 'address': ansible_host}} }}"
    results:
      plan: "{{ planned }}"
      table: "{{ planned | citadel_plan_table }}"
      upstreams: "{{ everybody | citadel_upstreams(host=inventory_hostname) }}"
      targets: "{{ everybody | citadel_metrics_targets }}"
      nodes: "{{ everybody | citadel_node_targets(host=inventory_hostname) }}"
      objectives: "{{ everybody | citadel_latency_objectives }}"
      unchanged: "{{ planned | citadel_plan_diff(planned) }}"
      from_text: "{{ planned | to_json | citadel_plan_diff(planned) }}"
      fresh: "{{ '' | citadel_plan_diff(planned) }}"
      sentences: "{{ {} | citadel_plan_diff(planned) | citadel_plan_diff_sentences }}"
      page: "{{ planned | citadel_plan_page(host_facts=citadel_host_facts) }}"
  tasks:
    - name: Plan
      ansible.builtin.set_fact:
        planned: >-
          {{ citadel_models | citadel_plan(overrides=citadel_model_overrides, host=inventory_hostname,
                                           host_facts=citadel_host_facts, settings=citadel_plan_settings) }}
    - name: Write what came out
      ansible.builtin.copy:
        content: "{{ results | to_json }}"
        dest: "{{ destination }}"
        mode: "0600"
"""


def run(folder: Path, variables: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (folder / "play.yml").write_text(PLAY, encoding="utf-8")
    variables = {"citadel_host_facts": host_facts(), "destination": str(folder / "results.json"), **variables}
    return run_playbook(folder / "play.yml", folder=folder, inventory=PROJECT / "inventory", variables=variables)


def test_the_committed_inventory_gives_the_same_plan_through_ansible(tmp_path: Path) -> None:
    finished = run(tmp_path, {})
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "WARNING" not in finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    expected = production_plan().to_dict()
    everybody = {HOST: {"plan": expected, "address": "192.168.10.29"}}
    assert results["plan"] == expected
    assert results["table"] == plan_table(expected)
    assert results["upstreams"] == list_upstreams(everybody, host=HOST)
    assert results["targets"] == list_metrics_targets(everybody)
    assert results["nodes"] == list_node_targets(everybody, host=HOST)
    assert results["objectives"] == list_latency_objectives(everybody)
    assert results["unchanged"] == diff_plans(expected, expected)
    assert results["from_text"] == results["unchanged"]
    assert results["fresh"] == diff_plans(None, expected)
    assert results["sentences"] == diff_sentences(diff_plans({}, expected))
    assert results["page"] == plan_page(expected, host_facts())


def test_a_refusal_reaches_the_operator_as_sentences(tmp_path: Path) -> None:
    # A variable that an operator sets on the command line arrives as text.
    overrides = {"hermes-2": {"request": {"memroy": "20GiB"}}}
    finished = run(tmp_path, {"citadel_model_overrides": overrides, "citadel_memory_reserve": "6GB"})
    output = " ".join((finished.stdout + finished.stderr).split())
    assert finished.returncode != 0
    assert "No plan for hx-llm-server-01: 2 problems." in output
    assert 'citadel_model_overrides.hermes-2.request.memroy is not a key that is known here (did you mean "memory"?).' in output
    assert 'citadel_plan_settings.memory_reserve is "6GB", which has the unit "GB"' in output
    assert "Traceback" not in output
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("path", sorted((PROJECT / "filter_plugins").glob("*.yml")), ids=lambda path: path.stem)
def test_each_filter_is_documented_beside_the_code(path: Path) -> None:
    name, documentation = path.stem, yaml.safe_load(path.read_text(encoding="utf-8"))
    assert documentation["DOCUMENTATION"]["name"] == name
    assert documentation["EXAMPLES"]
    assert documentation["RETURN"]["_value"]["type"] in {"dict", "list", "str"}


def test_every_filter_has_documentation() -> None:
    adapters = (PROJECT / "filter_plugins").glob("*.py")
    documented = {path.stem for path in (PROJECT / "filter_plugins").glob("*.yml")}
    assert {name for path in adapters for name in re.findall(r'"(citadel_\w+)": citadel_', path.read_text(encoding="utf-8"))} == documented
