"""What the plan's tests plan: the catalogue as committed, hosts of any size, the lab's tiny models."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from citadel_plan import Plan, PlanError, plan
from citadel_plan.catalogue import merge_catalogue
from citadel_plan.inputs import Isa, Model
from citadel_plan.memory import memory_needed
from citadel_plan.parse import parse_models
from citadel_plan.problems import Problems, Suggestion

PROJECT = Path(__file__).resolve().parents[2]
INVENTORY = PROJECT / "inventory" / "group_vars" / "all"
HOST = "hx-llm-server-01"
MIB = 2**20
GIB = 2**30


@cache
def _catalogue() -> dict[str, Any]:
    text = (INVENTORY / "models.yml").read_text(encoding="utf-8")
    data = yaml.safe_load(text.replace("{{ citadel_own_models_folder }}", "/srv/citadel/models"))
    models: dict[str, Any] = data["citadel_models"]
    return models


def production_models() -> dict[str, Any]:
    """Read citadel_models as committed; the one variable in it is filled in."""
    return copy.deepcopy(_catalogue())


def settings(**changes: object) -> dict[str, Any]:
    """Give the settings of plan.yml; keys of the gateway are passed as ``gateway={...}``."""
    gateway = {
        "name": "unified-api-gateway",
        "port": 8000,
        "memory": "2GiB",
        "cpus": 4,
        "storage": "100GiB",
        "workers": None,
        "cpu_quota_percent": None,
        "cpu_weight": None,
        "io_weight": 100,
        "tasks_max": 512,
    }
    return {
        "policy": "rebalance",
        "device": "auto",
        "memory_reserve": "6GiB",
        "storage_reserve": "20GiB",
        "prometheus_port": 9090,
        "ephemeral_ports": "32768-60999",
        **changes,
        "gateway": {**gateway, **changes.get("gateway", {})},
    }


def host_facts(
    memory_gib: float = 128, cores: int = 24, isa: str = "amx", nodes: int = 1, gpus_gib: tuple[float, ...] = (), **changes: object
) -> dict[str, Any]:
    """Describe a host; memory and cores are spread evenly over its nodes."""
    each = cores // nodes
    return {
        "memory_bytes": int(memory_gib * GIB),
        "cpus": list(range(cores)),
        "numa_nodes": [
            {"id": node, "cpus": f"{node * each}-{(node + 1) * each - 1}", "memory_bytes": int(memory_gib * GIB) // nodes}
            for node in range(nodes)
        ],
        "isa": isa,
        "gpus": [{"id": number, "memory_bytes": int(size * GIB)} for number, size in enumerate(gpus_gib)],
        "storage_free_bytes": 6000 * GIB,
        "listening_ports": [{"address": "0.0.0.0", "port": 22, "unit": "ssh.service"}],
        **changes,
    }


def production_plan(
    facts: dict[str, Any] | None = None, overrides: dict[str, Any] | None = None, models: object = None, **changes: object
) -> Plan:
    """Plan the production catalogue; ``changes`` are settings."""
    return plan(
        production_models() if models is None else models,
        overrides=overrides,
        host=HOST,
        host_facts=host_facts() if facts is None else facts,
        settings=settings(**changes),
    )


def refusal_of(**arguments: object) -> PlanError:
    """Give the refusal of a plan; fails where it is not refused."""
    try:
        production_plan(**arguments)
    except PlanError as error:
        return error
    raise AssertionError("the plan was not refused")


def problems_of(**arguments: object) -> tuple[str, ...]:
    """Give the sentences with which a plan is refused; fails where it is not."""
    return refusal_of(**arguments).problems


def with_suggestion(suggestion: Suggestion, overrides: object, changed_settings: dict[str, Any]) -> tuple[Any, Any]:
    """Set what a suggestion says, as an operator would: written down anew, without the planner's own help."""
    data: dict[str, Any] = {
        "citadel_model_overrides": copy.deepcopy(overrides) or {},
        "citadel_plan_settings": copy.deepcopy(changed_settings),
    }
    for change in suggestion.changes:
        target = data
        for key in change.path[:-1]:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[change.path[-1]] = change.value
    return data["citadel_model_overrides"], data["citadel_plan_settings"]


def parsed_models(overrides: object = None) -> dict[str, Model]:
    """Read the production catalogue as the plan does, by service name."""
    problems = Problems("test")
    models = parse_models(merge_catalogue(production_models(), overrides, problems), problems)
    problems.raise_if_any()
    return {model.name: model for model in models}


def need_bytes(name: str, variant_name: str, isa: Isa = Isa.AMX) -> int:
    """Give what a service of the production catalogue needs at least: its formulas are tested elsewhere."""
    model = parsed_models()[name]
    variant = next(variant for variant in model.variants if variant.name == variant_name)
    return memory_needed(model, variant, model.min_num_seqs, isa).total_bytes


def tiny_overrides(memory: str = "2560MiB") -> dict[str, Any]:
    """Make the four services small, as the lab does: two layers, hidden 64, vocabulary 512."""
    dense = {
        "layers": 2,
        "hidden": 64,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 32,
        "vocabulary": 512,
        "intermediate": 128,
        "linear_parameters": 73_728,
        "other_parameters": 65_856,
    }
    mixture = {**dense, "linear_parameters": 417_792, "other_parameters": 66_880}
    phi = {**dense, "kv_heads": 2, "linear_parameters": 81_920}
    architectures = {"mixtral-8x7b": mixture, "hermes-2": dense, "openchat-3.5": dense, "phi-3-mini": phi}
    return {
        name: {
            "architecture": architecture,
            "request": {"memory": memory, "storage": "1GiB"},
            "variants": [
                {
                    "name": "bf16",
                    "weights_bytes": 2 * (architecture["linear_parameters"] + architecture["other_parameters"]),
                    "source": {"type": "controller_folder", "path": f"/lab/models/{name}"},
                }
            ],
        }
        for name, architecture in architectures.items()
    }
