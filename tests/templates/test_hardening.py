"""How exposed each unit is, as systemd computes it from the rendered files, and whether the page and the comments say the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from exposure import BOUNDS, overall
from inventories import HOST

from citadel_plan import list_metrics_targets, list_node_targets, list_upstreams
from edge.haproxy import tool
from gateway.harness import role_variables
from rendering import PROJECT, role_variables_file
from templates.test_units import model_variables, rendered, variables, write_units

ADDRESS = "192.168.10.29"
PAGE = PROJECT / "docs" / "security.md"

# What the distribution's packages bring, and our drop-ins for it.
DISTRIBUTION = {
    "haproxy.service": ("edge", {"citadel.conf": "citadel.conf.j2"}),
    "prometheus.service": ("monitoring", {"citadel.conf": "prometheus.conf.j2", "citadel-addresses.conf": "prometheus-addresses.conf.j2"}),
    "prometheus-node-exporter.service": ("monitoring", {"citadel.conf": "prometheus-node-exporter.conf.j2"}),
    "prometheus-alertmanager.service": ("monitoring", {"citadel.conf": "prometheus-alertmanager.conf.j2"}),
}


@dataclass(frozen=True)
class Unit:
    """A unit with its drop-ins below a folder that stands for the host's root; `files` are the templates that it comes from."""

    kind: str
    name: str
    root: Path
    files: tuple[Path, ...]

    def report(self, *options: str) -> str:
        """What systemd-analyze says of it, from files alone."""
        command = [tool("systemd-analyze"), "security", "--offline=yes", "--no-pager", f"--root={self.root}", *options, self.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def left_out(self) -> set[str]:
        """Everything that adds to its exposure, by the directive's name, the first where there are two."""
        return {re.split("[=/]", check["name"])[0] for check in json.loads(self.report("--json=short")) if check["exposure"] is not None}


def write_distribution_unit(root: Path, unit: str, values: dict[str, Any]) -> tuple[Path, ...]:
    """Write the distribution's unit, as its package has it, with our drop-ins."""
    role, drop_ins = DISTRIBUTION[unit]
    source = Path("/lib/systemd/system") / unit
    if not source.exists():
        pytest.fail(f"{source} is missing: install the distribution's package {unit.removesuffix('.service')}")
    units = root / "etc/systemd/system"
    (units / f"{unit}.d").mkdir(parents=True)
    shutil.copy(source, units)
    for name, template in drop_ins.items():
        (units / f"{unit}.d" / name).write_text(rendered(role, template, values))
    return tuple(PROJECT / "roles" / role / "templates" / template for template in drop_ins.values())


def write_gateway(root: Path, plan: dict[str, Any]) -> str:
    """Write the gateway's drop-ins beside the template unit."""
    folder = root / "etc/systemd/system" / f"{plan['gateway']['unit']}.d"
    folder.mkdir()
    values = role_variables() | {
        "ansible_managed": "Ansible managed",
        "gateway_plan": plan["gateway"],
        "gateway_upstreams": list_upstreams({HOST: {"plan": plan, "address": ADDRESS}}, host=HOST),
        "gateway_runtime_path": "/runtime",
        "gateway_routing_rules": [{"name": "otherwise", "models": ["hermes-2"]}],
    }
    for name in ("10-exec.conf", "20-resources.conf"):
        (folder / name).write_text(rendered("gateway", f"{name}.j2", values))
    return str(plan["gateway"]["unit"])


@pytest.fixture
def units(plan: dict[str, Any], tmp_path: Path) -> list[Unit]:
    """Every unit of a host, as the plan of a case has it."""
    framework = PROJECT / "roles/service_framework/templates/citadel-llm@.service.j2"
    model = PROJECT / "roles/model_service/templates/10-exec.conf.j2"
    gateway = PROJECT / "roles/gateway/templates/10-exec.conf.j2"
    kind = "model (CUDA)" if plan["device"] == "cuda" else "model"
    found = [Unit(kind, name, tmp_path, (framework, model)) for name in write_units(tmp_path, plan)]
    found.append(Unit("gateway", write_gateway(tmp_path, plan), tmp_path, (framework, gateway)))
    plans = {HOST: {"plan": plan, "address": ADDRESS}}
    targets = {"model": list_metrics_targets(plans), "gateway": [], "edge": [], "node": list_node_targets(plans, host=HOST)}
    given = role_variables_file("monitoring") | {f"monitoring_{name}_targets": entries for name, entries in targets.items()}
    values = {
        "edge": variables("edge"),
        "monitoring": variables("monitoring", **given),
    }
    for name, (role, _) in DISTRIBUTION.items():
        found.append(Unit(name, name, tmp_path, write_distribution_unit(tmp_path, name, values[role])))
    exporter = PROJECT / "roles/monitoring/templates/citadel-exporter.service.j2"
    (tmp_path / "etc/systemd/system/citadel-exporter.service").write_text(rendered("monitoring", exporter.name, values["monitoring"]))
    (tmp_path / "etc/systemd/system/citadel-exporter.service.d").mkdir()
    found.append(Unit("citadel-exporter.service", "citadel-exporter.service", tmp_path, (exporter,)))
    return found


def test_no_unit_is_more_exposed_than_it_may_be(units: list[Unit]) -> None:
    figures = {unit.name: (unit.kind, overall(unit.report())) for unit in units}
    assert len(figures) == 10
    assert {name: figure for name, (kind, figure) in figures.items() if figure > BOUNDS[kind]} == {}


def test_a_directive_less_would_be_noticed(units: list[Unit], tmp_path: Path) -> None:
    for unit in units:
        wrong = tmp_path / "etc/systemd/system" / f"{unit.name}.d" / "zz-wrong.conf"
        wrong.write_text("[Service]\nSystemCallFilter=\nProtectSystem=no\n")
        assert overall(unit.report()) > BOUNDS[unit.kind]


def test_what_is_left_out_has_its_reason_beside_it(units: list[Unit]) -> None:
    for unit in units:
        comments = "\n".join(line for file in unit.files for line in file.read_text().splitlines() if line.startswith("#"))
        assert unit.left_out() - set(re.findall(r"\b[A-Z][A-Za-z]+\b", comments)) == set(), unit.name


def table(heading: str) -> list[list[str]]:
    """Cells of the table below a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_page_says_what_is_computed(units: list[Unit]) -> None:
    exposures = {row[0].strip("`"): (float(row[1]), float(row[2])) for row in table("How exposed each unit is")}
    reasons: dict[str, set[str]] = {}
    for directive, kinds, reason in table("What is left out, and why"):
        assert reason
        for kind in kinds.split(", "):
            reasons.setdefault(kind.strip("`"), set()).add(directive.strip("`"))
    assert set(exposures) == set(reasons) == set(BOUNDS)
    for unit in units:
        assert exposures[unit.kind] == (overall(unit.report()), BOUNDS[unit.kind]), unit.name
        assert reasons[unit.kind] == unit.left_out(), unit.name


def test_a_unit_reaches_only_whom_it_needs(units: list[Unit], plan: dict[str, Any]) -> None:
    def directives(unit: Unit, name: str) -> list[str]:
        base = re.sub(r"@.*", "@.service", unit.name)
        folder = unit.root / "etc/systemd/system"
        files = [folder / base, *sorted((folder / f"{unit.name}.d").iterdir())]
        lines = [line for file in files for line in file.read_text().splitlines()]
        return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]

    for unit in units:
        expected = {"haproxy.service": [], "prometheus.service": ["localhost", ADDRESS]}.get(unit.kind, ["localhost"])
        assert directives(unit, "IPAddressAllow") == expected, unit.name
        assert directives(unit, "IPAddressDeny") == (["any"] if expected else []), unit.name


def test_a_model_sees_no_configuration_but_its_own_logging(plan: dict[str, Any]) -> None:
    for service in plan["services"]:
        values = model_variables(plan, service) | {"ansible_managed": "Ansible managed"}
        environment = rendered("model_service", "service.env.j2", values)
        assert f"VLLM_LOGGING_CONFIG_PATH=/opt/citadel/config/services/{service['name']}.logging.json" in environment
    framework = variables("service_framework", service_framework_slice=plan["slice"], service_framework_instances=[])
    unit = rendered("service_framework", "citadel-llm@.service.j2", framework).splitlines()
    assert "TemporaryFileSystem=/opt/citadel/config:ro" in unit
    assert "BindReadOnlyPaths=-/opt/citadel/config/services/%i.logging.json" in unit
