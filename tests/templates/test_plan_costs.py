"""What the plan's diff says of a change, against the files that the roles' templates really make of it.

Each key of a plan is changed in turn. A part restarts exactly when a file changes that it reads only at its start; that
is what the diff must have said.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from ansible.parsing.dataloader import DataLoader
from inventories import HOST, planned

from citadel_plan import list_upstreams
from citadel_plan.diff import EDGE_MODEL_KEYS, GATEWAY_MODEL_KEYS, GATEWAY_RESTARTS, LIVE, SERVICE_RESTARTS
from rendering import PROJECT, render, role_defaults

if TYPE_CHECKING:
    from pathlib import Path

Plan = dict[str, Any]

# A part with another name is another part; its unit and the slots of its ports follow from name and port.
IDENTITY = {"name", "unit"}


@pytest.fixture(scope="session")
def plans(plans_folder: Path) -> dict[str, Plan]:
    return {device: planned(f"production-{device}", plans_folder)["plan"] for device in ("cpu", "cuda")}


def another(value: object) -> object:
    """Give a value of the same kind that is not the same."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [another(value[0]), *value[1:]] if value else ["--more"]
    return f"{value or ''}x"


def files(role: str, templates: list[str], **given: object) -> str:
    internal = (
        DataLoader().load_from_file(str(PROJECT / "roles" / role / "vars/main.yml")) if (PROJECT / "roles" / role / "vars").exists() else {}
    )
    variables = {"ansible_managed": "Ansible managed", **role_defaults(role), **internal, **given}
    return "".join(render(PROJECT / "roles" / role / "templates" / f"{name}.j2", variables) for name in templates)


def keys_that_change(entry: Plan, made: Any) -> set[str]:  # noqa: ANN401 - a function of an entry
    """List the keys of an entry whose value the files depend on."""
    before = made(entry)
    keys = [key for key, value in entry.items() if key not in IDENTITY and not isinstance(value, dict)]
    return {key for key in keys if made({**copy.deepcopy(entry), key: another(entry[key])}) != before}


def model_files(plan: Plan, templates: list[str]) -> Any:  # noqa: ANN401 - a function of an entry
    common = {"model_service_device": plan["device"], "model_service_python": "/python"}
    return lambda service: files("model_service", templates, model_service_plan=service, **common)


def test_a_model_restarts_for_what_it_reads_at_its_start(plans: dict[str, Plan]) -> None:
    read_at_start, applied_live = set(), set()
    for plan in plans.values():
        for service in plan["services"]:
            read_at_start |= keys_that_change(service, model_files(plan, ["10-exec.conf", "service.env", "logging.json"]))
            applied_live |= keys_that_change(service, model_files(plan, ["20-resources.conf"]))
    # Where the weights come from stands in no file of the unit: the record beside the weights is read, and they are read at the start.
    assert read_at_start == set(SERVICE_RESTARTS) - {"source"}
    assert applied_live - read_at_start == set(LIVE)


def test_the_gateway_restarts_for_what_it_reads_at_its_start(plans: dict[str, Plan]) -> None:
    common = {"gateway_runtime_path": "/runtime", "gateway_upstreams": [], "gateway_routing_rules": []}

    def made(*templates: str) -> Any:  # noqa: ANN401 - a function of an entry
        return lambda gateway: files("gateway", list(templates), gateway_plan=gateway, **common)

    gateway = plans["cpu"]["gateway"]
    read_at_start = keys_that_change(gateway, made("10-exec.conf", "environment.env", "logging.yaml", "config.yaml", "routing.json"))
    assert read_at_start == set(GATEWAY_RESTARTS)
    assert keys_that_change(gateway, made("20-resources.conf")) - read_at_start == set(LIVE)


def test_the_gateway_restarts_for_its_list_of_models(plans: dict[str, Plan]) -> None:
    plan = plans["cpu"]

    def made(service: Plan) -> str:
        changed = {**plan, "services": [service, *plan["services"][1:]]}
        upstreams = list_upstreams({HOST: {"plan": changed, "address": "192.168.10.29"}}, host=HOST)
        return files(
            "gateway",
            ["config.yaml", "routing.json"],
            gateway_plan=plan["gateway"],
            gateway_upstreams=upstreams,
            gateway_routing_rules=[],
        )

    changing = keys_that_change(plan["services"][0], made)
    # Of the modes only whether chat is among them stands there besides the list itself.
    assert changing == set(GATEWAY_MODEL_KEYS)


def test_the_edge_reloads_for_its_configuration(plans: dict[str, Plan]) -> None:
    plan = plans["cpu"]

    def made(service: Plan) -> str:
        return files(
            "edge",
            ["haproxy.cfg"],
            edge_server_addresses=["192.168.10.29"],
            edge_services=[service, *plan["services"][1:]],
            edge_api_ports=plan["edge"]["api_ports"],
            edge_metrics_ports=plan["edge"]["metrics_ports"],
            edge_gateway_port=plan["gateway"]["port"],
            edge_prometheus_port=plan["monitoring"]["prometheus_port"],
            edge_environment="development",
            edge_gateway_secret_file="/secret",
        )

    assert keys_that_change(plan["services"][0], made) == set(EDGE_MODEL_KEYS)
