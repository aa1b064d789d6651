"""The lab host, asked as a client would, logged in to, and deployed to. Sends nothing where it is not up."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from testinfra.host import Host

CHECKOUT = Path(__file__).resolve().parents[2]
HOST = "hx-llm-server-01"
ADDRESS = "192.168.10.29"

Change = dict[str, dict[str, dict[str, object]]]


def stop_where_no_lab_is_up() -> None:
    guard = subprocess.run([CHECKOUT / "lab/host.py", "guard", HOST], capture_output=True, text=True, check=False)
    if guard.returncode != 0:
        pytest.exit(guard.stderr.strip(), returncode=1)


def connect(name: str = HOST) -> Host:
    cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ['HOME']}/.cache"
    return testinfra.get_host(f"ssh://{name}", ssh_config=f"{cache}/citadel-llm/lab/ssh_config")


def read_plan(host: Host) -> dict[str, Any]:
    plan = host.file("/opt/citadel/config/plan.json")
    if not plan.exists:
        pytest.exit(f"nothing is deployed on the lab host {HOST}: make demo", returncode=1)
    return dict(json.loads(plan.content_string))


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: dict[str, str]

    def json(self) -> Any:
        return json.loads(self.text)


def ask(port: int, path: str, body: dict[str, Any] | None = None, *, timeout: float = 60) -> Answer:
    """What a client on the lab's network gets."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{ADDRESS}:{port}{path}", data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return Answer(response.status, response.read().decode(), dict(response.headers))
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(), dict(error.headers))


def health(gateway_port: int) -> dict[str, str]:
    """What the edge says of each model; empty where it does not answer."""
    try:
        return dict(ask(gateway_port, "/health", timeout=10).json()["models"])
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return {}


def until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Wait until the condition holds; the seconds that it took, None where it never did."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(0.2)
    return time.monotonic() - began


def play(*arguments: str, change: Change | None = None, inventory: str = "inventory") -> subprocess.CompletedProcess[str]:
    """Run site.yml on the lab host. ``change`` holds by model other values of its entry, as an operator would edit them."""
    command = [CHECKOUT / ".venv/bin/ansible-playbook", "-i", inventory, "-i", "lab/inventory", "site.yml", *arguments]
    if change:
        overrides = yaml.safe_load((CHECKOUT / "lab/inventory/group_vars/all/lab.yml").read_text())["citadel_model_overrides"]
        for model, entry in change.items():
            for section, values in entry.items():
                overrides[model][section] = overrides[model].get(section, {}) | values
        command += ["--extra-vars", json.dumps({"citadel_model_overrides": overrides})]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def deploy(*arguments: str, change: Change | None = None) -> dict[str, int]:
    """Run site.yml to its end; the recap's counts of the lab host."""
    result = play(*arguments, change=change)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    recap = re.findall(rf"^{HOST}\s+: (.*)$", result.stdout, re.MULTILINE)[-1]
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap)}
