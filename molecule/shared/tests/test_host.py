"""User, folders and environment as the specification names them."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host


def test_init_is_systemd(server: Host) -> None:
    assert server.file("/proc/1/comm").content_string.strip() == "systemd"
    assert server.check_output("systemctl --failed --no-legend --plain") == ""


def test_user_cannot_log_in(server: Host) -> None:
    user = server.user("agent0")
    assert user.group == "agent0"
    assert user.shell == "/usr/sbin/nologin"


def test_global_environment(server: Host) -> None:
    lines = server.file("/opt/citadel/.env").content_string.splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "CITADEL_ENV=development",
        "SERVER_IP=192.168.10.29",
        "SERVER_HOSTNAME=hx-llm-server-01",
        "VLLM_SERVICE_TEMPLATE_PATH=/opt/citadel/config/services",
        "VLLM_LOG_PATH=/var/log/citadel-llm",
        "VLLM_PID_PATH=/var/run/citadel-llm",
        "VLLM_USER=agent0",
        "VLLM_GROUP=agent0",
    ]


def test_weights_belong_to_root(server: Host, service: dict[str, Any]) -> None:
    folder = server.file(f"/opt/models/{service['name']}")
    assert (folder.user, folder.mode) == ("root", 0o755)
    assert server.check_output("find /opt/models/%s -not -user root -or -perm /022", service["name"]) == ""


def test_secrets_are_readable_by_root_alone(server: Host) -> None:
    assert server.file("/opt/citadel/secrets").mode == 0o700
    assert server.check_output("find /opt/citadel/secrets -type f -perm /077") == ""
    assert server.check_output("find /opt/citadel/secrets -type f") != ""


@pytest.mark.parametrize(
    "place", ["/proc/[0-9]*/cmdline", "/opt/citadel/config", "/etc/haproxy", "/etc/systemd/system", "/var/log/citadel-llm"]
)
def test_the_master_key_is_nowhere_else(server: Host, place: str) -> None:
    found = server.run(f"cut -d' ' -f2 /opt/citadel/secrets/gateway.key | grep -rslF -f - {place}")
    assert found.stdout == ""
