"""A plan as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .prose import wrap
from .report_layout import usable_memory
from .units import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEADINGS: Final = {
    "cpu": ("service", "variant", "asked", "granted", "weights", "KV", "runtime", "room", "seqs", "context", "port", "cpus"),
    "cuda": ("service", "variant", "asked", "granted", "weights", "KV", "seqs", "context", "port", "cpus", "GPUs"),
}
_TEXT_COLUMNS: Final = frozenset({"service", "variant", "cpus", "GPUs"})
_GROUP_STARTS: Final = frozenset({"variant", "asked", "seqs", "port", "cpus", "GPUs"})
"""Columns with a wider gap before them."""
"""Columns with a wider gap behind them."""


def plan_table(plan: Mapping[str, Any]) -> str:
    """Lay a plan out in columns.

    Args:
        plan: A plan in its plain form. Memory is shown in GiB; on CUDA weights and KV cache are those on the GPUs.

    Returns:
        Lines of text without trailing spaces: a heading, a row per service, the gateway, totals, warnings.

    """
    headings = _HEADINGS[plan["device"]]
    entries = [*(_service_cells(service) for service in plan["services"]), _gateway_cells(plan["gateway"])]
    rows = [[cells.get(heading, "") for heading in headings] for cells in entries]
    totals = plan["totals"]
    machine = f"cpu, {plan['isa']}" if plan["device"] == "cpu" else plan["device"]
    where = "memory in GiB" if plan["device"] == "cpu" else "memory in GiB, weights and KV on the GPUs"
    lines = [
        f"{plan['host']} ({machine}, policy {plan['policy']}); {where}",
        *_aligned(headings, rows),
        f"memory: {_number(totals['memory_max_bytes'])} of {_number(usable_memory(plan))} granted"
        f" ({_number(totals['memory_capacity_bytes'])} less a reserve of {_number(totals['memory_reserved_bytes'])})",
        f"cores: {totals['cpus_requested']} requested, {totals['cpus_available']} there;"
        f" disk: {_number(totals['storage_needed_bytes'])} needed, {_number(totals['storage_requested_bytes'])} allocated",
        *(line for warning in plan["warnings"] for line in wrap(f"warning: {warning}")),
    ]
    return "\n".join(lines)


def _number(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}"


def _cpus(entry: Mapping[str, Any]) -> str:
    return str(entry["cpu_set"]) if entry["cpus_exclusive"] else f"{entry['cpu_set']} shared"


def _service_cells(service: Mapping[str, Any]) -> dict[str, str]:
    device_memory = service["gpu"] or service
    cells = {
        "service": service["name"],
        "variant": service["variant"],
        "asked": _number(service["memory_requested_bytes"]),
        "granted": _number(service["memory_max_bytes"]),
        "weights": _number(device_memory["weights_bytes"]),
        "KV": _number(device_memory["kv_cache_bytes"]),
        "runtime": _number(service["runtime_bytes"]),
        "room": _number(service["headroom_bytes"]),
        "seqs": str(service["max_num_seqs"]),
        "context": str(service["context_tokens"]),
        "port": str(service["api_port"]),
        "cpus": _cpus(service),
    }
    if service["gpu_ids"]:
        cells["GPUs"] = f"{','.join(map(str, service['gpu_ids']))} at {service['gpu_memory_utilization']:.3f}"
    return cells


def _gateway_cells(gateway: Mapping[str, Any]) -> dict[str, str]:
    return {
        # Its name is the longest of all and never differs between the rows: the word says more in less room.
        "service": "gateway",
        "asked": _number(gateway["memory_requested_bytes"]),
        "granted": _number(gateway["memory_max_bytes"]),
        "seqs": str(gateway["workers"]),
        "context": "worker" if gateway["workers"] == 1 else "workers",
        "port": str(gateway["port"]),
        "cpus": _cpus(gateway),
    }


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return ["".join(_cell(*place) for place in zip(line, widths, headings, strict=True)).strip() for line in lines]


def _cell(text: str, width: int, heading: str) -> str:
    aligned = text.ljust(width) if heading in _TEXT_COLUMNS else text.rjust(width)
    return ("  " if heading in _GROUP_STARTS else " ") + aligned
