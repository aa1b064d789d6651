"""The lab host, and a way to deploy to it with something changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import testinfra
import yaml
from testinfra.host import Host

CHECKOUT = Path(__file__).resolve().parents[3]
HOST = "hx-llm-server-01"
sys.path.insert(0, str(CHECKOUT / "molecule/shared/tests"))

Deploy = Callable[..., dict[str, int]]


def deploy(*arguments: str, change: dict[str, dict[str, object]] | None = None) -> dict[str, int]:
    """Run site.yml on the lab host; the recap's counts. ``change`` holds other requests by model, as an operator would edit them."""
    command = [CHECKOUT / ".venv/bin/ansible-playbook", "-i", "inventory", "-i", "lab/inventory", "site.yml", *arguments]
    if change:
        overrides = yaml.safe_load((CHECKOUT / "lab/inventory/group_vars/all/lab.yml").read_text())["citadel_model_overrides"]
        for model, request in change.items():
            overrides[model]["request"] |= request
        command += ["--extra-vars", json.dumps({"citadel_model_overrides": overrides})]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    recap = re.findall(rf"^{HOST}\s+: (.*)$", result.stdout, re.MULTILINE)[-1]
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap)}


@pytest.fixture(scope="session")
def server() -> Host:
    guard = subprocess.run([CHECKOUT / "lab/host.py", "guard", HOST], capture_output=True, text=True, check=False)
    if guard.returncode != 0:
        pytest.exit(guard.stderr.strip(), returncode=1)
    cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ['HOME']}/.cache"
    return testinfra.get_host(f"ssh://{HOST}", ssh_config=f"{cache}/citadel-llm/lab/ssh_config")


@pytest.fixture
def deployed(server: Host) -> Iterator[Deploy]:
    """Deploy with a change; afterwards the platform is as it was."""
    assert server.file("/opt/citadel/config/plan.json").exists, "deploy first: make demo"
    yield deploy
    deploy()
