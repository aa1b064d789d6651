"""A plan as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .units import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEADINGS = ("service", "variant", "asked", "granted", "weights", "KV", "runtime", "room", "seqs", "context", "port")
_TEXT_COLUMNS = frozenset({"service", "variant", "cpus"})


def plan_table(plan: Mapping[str, Any]) -> str:
    """Lay a plan out in columns.

    Args:
        plan: A plan in its plain form. Memory is shown in GiB; on CUDA weights and KV cache are those on the GPUs.

    Returns:
        Lines of text without trailing spaces: a heading, a row per service, the gateway, totals, warnings.

    """
    on_gpus = plan["device"] == "cuda"
    headings = [*_HEADINGS, "cpus", *(["GPUs"] if on_gpus else [])]
    rows = [_service_row(service, on_gpus) for service in plan["services"]]
    rows.append(_gateway_row(plan["gateway"], on_gpus))
    totals = plan["totals"]
    machine = plan["device"] if plan["device"] == "cuda" else f"cpu, {plan['isa']}"
    usable = totals["memory_capacity_bytes"] - totals["memory_reserved_bytes"]
    lines = [
        f"{plan['host']} ({machine}, policy {plan['policy']}); memory in GiB",
        *_aligned(headings, rows),
        f"memory: {_number(totals['memory_max_bytes'])} of {_number(usable)} granted"
        f" ({_number(totals['memory_capacity_bytes'])} less a reserve of {_number(totals['memory_reserved_bytes'])});"
        f" cores: {totals['cpus_requested']} requested, {totals['cpus_available']} there;"
        f" disk: {_number(totals['storage_needed_bytes'])} needed",
        *(f"warning: {warning}" for warning in plan["warnings"]),
    ]
    return "\n".join(lines)


def _number(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}"


def _cpus(entry: Mapping[str, Any]) -> str:
    # Without a space: Ansible's output folds long lines at single spaces.
    return str(entry["cpu_set"]) if entry["cpus_exclusive"] else f"shared:{entry['cpu_set']}"


def _service_row(service: Mapping[str, Any], on_gpus: bool) -> list[str]:
    device_memory = service["gpu"] if on_gpus else service
    row = [
        service["name"],
        service["variant"],
        _number(service["memory_requested_bytes"]),
        _number(service["memory_max_bytes"]),
        _number(device_memory["weights_bytes"]),
        _number(device_memory["kv_cache_bytes"]),
        _number(service["runtime_bytes"]),
        _number(service["headroom_bytes"]),
        str(service["max_num_seqs"]),
        str(service["context_tokens"]),
        str(service["api_port"]),
        _cpus(service),
    ]
    if on_gpus:
        ids = ",".join(str(gpu_id) for gpu_id in service["gpu_ids"])
        row.append(f"{ids} at {service['gpu_memory_utilization']:.3f}")
    return row


def _gateway_row(gateway: Mapping[str, Any], on_gpus: bool) -> list[str]:
    workers = f"{gateway['workers']} worker{'' if gateway['workers'] == 1 else 's'}"
    asked, granted = _number(gateway["memory_requested_bytes"]), _number(gateway["memory_max_bytes"])
    row = [gateway["name"], workers, asked, granted, *[""] * 6, str(gateway["port"]), _cpus(gateway)]
    return [*row, ""] if on_gpus else row


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return [
        "  ".join(
            cell.ljust(width) if heading in _TEXT_COLUMNS else cell.rjust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ).rstrip()
        for line in lines
    ]
