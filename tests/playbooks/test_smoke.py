"""playbooks/smoke.yml where nothing is deployed yet: in check mode it asks for nothing that the run would have brought."""

from __future__ import annotations

from pathlib import Path

from playing import run_playbook
from ports import free_port
from rendering import PROJECT

SMOKE = PROJECT / "playbooks" / "smoke.yml"


def test_check_mode_asks_nothing_of_a_host_that_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("gateways: {hosts: {localhost: {ansible_connection: local}}}")
    variables = {
        "ansible_become": False,
        "citadel_server_address": "127.0.0.1",
        "edge_tls": "none",
        "citadel_plan": {"gateway": {"port": free_port(), "unit": "citadel-llm@unified-api-gateway.service"}},
    }
    finished = run_playbook(SMOKE, "--check", folder=tmp_path, inventory=tmp_path / "hosts.yml", variables=variables)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "ok=0" in finished.stdout
