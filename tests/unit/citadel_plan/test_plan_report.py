"""The table for the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from citadel_plan import plan_table
from unit.plan_examples import GIB, host_facts, production_plan, tiny_overrides

CASES: dict[str, dict[str, Any]] = {
    "cpu": {"facts": host_facts(memory_gib=125.6)},
    "cuda": {"facts": host_facts(memory_gib=256, gpus_gib=(141,))},
    "lab": {"facts": host_facts(memory_gib=23, cores=2, isa="avx2"), "overrides": tiny_overrides(), "memory_reserve": "2GiB"},
}
TERMINAL_COLUMNS = 100
ANSIBLES_INDENTATION = 8


@pytest.fixture(params=CASES)
def laid_out(request: pytest.FixtureRequest) -> tuple[dict[str, Any], list[str]]:
    result = production_plan(**CASES[request.param]).to_dict()
    return result, plan_table(result).splitlines()


def test_every_row_says_what_the_plan_says(laid_out: tuple[dict[str, Any], list[str]]) -> None:
    result, (_, headings, *rows) = laid_out
    expected_headings = ["service", "variant", "asked", "granted", "weights", "KV", "runtime", "room", "seqs", "context", "port", "cpus"]
    if result["device"] == "cuda":
        expected_headings = [*expected_headings[:6], *expected_headings[8:], "GPUs"]
    assert headings.split() == expected_headings
    for service, row in zip(result["services"], rows, strict=False):
        keys = ["memory_requested", "memory_max", "weights", "kv_cache", "runtime", "headroom"]
        where = service | (service["gpu"] or {})
        cells = dict(zip(expected_headings, row.split(), strict=False))
        sizes = dict(zip(["asked", "granted", "weights", "KV", "runtime", "room"], keys, strict=True))
        for heading, key in sizes.items():
            assert cells.get(heading, f"{where[f'{key}_bytes'] / GIB:.1f}") == f"{where[f'{key}_bytes'] / GIB:.1f}"
        shown = [cells[heading] for heading in ("service", "variant", "seqs", "context", "port", "cpus")]
        assert shown == [str(service[key]) for key in ("name", "variant", "max_num_seqs", "context_tokens", "api_port", "cpu_set")]
        assert row.endswith(" shared") is not service["cpus_exclusive"]
        if service["gpu_ids"]:
            assert row.endswith(f"{service['gpu_ids'][0]} at {service['gpu_memory_utilization']:.3f}")


def test_the_gateway_the_sums_and_the_warnings_follow(laid_out: tuple[dict[str, Any], list[str]]) -> None:
    result, lines = laid_out
    gateway, totals = result["gateway"], result["totals"]
    line = lines[2 + len(result["services"])].split()
    assert line[0] == "gateway"
    assert {f"{gateway['memory_max_bytes'] / GIB:.1f}", str(gateway["port"]), gateway["cpu_set"]} <= set(line)
    assert f" {gateway['workers']} worker" in lines[2 + len(result["services"])]
    rest = " ".join(" ".join(lines[3 + len(result["services"]) :]).split())
    assert f"memory: {totals['memory_max_bytes'] / GIB:.1f} of " in rest
    assert f"cores: {totals['cpus_requested']} requested, {totals['cpus_available']} there" in rest
    assert [warning for warning in result["warnings"] if f"warning: {warning}" not in rest] == []


def test_it_fits_a_terminal_of_100_columns(laid_out: tuple[dict[str, Any], list[str]]) -> None:
    result, lines = laid_out
    # CPUs that are shared stand last and say so, which may stick out.
    longest = max(len(line) for line in lines if not line.endswith(" shared"))
    assert longest + ANSIBLES_INDENTATION <= TERMINAL_COLUMNS
    assert all(line == line.rstrip() for line in lines)
    columns = {line.index(service["name"]) for service, line in zip(result["services"], lines[2:], strict=False)}
    assert columns == {0}
