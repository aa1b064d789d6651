"""Predicted beside measured: on the CPU all of it, on CUDA what is in the host's memory."""

from __future__ import annotations

from citadel_plan import compare_memory, comparison_table

MIB = 2**20
SERVICE = {
    "name": "hermes-2",
    "weights_bytes": 100 * MIB,
    "kv_cache_bytes": 50 * MIB,
    "runtime_bytes": 850 * MIB,
    "memory_max_bytes": 2000 * MIB,
}
MEASURED = {"hermes-2": {"idle_bytes": 900 * MIB, "peak_bytes": 1100 * MIB}}


def test_on_the_cpu_everything_counts() -> None:
    assert compare_memory({"device": "cpu", "services": [SERVICE]}, MEASURED) == [
        {
            "name": "hermes-2",
            "predicted_bytes": 1000 * MIB,
            "idle_bytes": 900 * MIB,
            "peak_bytes": 1100 * MIB,
            "idle_error_percent": -10.0,
            "peak_error_percent": 10.0,
            "peak_of_limit_percent": 55.0,
        }
    ]


def test_on_cuda_the_runtime_alone() -> None:
    [row] = compare_memory({"device": "cuda", "services": [SERVICE]}, MEASURED)
    assert row["predicted_bytes"] == 850 * MIB


def test_service_that_was_not_measured_is_left_out() -> None:
    assert compare_memory({"device": "cpu", "services": [SERVICE]}, {}) == []


def test_table() -> None:
    heading, line = comparison_table(compare_memory({"device": "cpu", "services": [SERVICE]}, MEASURED)).splitlines()
    assert heading.split() == ["service", "predicted", "idle", "error", "working", "error", "of", "limit", "(MiB)"]
    assert line.split() == ["hermes-2", "1000", "900", "-10.0%", "1100", "+10.0%", "55.0%"]
