"""Files that Prometheus and Alertmanager have not read, as the role finds them: both are real, the service manager is a mock."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edge.haproxy import until
from monitoring.programs import running
from playing import local_play, place_program, run_playbook
from ports import free_ports

ALERTMANAGER = "{route: {receiver: nobody}, receivers: [{name: nobody}]}"
RULES = "groups: []"


def reloads(folder: Path, ports: list[int]) -> list[str]:
    """Run the role's tasks; the units that they would have reloaded."""
    asked = folder / "systemctl.asked"
    asked.write_text("", encoding="utf-8")
    place_program(folder / "bin" / "systemctl", f'#!/bin/sh\necho "$*" >> {asked}\necho "LoadState=loaded\nActiveState=active"\n')
    variables = {
        "__monitoring_prometheus_file": str(folder / "prometheus.yml"),
        "monitoring_configuration_directory": str(folder),
        "monitoring_prometheus_port": ports[0],
        "monitoring_alertmanager_port": ports[1],
    }
    play = local_play({"ansible.builtin.import_role": {"name": "monitoring", "tasks_from": "unread"}})
    finished = run_playbook(play, folder=folder, variables=variables, path=folder / "bin")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return re.findall(r"^reload (\S+)", asked.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[tuple[list[int], subprocess.Popen[bytes]]]:
    """Run both with their files in the folder of the test; their ports, and the process of Prometheus."""
    (tmp_path / "prometheus.yml").write_text(f"rule_files: ['{tmp_path}/rules-*.yml']", encoding="utf-8")
    (tmp_path / "alertmanager.yml").write_text(ALERTMANAGER, encoding="utf-8")
    for name in ("recording", "alerts"):
        (tmp_path / f"rules-{name}.yml").write_text(RULES, encoding="utf-8")
    ports = free_ports(2)
    with ExitStack() as stack:
        words = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        prometheus = stack.enter_context(running(tmp_path, "prometheus", ports[0], *words))
        words = [f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/told", "--cluster.listen-address="]
        stack.enter_context(running(tmp_path, "prometheus-alertmanager", ports[1], *words))
        yield ports, prometheus


def test_what_a_run_has_left_unread_is_found_by_the_next(tmp_path: Path, programs: tuple[list[int], subprocess.Popen[bytes]]) -> None:
    ports, prometheus = programs
    assert reloads(tmp_path, ports) == []
    (tmp_path / "rules-alerts.yml").write_text(f"{RULES}\n# changed", encoding="utf-8")
    assert reloads(tmp_path, ports) == ["prometheus.service"]
    assert reloads(tmp_path, ports) == ["prometheus.service"], "and by the one after that, as long as it has not been read"
    os.kill(prometheus.pid, signal.SIGHUP)
    (tmp_path / "alertmanager.yml").write_text(f"{ALERTMANAGER} # changed", encoding="utf-8")
    log = tmp_path / "prometheus.log"
    until(lambda: log.read_text(encoding="utf-8").count("Completed loading of configuration file") == 2, what="Prometheus has read it")
    assert reloads(tmp_path, ports) == ["prometheus-alertmanager.service"]
