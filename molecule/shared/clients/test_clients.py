"""Packages that programs use as they come, against the gateway: each client's program says what it has seen, one line of JSON per check.

CITADEL_CLIENTS names some of the cases, with commas between; all are tried without it. What was seen goes to build/clients.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab_host import ADDRESS, CHECKOUT

from runtimes import cached

PROGRAMS = Path(__file__).parent
WITH_A_KEY = " with a key"
FREE, LIMITED = "lab-client", "lab-limited-"


@dataclass(frozen=True)
class Client:
    """A program of this folder and where its packages are: the name of a lock in requirements."""

    program: str
    lock: str
    checks: frozenset[str]

    def command(self) -> tuple[list[str], dict[str, str]]:
        kind = "node" if self.program.endswith(".mjs") else "venv"
        folder = str(cached(kind, self.lock))
        program = str(PROGRAMS / self.program)
        return (["node", program], {"CITADEL_NODE_FOLDER": folder}) if kind == "node" else ([f"{folder}/bin/python", program], {})


ERRORS = frozenset({"401", "404", "400", "too long"})
EVERYWHERE = ERRORS | {"chat", "chat, auto", "stream", "completion", "structured output", "tools"}
OPENAI = EVERYWHERE | {
    "models", "chat, no model", "stream without usage", "stream with the helper", "completion, stream", "embeddings"
}  # fmt: skip
CLIENTS = {
    "openai-python": Client("openai_python.py", "clients", OPENAI | {"completion, auto"}),
    "openai-javascript": Client("openai_javascript.mjs", "clients-javascript", OPENAI | {"chat, model left out"}),
    "langchain": Client("langchain_python.py", "clients", EVERYWHERE | {"embeddings"}),
    "llama-index": Client("llama_index_python.py", "clients-llama-index", EVERYWHERE | {"completion, stream"}),
}
CASES = [name + way for way in ("", WITH_A_KEY) for name in CLIENTS]
CHOSEN = os.environ.get("CITADEL_CLIENTS", ",".join(CASES)).split(",")


def play_keys(*arguments: str) -> None:
    command = [CHECKOUT / ".venv/bin/ansible-playbook", "-i", "inventory", "-i", "lab/inventory", "playbooks/keys.yml", *arguments]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Keys by client, as long as the tests take: one may do what all may, and for each package there is one that may ask once a minute."""
    folder = tmp_path_factory.mktemp("keys")
    limited = [LIMITED + name for name in CLIENTS]
    limits = json.dumps({"edge_client_limits": {name: {"requests_per_minute": 1} for name in limited}})
    added = []
    try:
        for name in (FREE, *limited):
            added.append(name)
            play_keys("-e", f"keys_add={name}", "-e", f"keys_file={folder / name}", "-e", limits)
        yield {name: (folder / name).read_text().strip() for name in added}
    finally:
        for name in added:
            play_keys("-e", f"keys_revoke={name}")


def read(name: str) -> list[dict[str, Any]]:
    path = CHECKOUT / "build/clients.json"
    return [line for line in json.loads(path.read_text()) if line["client"] != name] if path.exists() else []


def write(name: str, seen: list[dict[str, Any]]) -> None:
    lines = read(name) + [{"client": name, **check} for check in seen]
    folder = CHECKOUT / "build"
    folder.mkdir(exist_ok=True)
    (folder / "clients.json").write_text(json.dumps(lines, indent=1))
    rows = [f"| {line['client']} | {line['check']} | {line['good']} | {line['seconds']} | {line['saw'][:120]} |" for line in lines]
    (folder / "clients.md").write_text("\n".join(["| client | check | good | seconds | what it saw |", "|---|---|---|---|---|", *rows, ""]))


@pytest.mark.parametrize("case", CHOSEN)
def test_the_package_works_as_it_comes(request: pytest.FixtureRequest, plan: dict[str, Any], case: str) -> None:
    name, with_a_key, _ = case.partition(WITH_A_KEY)
    client = CLIENTS[name]
    command, environment = client.command()
    if with_a_key:
        keys = request.getfixturevalue("keys")
        environment |= {"CITADEL_CLIENT_KEY": keys[FREE], "CITADEL_LIMITED_KEY": keys[LIMITED + name]}
    # Nothing of what this machine has for OpenAI itself.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI", "LANGCHAIN", "LANGSMITH"))}
    models = ",".join(service["name"] for service in plan["services"])
    url = f"http://{ADDRESS}:{plan['gateway']['port']}/v1"
    ran = subprocess.run([*command, url, models], capture_output=True, text=True, check=False, timeout=300, env=own | environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    write(case, seen)
    assert {check["check"] for check in seen} == client.checks | ({"429"} if with_a_key else set())
    assert [check for check in seen if not check["good"]] == []
