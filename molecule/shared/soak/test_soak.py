"""Repetition and growth: a small steady load for hours, with deployments in between, and nothing fails, restarts or grows.

CITADEL_SOAK_MINUTES says how long (480 unless set). The samples go to build/soak.json as they are taken.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import cgroups
from lab_host import CHECKOUT, connect
from steady_load import SteadyLoad
from testinfra.host import Host

MINUTES = float(os.environ.get("CITADEL_SOAK_MINUTES", "480"))
EVERY_SECONDS = 5.0
DEPLOYMENTS = 4
SAMPLES = 24
MEBIBYTE = 2**20

Deploy = Callable[..., dict[str, int]]


def sample(host: Host, units: list[str]) -> dict[str, dict[str, Any]]:
    """Run, memory, processes and open files of each unit."""
    found = {}
    for unit in units:
        processes = cgroups.process_ids(host, unit)
        files = host.run(" ; ".join(f"ls /proc/{process}/fd" for process in processes)).stdout.split()
        found[unit] = {
            "run": host.check_output("systemctl show --property=InvocationID --value %s", unit),
            "held_bytes": cgroups.held_bytes(host, unit),
            "processes": len(processes),
            "open_files": len(files),
        }
    return found


def growth(samples: list[dict[str, dict[str, Any]]], unit: str, figure: str) -> tuple[float, float]:
    """Median of the second quarter, which is warm, and of the last."""
    values = [entry[unit][figure] for entry in samples]
    quarter = max(1, len(values) // 4)
    return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])


def failed(load: SteadyLoad) -> list[str]:
    """Whatever was not answered at the first attempt."""
    return [f"{outcome.statuses} {outcome.text}" for outcome in load.outcomes() if outcome.statuses != (200,)]


def test_nothing_fails_restarts_or_grows(plan: dict[str, Any], deployed: Deploy) -> None:
    server = connect()
    units = [service["unit"] for service in plan["services"]] + [plan["gateway"]["unit"], "haproxy.service", "prometheus.service"]
    until = time.monotonic() + MINUTES * 60
    models: list[str | None] = [*(service["name"] for service in plan["services"]), None]
    ways = [(plan["gateway"]["port"], model) for model in models]
    samples: list[dict[str, dict[str, Any]]] = []
    deployments: list[int] = []
    with SteadyLoad(ways, every_seconds=EVERY_SECONDS, seconds=MINUTES * 60) as load:
        for number in range(SAMPLES):
            samples.append(sample(server, units))
            if number % (SAMPLES // DEPLOYMENTS) == SAMPLES // DEPLOYMENTS - 1:
                deployments.append(deployed()["changed"])
            held = ", ".join(
                f"{unit.removeprefix('citadel-llm@').removesuffix('.service')} {found['held_bytes'] // MEBIBYTE}"
                for unit, found in samples[-1].items()
            )
            failures = failed(load)
            print(
                f"soak: sample {number + 1} of {SAMPLES}, {len(load.outcomes())} requests, {len(failures)} failed; MiB held: {held}",
                flush=True,
            )
            figures = {"samples": samples, "requests": len(load.outcomes()), "failures": failures}
            (CHECKOUT / "build/soak.json").write_text(json.dumps(figures))
            for client in load.clients:
                client.join(max(0, until - time.monotonic()) / (SAMPLES - number) / len(load.clients))
    assert failed(load) == []
    assert load.outcomes() != []
    assert deployments == [0] * DEPLOYMENTS
    for unit in units:
        assert {entry[unit]["run"] for entry in samples} == {samples[0][unit]["run"]}, f"{unit} was restarted"
        warm, late = growth(samples, unit, "held_bytes")
        assert late <= warm * 1.1 + 16 * MEBIBYTE, f"{unit} grew from {warm / MEBIBYTE:.0f} to {late / MEBIBYTE:.0f} MiB"
        warm, late = growth(samples, unit, "open_files")
        assert late <= warm + 16, f"{unit} went from {warm} to {late} open files"
        warm, late = growth(samples, unit, "processes")
        assert late <= warm + 2, f"{unit} went from {warm} to {late} processes"
