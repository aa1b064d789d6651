"""The program of the virtual machine leaves no process behind and touches none that is not its own; QEMU is booted by scenario `kernel`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rendering import PROJECT

sys.path.append(str(PROJECT / "lab"))

import kernel
from host import LabError, start_time

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"


@pytest.fixture
def machine(tmp_path: Path) -> kernel.Machine:
    found = kernel.Machine(cache=tmp_path)
    found.state.mkdir(parents=True)
    return found


@pytest.fixture
def deaf() -> Iterator[subprocess.Popen[str]]:
    """A process that does not end by SIGTERM."""
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def write_record(machine: kernel.Machine, pid: int, started: int | None) -> None:
    machine.process.write_text(json.dumps({"pid": pid, "start_time": started, "port": 0, "checkout": "here"}))


def test_a_machine_that_does_not_listen_is_ended(
    machine: kernel.Machine, deaf: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "END_SECONDS", 0.5)
    write_record(machine, deaf.pid, start_time(deaf.pid))
    kernel.end(machine)
    assert deaf.wait(timeout=5) == -9
    assert not machine.state.exists()


def test_a_process_that_only_has_its_number_is_left_alone(machine: kernel.Machine, deaf: subprocess.Popen[str]) -> None:
    write_record(machine, deaf.pid, (start_time(deaf.pid) or 0) - 1)
    kernel.end(machine)
    assert deaf.poll() is None
    assert not machine.state.exists()


@pytest.mark.parametrize("left", ["", "{"])
def test_whatever_was_left_is_removed(machine: kernel.Machine, left: str) -> None:
    machine.process.write_text(left)
    kernel.end(machine)
    kernel.end(machine)
    assert not machine.state.exists()


def test_a_machine_that_ends_while_it_boots_says_why(machine: kernel.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host_key.pub").write_text("ssh-ed25519 AAAA")
    monkeypatch.setattr(kernel, "qemu_command", lambda *_: ["/bin/sh", "-c", "echo no such machine >&2; exit 1"])
    monkeypatch.setattr(kernel, "install_packages", lambda _: None)
    monkeypatch.setattr(kernel, "image_folder", lambda _: tmp_path)
    monkeypatch.setattr(kernel, "cache_folder", lambda: tmp_path)
    with pytest.raises(LabError, match="did not boot: no such machine"):
        kernel.create(kernel.argparse.Namespace())
    assert not machine.state.exists()


def test_nothing_leaves_it_and_only_this_machine_enters(machine: kernel.Machine) -> None:
    command = kernel.qemu_command(machine, Path("/image"), 2222)
    networks = [command[place + 1] for place, word in enumerate(command) if word == "-netdev"]
    assert networks == ["user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22"]
