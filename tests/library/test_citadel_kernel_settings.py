"""Kernel settings as role host sets them, on the real kernel: in namespaces where the network's are the test's and vm is read-only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rendering import PROJECT

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    host_kernel_settings:
      - {name: net.ipv4.ip_local_port_range, value: "{{ ports }}", reason: The plan counts on it.}
      - {name: vm.swappiness, value: "7", reason: Not to be set in a guest.}
      - {name: vm.no_such_setting, value: "7", reason: Not to be set anywhere.}
  tasks:
    - ansible.builtin.import_role:
        name: host
        tasks_from: kernel
"""

# Nothing of it is left, and nothing outside is touched: neither this machine's settings nor its /etc.
NAMESPACES = """
mount -t tmpfs tmpfs /etc/sysctl.d
mount --bind /proc/sys/vm /proc/sys/vm
mount -o remount,bind,ro /proc/sys/vm
"""
RANGE = "cat /proc/sys/net/ipv4/ip_local_port_range"


def run(folder: Path, script: str) -> str:
    """Run a shell script; `play PORTS …` in it runs the role's tasks."""
    (folder / "play.yml").write_text(PLAY, encoding="utf-8")
    playbook = f"{Path(sys.executable).with_name('ansible-playbook')} -i localhost, {folder / 'play.yml'}"
    play = f'play() {{ ports=$1; shift; {playbook} --extra-vars "{{ports: \'$ports\'}}" "$@"; }}'
    environment = os.environ | {"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_LOCAL_TEMP": str(folder), "ANSIBLE_NOCOLOR": "1"}
    command = ["unshare", "--map-root-user", "--net", "--mount", "sh", "-ec", f"{NAMESPACES}\n{play}\n{script}"]
    result = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def changes(text: str) -> list[int]:
    return [int(count) for count in re.findall(r"changed=(\d+)", text)]


def test_set_once_and_again_after_somebody_changed_it(tmp_path: Path) -> None:
    swappiness = Path("/proc/sys/vm/swappiness").read_text(encoding="ascii")
    text = run(
        tmp_path,
        f"""
        echo 10000 60999 > /proc/sys/net/ipv4/ip_local_port_range
        play '32768 60999' --check --diff
        {RANGE}
        play '32768 60999'
        {RANGE}
        play '32768 60999'
        echo 1025 65534 > /proc/sys/net/ipv4/ip_local_port_range
        play '32768 60999' --diff
        {RANGE}
        cat /etc/sysctl.d/90-citadel-llm.conf
        """,
    )
    # The file and the running kernel; only the second of them after somebody changed it.
    assert changes(text) == [2, 2, 0, 1]
    assert re.findall(r"^\d+\t\d+$", text, re.MULTILINE) == ["10000\t60999", "32768\t60999", "32768\t60999"], "a check changes nothing"
    assert text.count("-net.ipv4.ip_local_port_range = 10000 60999\n+net.ipv4.ip_local_port_range = 32768 60999\n") == 1
    assert text.count("-net.ipv4.ip_local_port_range = 1025 65534\n+net.ipv4.ip_local_port_range = 32768 60999\n") == 1
    assert text.endswith(
        "#\n# The plan counts on it.\n#\nnet.ipv4.ip_local_port_range = 32768 60999\n"
        "\n#\n# Not to be set in a guest.\n#\nvm.swappiness = 7\n"
        "\n#\n# Not to be set anywhere.\n#\nvm.no_such_setting = 7\n"
    )
    assert Path("/proc/sys/vm/swappiness").read_text(encoding="ascii") == swappiness


def test_a_value_that_the_kernel_refuses_ends_with_a_sentence(tmp_path: Path) -> None:
    # That it fails is the point: `|| true` is reached by the failure alone.
    text = run(tmp_path, "play '60999 32768' && exit 1 || true")
    assert "The kernel refuses net.ipv4.ip_local_port_range = 60999 32768 (Invalid argument): correct the value." in text


@pytest.mark.parametrize("name", ["citadel_host_condition", "citadel_kernel_settings"])
def test_the_modules_are_documented(name: str) -> None:
    command = [Path(sys.executable).with_name("ansible-doc"), "--type=module", "--json", name]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
