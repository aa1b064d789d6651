"""The five units: running, limited as planned, alone with what is theirs."""

from __future__ import annotations

import json
from typing import Any

import cgroups
import pytest
from testinfra.host import Host


def test_unit_runs_and_starts_with_the_host(server: Host, unit: dict[str, Any]) -> None:
    assert server.service(unit["unit"]).is_running
    assert server.service(unit["unit"]).is_enabled


def test_status_of_all_shows_five(server: Host, plan: dict[str, Any]) -> None:
    status = server.check_output("systemctl status 'citadel-llm@*.service' --no-pager --lines=0")
    assert status.count("Active: active (running)") == len(plan["services"]) + 1 == 5


@pytest.mark.parametrize("name", ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "unified-api-gateway"])
def test_start_as_specified(server: Host, name: str) -> None:
    assert server.run(f"sudo systemctl start citadel-llm@{name}.service").rc == 0


def test_status_as_specified(server: Host) -> None:
    assert server.check_output("sudo systemctl status citadel-llm@*.service").count("Active: active (running)") == 5


def test_logs_as_specified(server: Host) -> None:
    followed = server.run("timeout 3 sudo journalctl -u citadel-llm@*.service -f")
    assert followed.rc == 124, "it follows until it is ended"
    assert len(followed.stdout.splitlines()) >= 10


def test_user(server: Host, unit: dict[str, Any], plan: dict[str, Any]) -> None:
    expected = "citadel-gateway" if unit["name"] == plan["gateway"]["name"] else "agent0"
    users = server.check_output("ps -o user:32= -p %s", ",".join(map(str, cgroups.process_ids(server, unit["unit"]))))
    assert set(users.split()) == {expected}


def test_memory_limit(server: Host, unit: dict[str, Any]) -> None:
    assert cgroups.memory_limit_bytes(server, unit["unit"]) == unit["memory_max_bytes"]


def test_tasks_limit(server: Host, unit: dict[str, Any]) -> None:
    assert cgroups.tasks_limit(server, unit["unit"]) == unit["tasks_max"]


def test_cpu_quota(server: Host, unit: dict[str, Any]) -> None:
    assert cgroups.cpu_quota_percent(server, unit["unit"]) == unit["cpu_quota_percent"]


def test_slice_holds_all_of_them(server: Host, plan: dict[str, Any]) -> None:
    assert cgroups.memory_limit_bytes(server, "citadel-llm.slice") == plan["slice"]["memory_max_bytes"]


def test_environment_file(server: Host, service: dict[str, Any]) -> None:
    lines = server.file(f"/opt/citadel/config/services/{service['name']}.env").content_string.splitlines()
    assert f"CITADEL_PORT={service['api_port']}" in lines
    assert f"CITADEL_CONTEXT_TOKENS={service['context_tokens']}" in lines


def test_process_id_file(server: Host, unit: dict[str, Any]) -> None:
    pid = server.check_output("systemctl show --property=MainPID --value %s", unit["unit"])
    assert server.file(f"/var/run/citadel-llm/{unit['name']}.pid").content_string.strip() == pid


def test_state_is_told_on_loopback(server: Host, service: dict[str, Any]) -> None:
    answer = server.run("curl --silent --fail --max-time 5 http://127.0.0.1:%s/state", str(service["state_port"]))
    assert answer.rc == 0
    assert json.loads(answer.stdout)["state"] == "generating"


def test_status_says_what_the_service_does(server: Host, unit: dict[str, Any], plan: dict[str, Any]) -> None:
    text = server.check_output("systemctl show --property=StatusText --value %s", unit["unit"])
    assert text.startswith("answering since " if unit["name"] == plan["gateway"]["name"] else "generating since ")


def test_log_file_grows_beside_the_journal(server: Host, service: dict[str, Any]) -> None:
    log = server.file(f"/var/log/citadel-llm/{service['name']}/{service['name']}.log").content_string
    assert "Application startup complete" in log
    assert "Application startup complete" in server.check_output("journalctl --no-pager -u %s", service["unit"])


def test_only_its_own_weights_are_visible(server: Host, service: dict[str, Any]) -> None:
    pid = server.check_output("systemctl show --property=MainPID --value %s", service["unit"])
    assert server.check_output("ls /proc/%s/root/opt/models", pid) == service["name"]


def test_listens_on_loopback_alone(server: Host, unit: dict[str, Any]) -> None:
    port = unit.get("api_port", unit.get("port"))
    # Beside it only the edge has this port, on the server's own address.
    sockets = server.check_output("ss -Hltnp sport = :%s", str(port)).splitlines()
    assert {line.split()[3] for line in sockets if "haproxy" not in line} == {f"127.0.0.1:{port}"}
