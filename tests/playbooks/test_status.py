"""playbooks/status.yml as an operator runs it, on hosts where nothing is deployed, nothing runs, or nobody answers."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from playing import run_playbook
from ports import free_ports
from rendering import PROJECT
from unit.plan_examples import production_plan

HOSTS = {
    "empty": {"ansible_connection": "local"},
    "dead": {"ansible_connection": "local"},
    # Nobody listens there, and nothing leaves this machine.
    "away": {"ansible_host": "127.0.0.9", "ansible_port": 9},
}


def play(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it as root would on itself; of the three hosts, `dead` has a plan and is the only one with a gateway."""
    plan = production_plan().to_dict()
    ports = iter(free_ports(12))
    for service in plan["services"]:
        service |= {"api_port": next(ports), "state_port": next(ports)}
    plan["gateway"]["port"], plan["monitoring"]["prometheus_port"] = next(ports), next(ports)
    (folder / "dead.json").write_text(json.dumps(plan))
    groups = {"llm_servers": {"hosts": HOSTS}, "gateways": {"hosts": {"dead": None}}, "monitoring": {"hosts": {"dead": None}}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    variables = {
        "ansible_become": False,
        "status_plan_file": f"{folder}/{{{{ inventory_hostname }}}}.json",
        "status_edge_exporter_port": next(ports),
        "status_node_exporter_port": next(ports),
    }
    status = PROJECT / "playbooks" / "status.yml"
    finished = run_playbook(status, *arguments, folder=folder, inventory=folder / "hosts.yml", variables=variables)
    assert "Traceback" not in finished.stdout + finished.stderr
    assert set(re.findall(r"changed=(\d+)", finished.stdout)) == {"0"}
    return finished


def shown(output: str) -> dict[str, list[str]]:
    """What the playbook shows of each host, line by line; a single sentence without the line breaks that Ansible puts into it."""
    blocks = re.findall(r"^ok: \[(\w+)\] => \n    msg: (\|-\n)?((?:.*\n)(?: {8}.*\n)*)", output, re.MULTILINE)
    return {
        host: [line.removeprefix("        ") for line in text.splitlines()] if literal else [" ".join(text.split()).strip("'")]
        for host, literal, text in blocks
    }


@pytest.mark.parametrize("mode", [(), ("--check",)], ids=["run", "check"])
def test_what_is_down_is_shown_and_the_run_succeeds(tmp_path: Path, mode: tuple[str, ...]) -> None:
    finished = play(tmp_path, *mode)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    tables = shown(finished.stdout)
    assert max(map(len, finished.stdout.split("TASK [Show it]")[1].splitlines())) <= 140
    # Which of the two it is, is decided by whether ssh ended before or after Ansible wrote to it.
    reasons = ("connect to host 127.0.0.9 port 9: Connection refused", "its ssh ended before anything could be sent")
    assert tables["away"] in [[f"away cannot be reached: {why}. Next: ssh away"] for why in reasons]
    names = ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "gateway", "edge", "prometheus", "node exporter"]
    table = tables["dead"]
    assert table[1].split()[:2] == ["service", "state"]
    assert [name for name in names if sum(line.startswith(f"{name} ") for line in table) == 1] == names
    assert "Not well (docs/status.md):" in table
    assert set(tables) == {"empty", "dead", "away"}


def test_nothing_deployed_is_one_sentence(tmp_path: Path) -> None:
    finished = play(tmp_path, "--limit", "empty")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    sentence = f"Nothing is deployed on empty: {tmp_path}/empty.json does not exist. Next: ansible-playbook site.yml"
    assert {host: " ".join(map(str.strip, lines)) for host, lines in shown(finished.stdout).items()} == {"empty": sentence}


def test_a_script_gets_it_as_an_exit_status(tmp_path: Path) -> None:
    finished = play(tmp_path, "-e", "status_fail=true")
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert set(shown(finished.stdout)) == {"empty", "dead", "away"}, "all are shown before it fails"
    assert set(re.findall(r"(\w+) is not well: see above", finished.stdout)) == {"empty", "dead", "away"}
