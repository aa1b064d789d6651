"""The lab host as the tests see it: its plan, a way to run commands on it, a way to ask it as a client would.

Nothing is sent where the lab host is not up: the guard stops the whole run first. Everything that can differ is read from the plan that was
deployed; nothing is written down twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

CHECKOUT = Path(__file__).resolve().parents[3]
HOST = "hx-llm-server-01"
ADDRESS = "192.168.10.29"


def stop_where_no_lab_is_up() -> None:
    guard = subprocess.run([CHECKOUT / "lab/host.py", "guard", HOST], capture_output=True, text=True, check=False)
    if guard.returncode != 0:
        pytest.exit(guard.stderr.strip(), returncode=1)


def connect() -> Host:
    cache = os.environ.get("XDG_CACHE_HOME") or f"{os.environ['HOME']}/.cache"
    return testinfra.get_host(f"ssh://{HOST}", ssh_config=f"{cache}/citadel-llm/lab/ssh_config")


def read_plan(host: Host) -> dict[str, Any]:
    return dict(json.loads(host.file("/opt/citadel/config/plan.json").content_string))


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


def pytest_configure(config: pytest.Config) -> None:
    stop_where_no_lab_is_up()
    config.stash[PLAN] = read_plan(connect())


PLAN = pytest.StashKey[dict[str, Any]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`service` runs a test once per model service, `unit` once per service and gateway: both from the deployed plan."""
    plan = metafunc.config.stash[PLAN]
    if "service" in metafunc.fixturenames:
        metafunc.parametrize("service", plan["services"], ids=[service["name"] for service in plan["services"]])
    if "unit" in metafunc.fixturenames:
        units = [*plan["services"], plan["gateway"]]
        metafunc.parametrize("unit", units, ids=[unit["name"] for unit in units])


@pytest.fixture(scope="session")
def server() -> Host:
    return connect()


@pytest.fixture(scope="session")
def plan(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.config.stash[PLAN]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failed test brings the journal of the unit that it is about, or of all of them."""
    report = yield
    if report.when == "call" and report.failed:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        about = parameters.get("unit") or parameters.get("service")
        name = about["unit"] if about else "citadel-llm@*"
        journal = connect().run("journalctl --no-pager --lines=60 --output=short -u %s", name).stdout
        report.sections.append((f"journal of {name}", journal))
    return report
