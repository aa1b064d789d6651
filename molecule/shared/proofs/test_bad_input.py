"""Bad input stops site.yml with a sentence that names what is wrong, before anything on the host has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab_host import CHECKOUT, Change, play
from testinfra.host import Host

Arguments = Callable[[Path], list[str]]


def variables(**values: object) -> Arguments:
    return lambda _: ["--extra-vars", json.dumps(values)]


def without_line(file: str, start: str) -> Callable[[Path], str]:
    """A copy of the production inventory without one line, as if somebody had lost it."""

    def inventory(folder: Path) -> str:
        copy = shutil.copytree(CHECKOUT / "inventory", folder / "inventory")
        path = copy / "group_vars/all" / file
        path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(start)))
        return str(copy)

    return inventory


def models_without(*patterns: str) -> Arguments:
    """The lab's models, where hermes-2 lacks some files."""

    def arguments(folder: Path) -> list[str]:
        models = shutil.copytree(CHECKOUT / "build/lab/models", folder / "models")
        for pattern in patterns:
            for path in (models / "hermes-2").glob(pattern):
                path.unlink()
        return ["--extra-vars", json.dumps({"lab_models_folder": str(models)})]

    return arguments


@dataclass(frozen=True)
class Case:
    """What is wrong, and words of the sentence that says so."""

    words: tuple[str, ...]
    arguments: Arguments = lambda _: []
    change: Change | None = None
    inventory: Callable[[Path], str] = lambda _: "inventory"


CASES = {
    "misspelt variable": Case(("citadel_plan_polcy", "citadel_plan_policy"), variables(citadel_plan_polcy="strict")),
    "missing variable": Case(("citadel_device", "plan.yml"), inventory=without_line("plan.yml", "citadel_device:")),
    "port twice": Case(("hermes-2", "mixtral-8x7b", "11400"), change={"hermes-2": {"request": {"port": 11400}}}),
    "memory beyond the host": Case(("mixtral-8x7b", "90.0 GiB"), change={"mixtral-8x7b": {"request": {"memory": "90GiB"}}}),
    "limits for a model that nobody serves": Case(
        ("edge_client_limits names gpt-4", "phi-3-mini"), variables(edge_client_limits={"web-shop": {"models": ["phi-3-mini", "gpt-4"]}})
    ),
    "folder without config.json": Case(("hermes-2", "config.json"), models_without("config.json")),
    "folder without weights": Case(("hermes-2", "weights"), models_without("*.safetensors")),
    "host that cannot be reached": Case(
        ("hx-llm-server-01 cannot be reached", "192.168.10.30", "inventory"), variables(ansible_host="192.168.10.30")
    ),
}


def fingerprint(server: Host) -> str:
    """Every file of ours with its time, and the run of every unit."""
    files = server.check_output("find /opt /etc /usr/lib/systemd /var/lib/haproxy -xdev -type f -printf '%p %T@ %m\\n' | sort | sha256sum")
    runs = server.check_output("systemctl show --property=InvocationID --value 'citadel-llm@*' haproxy prometheus")
    return files + runs


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused_with_a_sentence(server: Host, tmp_path: Path, case: Case) -> None:
    before = fingerprint(server)
    result = play(*case.arguments(tmp_path), change=case.change, inventory=case.inventory(tmp_path))
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
    said = " ".join((result.stdout + result.stderr).split())
    assert [word for word in case.words if word not in said] == []
    assert fingerprint(server) == before
