"""What a new plan costs the host that runs an old one: which services restart, which change while they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

RESTART_KEYS: Final = (
    "variant",
    "source",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "block_tokens",
    "api_port",
    "state_port",
    "context_tokens",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "tensor_parallel_size",
    "gpu_ids",
    "gpu_memory_utilization",
    "extra_arguments",
    "kv_cache_bytes",
    "cpu_set",
    "omp_threads_bind",
    "numa_nodes",
    "load_timeout_seconds",
    "stall_timeout_seconds",
)
"""What ends in a service's command line, environment or unit, or in what its threads and memory are bound to."""

GATEWAY_RESTART_KEYS: Final = ("name", "port", "workers", "cpu_set")

LIVE_KEYS: Final = ("memory_max_bytes", "cpu_quota_percent", "cpu_weight", "io_weight", "tasks_max")
"""What systemd applies to a running unit. ``memory_max_bytes`` only while the KV cache keeps its size: when that
changes, the service restarts anyway."""


def diff_plans(deployed: Mapping[str, Any] | None, planned: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two plans of one host.

    Args:
        deployed: The plan that the host runs, or None (or empty) where nothing is deployed.
        planned: The new one.

    Returns:
        ``{"restart": [{"service", "reasons"}], "live": [{"service", "changes"}], "unchanged": [name],
        "remove": [name]}``: each service and the gateway under exactly one of the first three; ``remove`` names
        services that the new plan no longer has. Order: services by API port, then the gateway.

    """
    before = _units(deployed) if deployed else {}
    after = _units(planned)
    device_moves = bool(deployed) and deployed is not None and deployed.get("device") != planned["device"]
    restart: list[dict[str, Any]] = []
    live: list[dict[str, Any]] = []
    unchanged: list[str] = []
    for name, (new, keys) in after.items():
        old = before[name][0] if name in before else None
        reasons = ["is not deployed yet"] if old is None else _changes(old, new, keys)
        if old is not None and device_moves and keys is RESTART_KEYS:
            reasons.insert(0, f"device: {(deployed or {}).get('device')} -> {planned['device']}")
        changes = [] if old is None else _changes(old, new, LIVE_KEYS)
        if reasons:
            restart.append({"service": name, "reasons": reasons + changes})
        elif changes:
            live.append({"service": name, "changes": changes})
        else:
            unchanged.append(name)
    return {
        "restart": restart,
        "live": live,
        "unchanged": unchanged,
        "remove": sorted(name for name in before if name not in after),
    }


def _units(plan: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], tuple[str, ...]]]:
    units: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {service["name"]: (service, RESTART_KEYS) for service in plan["services"]}
    units[plan["gateway"]["name"]] = (plan["gateway"], GATEWAY_RESTART_KEYS)
    return units


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}" for key in keys if old.get(key) != new.get(key)]


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return " ".join(str(part) for part in value.values() if part is not None)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(str(item) for item in value) + "]"
    return str(value)
