"""Repetition and growth: a small steady load for hours, with deployments in between, and nothing fails, restarts or grows.

CITADEL_SOAK_MINUTES says how long (480 unless set). The samples go to build/soak.json as they are taken.
"""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import cgroups
from lab_host import CHECKOUT, ask, connect
from testinfra.host import Host

MINUTES = float(os.environ.get("CITADEL_SOAK_MINUTES", "480"))
REQUESTS_PER_SECOND = 1
DEPLOYMENTS = 4
SAMPLES = 24
MEBIBYTE = 2**20

Deploy = Callable[..., dict[str, int]]


class Load(threading.Thread):
    """One request a second through the gateway: every model by name in turn, then one without a model. Bounded in count and time."""

    def __init__(self, plan: dict[str, Any], until: float) -> None:
        super().__init__(daemon=True)
        self.port = plan["gateway"]["port"]
        self.models = [*(service["name"] for service in plan["services"]), None]
        self.until = until
        self.answered = 0
        self.failures: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        started = time.monotonic()
        for number in range(int(MINUTES * 60 * REQUESTS_PER_SECOND)):
            if self.stopped.wait(max(0, started + number / REQUESTS_PER_SECOND - time.monotonic())) or time.monotonic() > self.until:
                return
            model = self.models[number % len(self.models)]
            body: dict[str, Any] = {"messages": [{"role": "user", "content": f"soak {number}"}], "max_tokens": 8}
            try:
                answer = ask(self.port, "/v1/chat/completions", body | ({"model": model} if model else {}))
            except OSError as error:
                self.failures.append(f"{number} {model}: {error}")
                continue
            if answer.status == 200:
                self.answered += 1
            else:
                self.failures.append(f"{number} {model}: {answer.status} {answer.text[:200]}")


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


def test_nothing_fails_restarts_or_grows(plan: dict[str, Any], deployed: Deploy) -> None:
    server = connect()
    units = [service["unit"] for service in plan["services"]] + [plan["gateway"]["unit"], "haproxy.service", "prometheus.service"]
    until = time.monotonic() + MINUTES * 60
    load = Load(plan, until)
    samples: list[dict[str, dict[str, Any]]] = []
    deployments: list[int] = []
    load.start()
    try:
        for number in range(SAMPLES):
            samples.append(sample(server, units))
            if number % (SAMPLES // DEPLOYMENTS) == SAMPLES // DEPLOYMENTS - 1:
                deployments.append(deployed()["changed"])
            held = ", ".join(
                f"{unit.removeprefix('citadel-llm@').removesuffix('.service')} {found['held_bytes'] // MEBIBYTE}"
                for unit, found in samples[-1].items()
            )
            print(
                f"soak: sample {number + 1} of {SAMPLES}, {load.answered} answered, {len(load.failures)} failed; MiB held: {held}",
                flush=True,
            )
            (CHECKOUT / "build/soak.json").write_text(
                json.dumps({"samples": samples, "answered": load.answered, "failures": load.failures})
            )
            load.join(max(0, until - time.monotonic()) / (SAMPLES - number))
    finally:
        load.stopped.set()
        load.join()
    assert load.failures == []
    assert load.answered > 0
    assert deployments == [0] * DEPLOYMENTS
    for unit in units:
        assert {entry[unit]["run"] for entry in samples} == {samples[0][unit]["run"]}, f"{unit} was restarted"
        warm, late = growth(samples, unit, "held_bytes")
        assert late <= warm * 1.1 + 16 * MEBIBYTE, f"{unit} grew from {warm / MEBIBYTE:.0f} to {late / MEBIBYTE:.0f} MiB"
        warm, late = growth(samples, unit, "open_files")
        assert late <= warm + 16, f"{unit} went from {warm} to {late} open files"
        warm, late = growth(samples, unit, "processes")
        assert late <= warm + 2, f"{unit} went from {warm} to {late} processes"
