"""The plan against what the services really hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .units import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping


def compare_memory(plan: Mapping[str, Any], measured: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Set predicted beside measured memory.

    Args:
        plan: A plan in its plain form.
        measured: By service ``idle_bytes`` and ``peak_bytes``: memory of its cgroup without page cache, at rest and at
            the most while it worked.

    Returns:
        Per service its name, ``predicted_bytes`` (weights, KV cache and runtime; on CUDA the runtime alone, because
        the other two are on the GPU), the measured bytes and by how many percent each lies above the prediction, and
        ``peak_of_limit_percent``, the share of MemoryMax that the peak takes.

    """
    rows = []
    for service in plan["services"]:
        if service["name"] not in measured:
            continue
        found = measured[service["name"]]
        on_gpu = 0 if plan["device"] == "cpu" else service["weights_bytes"] + service["kv_cache_bytes"]
        predicted = service["weights_bytes"] + service["kv_cache_bytes"] + service["runtime_bytes"] - on_gpu
        rows.append(
            {
                "name": service["name"],
                "predicted_bytes": predicted,
                "idle_bytes": found["idle_bytes"],
                "peak_bytes": found["peak_bytes"],
                "idle_error_percent": round((found["idle_bytes"] / predicted - 1) * 100, 1),
                "peak_error_percent": round((found["peak_bytes"] / predicted - 1) * 100, 1),
                "peak_of_limit_percent": round(found["peak_bytes"] / service["memory_max_bytes"] * 100, 1),
            }
        )
    return rows


def comparison_table(rows: list[dict[str, Any]]) -> str:
    """Lay the comparison out for the terminal, in MiB: a heading and a line per service."""
    heading = f"{'service':<20} {'predicted':>10} {'idle':>8} {'error':>8} {'working':>8} {'error':>8} {'of limit':>9}   (MiB)"
    lines = [
        f"{row['name']:<20} {row['predicted_bytes'] / MIB:>10.0f} {row['idle_bytes'] / MIB:>8.0f} {row['idle_error_percent']:>+7.1f}%"
        f" {row['peak_bytes'] / MIB:>8.0f} {row['peak_error_percent']:>+7.1f}% {row['peak_of_limit_percent']:>8.1f}%"
        for row in rows
    ]
    return "\n".join([heading, *lines])
