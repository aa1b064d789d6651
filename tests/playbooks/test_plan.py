"""playbooks/plan.yml as an operator runs it: without a connection, and what it says of a change."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel_plan import plan_page
from playing import run_playbook
from rendering import PROJECT
from unit.plan_examples import HOST, production_plan

FACTS = PROJECT / "docs" / "examples" / "host-facts.yml"
CHANGE = {"citadel_model_overrides": {"phi-3-mini": {"request": {"cpu_quota_percent": 150}}}}


def play(
    folder: Path, *arguments: str, variables: dict[str, Any] | None = None, playbook: Path = PROJECT / "playbooks" / "plan.yml"
) -> str:
    given = {"plan_report_folder": str(folder / "plan"), **(variables or {})}
    inventory = PROJECT / "inventory"
    finished = run_playbook(playbook, "--extra-vars", f"@{FACTS}", *arguments, folder=folder, inventory=inventory, variables=given)
    assert "Traceback" not in finished.stdout + finished.stderr
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def changes(output: str) -> int:
    return int(re.findall(r"changed=(\d+)", output)[-1])


def said(output: str) -> str:
    """The output as running text: a terminal's line breaks do not matter."""
    return " ".join(output.split())


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("planned")
    return folder, play(folder)


def test_it_needs_no_connection_and_writes_both_files(planned: tuple[Path, str]) -> None:
    folder, output = planned
    assert "gather |" not in output
    written = json.loads((folder / "plan" / f"{HOST}.json").read_text())
    facts = yaml.safe_load(FACTS.read_text())["citadel_host_facts"]
    assert written == production_plan(facts=facts).to_dict()
    assert (folder / "plan" / f"{HOST}.html").read_text() == plan_page(written, facts)
    assert re.search(r"^ +mixtral-8x7b +int8 +90\.0 +90\.0", output, re.MULTILINE)


def test_a_second_run_changes_nothing_and_says_so(planned: tuple[Path, str]) -> None:
    output = play(planned[0], "--diff")
    assert changes(output) == 0
    assert "nothing changes, nothing restarts" in output


def test_a_change_is_told_before_it_is_written(planned: tuple[Path, str]) -> None:
    folder, _ = planned
    before = (folder / "plan" / f"{HOST}.json").read_bytes()
    told = said(play(folder, "--check", "--diff", variables=CHANGE))
    assert f"{HOST}, compared with {folder}/plan/{HOST}.json: goes on phi-3-mini: CPU quota 200 % -> 150 %" in told
    assert "untouched mixtral-8x7b, hermes-2, openchat-3.5, unified-api-gateway" in told
    assert (folder / "plan" / f"{HOST}.json").read_bytes() == before


def test_without_a_plan_to_compare_with_everything_starts(tmp_path: Path) -> None:
    told = said(play(tmp_path, "--diff"))
    assert "starts mixtral-8x7b: is not deployed yet" in told


def test_a_file_that_is_no_plan_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / f"{HOST}.json").write_text("{not json")
    with pytest.raises(AssertionError, match=r"The plan to compare with is not JSON \(.*\): remove the file"):
        play(tmp_path, "--diff")


@pytest.mark.parametrize("deployed", [True, False])
def test_with_a_connection_the_plan_on_the_host_counts(planned: tuple[Path, str], tmp_path: Path, deployed: bool) -> None:
    """The controller stands in for the host: the role's task file is run with a plan and without having been given facts."""
    folder, _ = planned
    playbook = tmp_path / "diff.yml"
    playbook.write_text(
        f"""
- hosts: {HOST}
  gather_facts: false
  vars:
    ansible_connection: local
    ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"
    plan_hosts: [{HOST}]
    __plan_gathered: {{results: [{{__plan_host: {HOST}, host_facts: {{}}}}]}}
  tasks:
    - ansible.builtin.set_fact:
        citadel_plan: "{{{{ lookup('ansible.builtin.file', '{folder}/plan/{HOST}.json') | from_json }}}}"
    - ansible.builtin.import_role: {{name: plan, tasks_from: diff}}
"""
    )
    on_host = tmp_path / "plan.json"
    if deployed:
        before = json.loads((folder / "plan" / f"{HOST}.json").read_text())
        before["services"][1]["context_tokens"] = 4096
        on_host.write_text(json.dumps(before))
    told = said(play(tmp_path, variables={"plan_deployed_file": str(on_host)}, playbook=playbook))
    assert f"{HOST}, compared with {on_host} of the host:" in told
    assert ("restarts hermes-2: context 4096 tokens -> 8192 tokens" if deployed else "starts hermes-2: is not deployed yet") in told
