"""What every check of a lab host is given: the host, its plan, each of its services.

Nothing is sent where the lab host is not up: the guard stops the whole run first. Everything that can differ is read from the plan that was
deployed; nothing is written down twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab_host import Change, connect, deploy, read_plan, stop_where_no_lab_is_up
from testinfra.host import Host

PLAN = pytest.StashKey[dict[str, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    stop_where_no_lab_is_up()
    config.stash[PLAN] = read_plan(connect())


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


@pytest.fixture
def deployed() -> Iterator[Callable[..., dict[str, int]]]:
    """Deploy, with a change or without; where there was one the platform is put back as it was."""
    changed = False

    def with_a_change(*arguments: str, change: Change | None = None) -> dict[str, int]:
        nonlocal changed
        changed |= change is not None
        return deploy(*arguments, change=change)

    yield with_a_change
    if changed:
        deploy()


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
