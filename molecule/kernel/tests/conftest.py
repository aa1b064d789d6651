"""What every proof is given: the machine, its units, and the table that it adds its rows to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from machine import BUILD, Unit, connect
from testinfra.host import Host

ROWS = pytest.StashKey[list[dict[str, Any]]]()
COLUMNS = {"directive": "directive", "unit": "unit", "rendered": "rendered", "kernel": "what the kernel did", "without": "without it"}

Record = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def host() -> Host:
    return connect()


@pytest.fixture(scope="session")
def plan() -> dict[str, Any]:
    return dict(json.loads((BUILD / "plan.json").read_text()))


@pytest.fixture(scope="session")
def units(host: Host, plan: dict[str, Any]) -> dict[str, Unit]:
    """Every instance by its name."""
    return {entry["name"]: Unit(host, entry["unit"]) for entry in (*plan["services"], plan["gateway"])}


@pytest.fixture
def started(host: Host, units: dict[str, Unit]) -> Iterator[Callable[..., list[Unit]]]:
    """Start instances by name, and stop them afterwards."""
    running: list[Unit] = []

    def start(*names: str) -> list[Unit]:
        chosen = [units[name] for name in names]
        running.extend(chosen)
        for unit in chosen:
            unit.start()
        return chosen

    yield start
    for unit in running:
        unit.stop()


@pytest.fixture(autouse=True)
def the_rest_lives(host: Host) -> Iterator[None]:
    """Whatever is done to our units, the same sshd and journal go on, and nothing of ours is left when they are stopped."""
    others = "ssh.service systemd-journald.service systemd-networkd.service"
    look = f"cat /proc/sys/kernel/random/boot_id; systemctl show --property=MainPID {others}"
    before = host.check_output(look)
    yield
    assert host.check_output(look) == before
    assert host.run("pgrep --list-full --uid agent0").stdout == ""
    # Without any service there is no slice to look into.
    assert host.check_output("find /sys/fs/cgroup/citadel.slice -name 'citadel-llm@*' 2> /dev/null || true") == ""


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Add a row to the table of what the kernel did."""

    def add(directive: str, unit: Unit, *, kernel: str, without: str = "", rendered: str | None = None) -> None:
        value = unit.limit(directive) if rendered is None else rendered
        row = {"directive": directive, "unit": unit.name, "rendered": value, "kernel": kernel, "without": without}
        request.config.stash[ROWS].append(row)

    return add


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if rows:
        (BUILD / "limits.json").write_text(json.dumps(rows, indent=2) + "\n")
        (BUILD / "limits.md").write_text(table(rows) + "\n")
        terminalreporter.section(f"what the kernel enforces ({BUILD / 'limits.json'})")
        terminalreporter.line(table(rows))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failed proof brings the machine's journal."""
    report = yield
    if report.when == "call" and report.failed:
        report.sections.append(("journal", connect().run("journalctl --no-pager --lines=60 --output=short").stdout))
    return report
