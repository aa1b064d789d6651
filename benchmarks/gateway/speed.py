"""LiteLLM as it comes and as the role gateway runs it, in turn in every round of one run, before a model server that costs nothing.

    make benchmark                 all of it, under ten minutes
    … benchmarks/gateway/speed.py --rounds 1 --output build/gateway-speed.json

What is added to the model server's own time is what counts, so the model server is asked directly in every round as well. CPU time per
request is what a gateway costs whoever else uses the machine; requests per second are what one worker got of this machine meanwhile. The
ratios compare runs that follow each other, and the range is that of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import load
import systems

PROMPT: Final = "The quick brown fox, number 12, jumps over the lazy dog. " * 8
BODY: Final[dict[str, object]] = {"model": "hermes-2", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}
CONNECTIONS: Final = (1, 16, 128)
CELLS: Final = tuple((kind, connections) for kind in ("static", "stream") for connections in CONNECTIONS)
EDGE_ROUNDS: Final = 3

CELL_SECONDS: Final = 2.5
DIRECT_SECONDS: Final = 1.0
WARM_REQUESTS: Final = 200
QUANTILES: Final = (50, 95, 99)


@dataclass
class Runs:
    """All runs of one system at one kind of request and number of connections."""

    outcome: load.Outcome = field(default_factory=load.Outcome)
    requests_per_second: list[float] = field(default_factory=list)
    cpu_milliseconds: list[float] = field(default_factory=list)


def target(system: systems.System, kind: str) -> load.Target:
    """Say where and how a system is asked."""
    body = BODY | ({"stream": True} if kind == "stream" else {})
    return load.Target(port=system.port, key=system.key, body=body, address=system.address, source=system.source)


def ask(system: systems.System, kind: str, connections: int, seconds: float, runs: Runs) -> None:
    """Run once."""
    used = system.cpu_seconds()
    outcome = load.run(target(system, kind), connections=connections, seconds=seconds)
    used = system.cpu_seconds() - used
    if outcome.failures or not outcome.whole:
        raise SystemExit(f"{system.name}, {kind}, {connections} at a time: not answered with 200: {outcome.failures[:3]}")
    runs.outcome.add(outcome)
    runs.requests_per_second.append(len(outcome.whole) / outcome.seconds)
    runs.cpu_milliseconds.append(used / len(outcome.whole) * 1000)


def milliseconds(times: Sequence[float], percent: int) -> float:
    """Take a quantile of times in seconds."""
    return sorted(times)[min(len(times) - 1, len(times) * percent // 100)] * 1000


def summary(runs: Runs, direct: Runs, workers: int) -> dict[str, Any]:
    """Put what matters of the runs in numbers."""
    return {
        "requests": len(runs.outcome.whole),
        "requests_per_second_and_worker": statistics.median(runs.requests_per_second) / workers,
        "cpu_milliseconds": statistics.median(runs.cpu_milliseconds),
        "added_milliseconds": {f"p{q}": milliseconds(runs.outcome.whole, q) - milliseconds(direct.outcome.whole, q) for q in QUANTILES},
        "added_first_byte_milliseconds": {
            f"p{q}": milliseconds(runs.outcome.first, q) - milliseconds(direct.outcome.first, q) for q in QUANTILES
        },
    }


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Compare two systems round by round."""
    ratios = [mine / other for mine, other in zip(over, under, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def compare(backend: systems.System, ours: systems.System, stock: systems.System, rounds: int, workers: int) -> dict[str, Any]:
    """Ask the two in turn, each first in every other round."""
    for system in (stock, ours):
        for kind in ("static", "stream"):
            load.run(target(system, kind), connections=8, seconds=20, requests=WARM_REQUESTS)
    runs = {(system.name, *cell): Runs() for cell in CELLS for system in (backend, stock, ours)}
    for number in range(rounds):
        for kind, connections in CELLS:
            ask(backend, kind, connections, DIRECT_SECONDS, runs[backend.name, kind, connections])
            for system in (stock, ours) if number % 2 == 0 else (ours, stock):
                ask(system, kind, connections, CELL_SECONDS, runs[system.name, kind, connections])
    found: dict[str, Any] = {}
    for kind, connections in CELLS:
        direct, first, second = (runs[system.name, kind, connections] for system in (backend, stock, ours))
        found[f"{kind} {connections}"] = {
            "stock": summary(first, direct, workers),
            "ours": summary(second, direct, workers),
            "requests_per_second_ratio": ratio(second.requests_per_second, first.requests_per_second),
            "cpu_ratio": ratio(first.cpu_milliseconds, second.cpu_milliseconds),
            "load_generator_requests_per_second": statistics.median(direct.requests_per_second),
        }
    return found


def measure_edge(backend: systems.System, through: systems.System) -> dict[str, Any]:
    """Ask the model server directly and through the edge in turn."""
    found: dict[str, Any] = {}
    for connections in CONNECTIONS:
        direct, edge = Runs(), Runs()
        for _ in range(EDGE_ROUNDS):
            ask(backend, "static", connections, DIRECT_SECONDS, direct)
            ask(through, "static", connections, DIRECT_SECONDS, edge)
        found[f"static {connections}"] = {
            "edge": summary(edge, direct, 1),
            "load_generator_requests_per_second": statistics.median(direct.requests_per_second),
        }
    return found


def print_tables(found: dict[str, Any]) -> None:
    """Print what a person reads."""
    print(f"{'':<12}| req/s per worker  | CPU ms per request  | added ms, p50 / p95 / p99                    | to the first byte, p50")
    print(f"{'':<12}|   stock     ours  |   stock     ours    | stock                  ours                  |   stock     ours")
    for cell, each in found["gateways"].items():
        stock, ours = each["stock"], each["ours"]
        added = [" / ".join(f"{one['added_milliseconds'][f'p{q}']:.0f}" for q in QUANTILES) for one in (stock, ours)]
        first = [one["added_first_byte_milliseconds"]["p50"] for one in (stock, ours)]
        rates = [one["requests_per_second_and_worker"] for one in (stock, ours)]
        cpu = [one["cpu_milliseconds"] for one in (stock, ours)]
        print(
            f"{cell:<12}| {rates[0]:7.1f}  {rates[1]:7.1f}  | {cpu[0]:7.1f}  {cpu[1]:7.1f}    |  {added[0]:<20}  {added[1]:<20}"
            f"|  {first[0]:7.0f}  {first[1]:7.0f}"
        )
    print("\nours to stock, median of the rounds (least to most):")
    for cell, each in found["gateways"].items():
        rate, cpu = each["requests_per_second_ratio"], each["cpu_ratio"]
        print(
            f"{cell:<12} requests per second {rate['median']:.2f} ({rate['least']:.2f} to {rate['most']:.2f}), "
            f"CPU per request less by a factor of {cpu['median']:.2f} ({cpu['least']:.2f} to {cpu['most']:.2f})"
        )
    print("\nmemory, anonymous MiB at rest after the start, and after the run:")
    for name, memory in found["memory"].items():
        print(f"{name:<12} " + ", ".join(f"{each['anonymous_bytes'] / systems.MIB:.0f}" for each in memory["processes"]))
    print("\nthe edge alone:")
    for cell, each in found["edge"].items():
        edge, alone = each["edge"], each["load_generator_requests_per_second"]
        added = " / ".join(f"{edge['added_milliseconds'][f'p{q}']:.2f}" for q in QUANTILES)
        print(
            f"{cell:<12} adds {added} ms (p50 / p95 / p99), {edge['cpu_milliseconds'] * 1000:.0f} µs of CPU per request, "
            f"{edge['requests_per_second_and_worker']:.0f} requests/s; the load generator without it {alone:.0f}"
        )
    before, after = ([round(value, 1) for value in each] for each in found["load_average"])
    print(f"\nload average before and after: {before} and {after}; {found['seconds']:.0f} s")


def main() -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of each gateway at each load")
    parser.add_argument("--workers", type=int, default=1, help="of each gateway")
    parser.add_argument("--output", type=Path, default=systems.PROJECT / "build" / "gateway-speed.json", help="where the JSON goes")
    options = parser.parse_args()
    began, load_before = time.monotonic(), os.getloadavg()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = stack.enter_context(systems.model_server(folder))
        with systems.edge(folder / "edge", backend) as through:
            edge = measure_edge(backend, through)
        stock = stack.enter_context(systems.stock(folder / "stock", backend, workers=options.workers))
        ours = stack.enter_context(systems.ours(folder / "ours", backend, workers=options.workers))
        memory = {f"{system.name}, start": system.memory() for system in (stock, ours)}
        gateways = compare(backend, ours, stock, options.rounds, options.workers)
        memory |= {f"{system.name}, end": system.memory() for system in (stock, ours)}
    found = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "workers": options.workers,
        "rounds": options.rounds,
        "load_average": [load_before, os.getloadavg()],
        "seconds": time.monotonic() - began,
        "gateways": gateways,
        "memory": memory,
        "edge": edge,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print_tables(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
