"""The role's reload of HAProxy, which is real; the service manager is a mock that signals it as systemd does."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.backends import LOOPBACK
from edge.haproxy import tool, until
from playing import local_play, place_program, run_playbook
from ports import free_port

FRONTEND = """frontend on_{port}
    mode http
    timeout client 5s
    bind 127.0.0.1:{port}
    http-request return status 200
"""


@pytest.fixture
def master(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a HAProxy that is reloaded by a signal; its files are in the folder of the test."""
    (tmp_path / "haproxy.cfg").write_text(FRONTEND.format(port=free_port()), encoding="utf-8")
    command = [tool("haproxy"), "-W", "-f", str(tmp_path / "haproxy.cfg"), "-p", str(tmp_path / "haproxy.pid")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "haproxy.pid").exists, what="HAProxy runs")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def reload(folder: Path, master: int, seconds: int) -> tuple[bool, str]:
    """Run the role's handlers; whether they succeeded, and what was shown."""
    says = 'case "$1" in reload) kill -USR2 {master};; *) echo "LoadState=loaded\nActiveState=active";; esac\n'
    place_program(folder / "bin" / "systemctl", "#!/bin/sh\n" + says.format(master=master))
    play = local_play(
        {"ansible.builtin.import_role": {"name": "edge", "tasks_from": "limits"}},
        {"ansible.builtin.command": "true", "notify": "Reload HAProxy"},
    )
    variables = {
        "__edge_unread_command": ["find", str(folder / "haproxy.cfg"), "-newer", str(folder / "haproxy.pid")],
        "__edge_reload_seconds": seconds,
    }
    finished = run_playbook(play, folder=folder, variables=variables, path=folder / "bin")
    return finished.returncode == 0, " ".join((finished.stdout + finished.stderr).split())


def test_a_reload_that_haproxy_refuses_is_no_success(tmp_path: Path, master: subprocess.Popen[bytes]) -> None:
    port = free_port()
    with socket.socket() as foreign:
        foreign.bind((LOOPBACK, port))
        foreign.listen()
        with (tmp_path / "haproxy.cfg").open("a", encoding="utf-8") as configuration:
            configuration.write(FRONTEND.format(port=port))
        succeeded, shown = reload(tmp_path, master.pid, seconds=5)
    assert not succeeded
    assert "HAProxy has not taken its new files within 5 s and serves with those of before" in shown
    succeeded, shown = reload(tmp_path, master.pid, seconds=30)
    assert succeeded, shown
    socket.create_connection((LOOPBACK, port), timeout=5).close()
