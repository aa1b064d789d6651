"""What the plan's tests plan: the catalogue as committed, hosts of any size, the lab's tiny models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from citadel_plan import Plan, PlanError, plan

PROJECT = Path(__file__).resolve().parents[2]
INVENTORY = PROJECT / "inventory" / "group_vars" / "all"
HOST = "hx-llm-server-01"
MIB = 2**20
GIB = 2**30


def production_models() -> dict[str, Any]:
    """Read citadel_models as committed; the one variable in it is filled in."""
    text = (INVENTORY / "models.yml").read_text(encoding="utf-8")
    data = yaml.safe_load(text.replace("{{ citadel_own_models_folder }}", "/srv/citadel/models"))
    models: dict[str, Any] = data["citadel_models"]
    return copy.deepcopy(models)


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


def problems_of(**arguments: object) -> tuple[str, ...]:
    """Give the sentences with which a plan is refused; fails where it is not."""
    try:
        production_plan(**arguments)
    except PlanError as error:
        return error.problems
    raise AssertionError("the plan was not refused")


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
