"""What preflight refuses by the inventory alone: no host has been asked for anything yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from citadel_plan import ports
from playing import run_playbook
from rendering import PROJECT

SERVERS = {"llm_servers": ["host-1"], "gateways": ["host-1"], "monitoring": ["host-1"]}


def refused(folder: Path, groups: dict[str, list[str]], **variables: Any) -> str:  # noqa: ANN401  # role variables are of any type
    """Run it for hosts that nobody could reach; what it says."""
    inventory = folder / "inventory"
    inventory.mkdir()
    (inventory / "group_vars").symlink_to(PROJECT / "inventory" / "group_vars")
    entries = {
        name: {"hosts": {host: {"ansible_connection": "local", "ansible_python_interpreter": "/nonexistent"} for host in hosts}}
        for name, hosts in groups.items()
    }
    (inventory / "hosts.json").write_text(json.dumps(entries), encoding="utf-8")
    finished = run_playbook(PROJECT / "playbooks" / "preflight.yml", folder=folder, inventory=inventory, variables=variables)
    assert finished.returncode != 0
    return " ".join((finished.stdout + finished.stderr).split())


@pytest.mark.parametrize("group", ["gateways", "monitoring"])
def test_a_host_without_models_has_no_gateway_and_no_prometheus(tmp_path: Path, group: str) -> None:
    said = refused(tmp_path, SERVERS | {group: ["host-1", "host-2"]})
    assert "gateways and monitoring name host-2, which llm_servers does not" in said


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("edge_exporter_port", ports.EDGE_STATS_PORT),
        ("edge_state_port", ports.EDGE_STATE_PORT),
        ("monitoring_node_exporter_port", ports.NODE_EXPORTER_PORT),
    ],
)
def test_ports_that_the_plan_counts_on_stay(tmp_path: Path, name: str, port: int) -> None:
    assert f"{name} is 9999, but the plan counts on {port}" in refused(tmp_path, SERVERS, **{name: 9999})
