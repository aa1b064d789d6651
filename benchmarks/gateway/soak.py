"""Many requests to LiteLLM as the role gateway runs it: what a worker's memory does, and what clients notice when workers are replaced.

    .venv/bin/python benchmarks/gateway/soak.py                        24,000 requests, about ten minutes
    .venv/bin/python benchmarks/gateway/soak.py --requests 2000

First the growth: one worker without a bound on its memory, half of the requests streams. Then the replacements: with a bound that is
already reached, each worker is replaced as soon as its own replacement is warm, under the same load, so often as `--replacements` says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import load
import systems
from speed import BODY, milliseconds, target

CONNECTIONS: Final = 8
SAMPLES: Final = 48
WARM_SHARE: Final = 0.25
LONGEST_SECONDS: Final = 3000.0
AFTER_SECONDS: Final = 2.0
TAKEN: Final = "takes its place"


def worker_bytes(system: systems.System) -> int:
    """Anonymous memory of the largest process: with one worker, the worker's."""
    return int(system.memory()["processes"][0]["anonymous_bytes"])


def growth(folder: Path, backend: systems.System, requests: int) -> dict[str, Any]:
    """Send the requests in equal parts, every other one streams, and look at the memory after each."""
    samples: list[tuple[int, int]] = []
    sent, failures = 0, 0
    began = time.monotonic()
    with systems.ours(folder, backend, workers=1) as ours:
        first = load.run(target(ours, "static"), connections=1, seconds=60, requests=1).whole[0]
        later = statistics.median(load.run(target(ours, "static"), connections=1, seconds=60, requests=20).whole)
        samples.append((0, worker_bytes(ours)))
        for number in range(SAMPLES):
            kind = "stream" if number % 2 else "static"
            outcome = load.run(target(ours, kind), connections=CONNECTIONS, seconds=LONGEST_SECONDS / SAMPLES, requests=requests // SAMPLES)
            sent, failures = sent + len(outcome.whole) + len(outcome.failures), failures + len(outcome.failures)
            samples.append((sent, worker_bytes(ours)))
    warm = [sample for sample in samples if sample[0] >= WARM_SHARE * sent]
    slope = statistics.linear_regression(*zip(*warm, strict=True)).slope
    return {
        "requests": sent,
        "failures": failures,
        "seconds": time.monotonic() - began,
        "first_request_milliseconds": first * 1000,
        "later_requests_milliseconds": later * 1000,
        "samples": samples,
        "bytes_per_thousand_requests": slope * 1000,
    }


def replacements(folder: Path, backend: systems.System, wanted: int) -> dict[str, Any]:
    """Keep asking, a connection per request as the edge does, while workers come and go."""
    log = folder / "log" / "unified-api-gateway" / "unified-api-gateway.log"
    with systems.ours(folder, backend, workers=1, worker_memory_max_bytes=1) as ours:
        at = load.Target(port=ours.port, key=ours.key, body=BODY, fresh=True)
        taken: list[float] = []
        done = threading.Event()

        def watch() -> None:
            while len(taken) < wanted and not done.is_set():
                if log.read_text(encoding="utf-8").count(TAKEN) > len(taken):
                    taken.append(time.perf_counter())
                done.wait(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        outcome, after, rest = load.Outcome(), [], []
        began = time.monotonic()
        while watcher.is_alive() and time.monotonic() - began < LONGEST_SECONDS:
            started = time.perf_counter()
            part = load.run(at, connections=CONNECTIONS, seconds=AFTER_SECONDS / 2)
            just_taken = any(started - AFTER_SECONDS < moment < time.perf_counter() for moment in taken)
            (after if just_taken else rest).extend(part.whole)
            outcome.add(part)
        done.set()
        watcher.join()
    return {
        "replacements": len(taken),
        "requests": len(outcome.whole) + len(outcome.failures),
        "failures": outcome.failures,
        "milliseconds_after_a_replacement": _quantiles(after),
        "milliseconds_at_other_times": _quantiles(rest),
    }


def _quantiles(times: list[float]) -> dict[str, float]:
    return {f"p{percent}": milliseconds(times, percent) for percent in (50, 99, 100)} if times else {}


def main() -> int:
    """Print what was found; 1 where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24_000, help="of the growth")
    parser.add_argument("--replacements", type=int, default=5, help="workers that are replaced under load")
    parser.add_argument("--output", type=Path, default=systems.PROJECT / "build" / "gateway-soak.json", help="where the JSON goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, systems.model_server(Path(name)) as backend:
        found = {
            "load_average": os.getloadavg(),
            "replacements": replacements(Path(name) / "replacements", backend, options.replacements),
            "growth": growth(Path(name) / "growth", backend, options.requests),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    grown, replaced = found["growth"], found["replacements"]
    mebibytes = [f"{held / systems.MIB:.0f}" for _, held in grown["samples"]]
    print(f"{grown['requests']} requests in {grown['seconds']:.0f} s, {grown['failures']} failed; MiB of the worker: {' '.join(mebibytes)}")
    print(f"slope after a quarter: {grown['bytes_per_thousand_requests'] / 1024:.0f} KiB per 1000 requests")
    print(f"{replaced['replacements']} workers replaced during {replaced['requests']} requests, {len(replaced['failures'])} failed")
    print(
        f"first request after the start {grown['first_request_milliseconds']:.1f} ms, "
        f"median of those after it {grown['later_requests_milliseconds']:.1f} ms"
    )
    print(f"ms within {AFTER_SECONDS:g} s of a replacement {replaced['milliseconds_after_a_replacement']}")
    print(f"ms at other times {replaced['milliseconds_at_other_times']}")
    return 1 if replaced["failures"] or grown["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
