"""The virtual machine: its units as rendered, its mocks asked to misbehave, what its kernel did about it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import testinfra
from testinfra.host import Host

CHECKOUT = Path(__file__).resolve().parents[3]
BUILD = CHECKOUT / "build/kernel"
NAME = "citadel-kernel"
MOCK = "/opt/citadel/libexec/mock_allocator.py"
# Generous: the emulated processors take their time, more so beside other work.
WAIT_SECONDS = 300

Found = TypeVar("Found")


def connect() -> Host:
    cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ['HOME']}/.cache"
    config = Path(cache) / "citadel-llm/kernel/machine/ssh_config"
    if not config.exists():
        pytest.exit("the virtual machine is not up: .venv/bin/molecule test --scenario-name kernel", returncode=1)
    return testinfra.get_host(f"ssh://{NAME}", ssh_config=str(config), timeout=30)


def wait_for(what: str, look: Callable[[], Found]) -> Found:
    """The first answer that counts as true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_SECONDS} s"
        time.sleep(0.2)
    return found


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit of the project on the virtual machine."""

    host: Host
    name: str

    @property
    def instance(self) -> str:
        return self.name.removeprefix("citadel-llm@").removesuffix(".service")

    def rendered(self, directive: str) -> list[str]:
        """Values as the project's files have them, in order; what a mock or a test adds does not count."""
        text = self.host.check_output("systemctl cat %s", self.name)
        parts = re.split(r"^# (/\S+)$", text, flags=re.MULTILINE)[1:]
        return [
            value
            for path, part in zip(parts[::2], parts[1::2], strict=True)
            if "mock" not in path
            for value in re.findall(rf"^{directive}=(.*)$", part, re.MULTILINE)
        ]

    def limit(self, directive: str) -> str:
        """The value that counts where a directive is one value: the last."""
        values = self.rendered(directive)
        assert values, f"{self.name} renders no {directive}"
        return values[-1]

    def show(self, name: str) -> str:
        return self.host.check_output("systemctl show --property=%s --value %s", name, self.name)

    @property
    def cgroup(self) -> str:
        return self.show("ControlGroup")

    def kernel(self, file: str) -> str:
        """A file of the unit's cgroup."""
        return self.host.check_output("cat %s", f"/sys/fs/cgroup{self.cgroup}/{file}")

    def counts(self, file: str) -> dict[str, int]:
        return {name: int(value) for name, value in (line.split() for line in self.kernel(file).splitlines())}

    def processes(self) -> set[int]:
        return {int(line) for line in self.kernel("cgroup.procs").split()}

    def start(self) -> None:
        self.host.check_output("systemctl reset-failed %s 2> /dev/null; systemctl start %s", self.name, self.name)

    def stop(self) -> None:
        self.host.check_output("systemctl stop %s", self.name)

    def ask(self, role: str, *words: object) -> Any:
        """Have one of the mock's two processes do something; None where it ended over it."""
        command = f"python3 -I {MOCK} ask /run/citadel-llm/{self.instance}/{role}.sock {' '.join(map(str, words))}"
        return json.loads(self.host.check_output(command))

    def failure(self, since: str) -> str:
        """How systemd says that the unit failed, once it does."""

        def look() -> str | None:
            journal = self.host.check_output("journalctl --no-pager --after-cursor=%s -u %s", since, self.name)
            found = re.search(r"Failed with result '(\S+)'\.", journal)
            return found[1] if found else None

        return str(wait_for(f"failure of {self.name}", look))


def slice_of(host: Host) -> Unit:
    return Unit(host, "citadel-llm.slice")


def cursor(host: Host) -> str:
    """Where the journal is now."""
    return host.check_output("journalctl --lines=0 --show-cursor | sed -n 's/^-- cursor: //p'")


@contextlib.contextmanager
def with_mock_setting(unit: Unit, *lines: str) -> Iterator[None]:
    """Another value of a directive while the test runs: to see what the kernel does without the one that is rendered."""
    folder = f"/run/systemd/system/{unit.name}.d"
    section = "[Slice]" if unit.name.endswith(".slice") else "[Service]"
    text = "\n".join((section, *lines, ""))
    unit.host.check_output(f"mkdir -p {folder} && printf %s {shlex.quote(text)} > {folder}/99-mock-setting.conf && systemctl daemon-reload")
    try:
        yield
    finally:
        unit.host.check_output(f"rm -r {folder} && systemctl daemon-reload")


def out_of_memory_kills(host: Host, since: str) -> list[dict[str, str]]:
    """What the kernel says of the processes that it killed for memory: the cgroup over its limit, the cgroup of the process."""
    text = host.check_output("journalctl --no-pager --dmesg --output=cat --after-cursor=%s", since)
    return [
        dict(field.split("=", 1) for field in line.removeprefix("oom-kill:").split(",") if "=" in field)
        for line in text.splitlines()
        if line.startswith("oom-kill:")
    ]


def alive(host: Host, *pids: int) -> set[int]:
    return {pid for pid in pids if host.file(f"/proc/{pid}").exists}


def cpu_percent(host: Host, seconds: int, *units: Unit) -> list[float]:
    """Percent of one CPU that each unit uses, measured over the same seconds."""
    files = " ".join(f"/sys/fs/cgroup{unit.cgroup}/cpu.stat" for unit in units)
    look = f"date +%s%N; awk '/^usage_usec/ {{print $2}}' {files}"
    numbers = [int(line) for line in host.check_output(f"{look}; sleep {seconds}; {look}").split()]
    before, after = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
    nanoseconds = after[0] - before[0]
    return [(late - early) * 1000 * 100 / nanoseconds for early, late in zip(before[1:], after[1:], strict=True)]
