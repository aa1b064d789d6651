"""How long the gateway takes to decide about a request, with the rules of the inventory and prompts of several sizes.

    .venv/bin/python benchmarks/routing_speed.py

Two parts stand apart: measuring the request, which grows with its prompt up to a bound, and the decision. "of the JSON" is what both
cost relative to reading the request's body, which every gateway does. Each figure is the best of several runs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "roles" / "gateway" / "files"))

from citadel_request import read_demand  # noqa: E402 - the modules are used as they are copied to a host
from citadel_routing import decide, load_rules, read_state  # noqa: E402 - the same

CONTEXTS = {"mixtral-8x7b": 32768, "hermes-2": 8192, "openchat-3.5": 4096, "phi-3-mini": 2048}
WORDS = "The quick brown fox, number 12, jumps over the lazy dog.\n"
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
TARGET_MILLISECONDS = 1.0
ROUNDS = 50


def rules() -> Any:  # noqa: ANN401 - the module's own
    """Read the rules of the inventory as the gateway reads them."""
    variables = yaml.safe_load((PROJECT / "inventory/group_vars/all/gateway.yml").read_text(encoding="utf-8"))
    document = {
        "upstreams": [
            {"model": name, "api_base": "http://127.0.0.1:1/v1", "context_tokens": tokens, "modes": ["chat", "completion"]}
            for name, tokens in CONTEXTS.items()
        ],
        "rules": variables["gateway_routing_rules"],
        "fallbacks": variables["gateway_fallbacks"],
        "longer_models": variables["gateway_longer_models"],
        "answer_reserve_tokens": 256,
        "longest_token_characters": 16,
        "retry_after_seconds": 5,
        "edge_state_url": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "routing.json"
        file.write_text(json.dumps(document), encoding="utf-8")
        return load_rules(file)


def milliseconds(work: Callable[[], object]) -> float:
    """Time the best of several runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


def main() -> int:
    """Print all figures; 1 where a request takes longer than is aimed at."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, best of {ROUNDS}")
    chosen_by = rules()
    state = read_state({"models": {name: {"breaker": "closed", "running": 1, "queued": 0, "places": 4} for name in CONTEXTS}})
    texts = {size: (WORDS * (size // len(WORDS) + 1))[:size] for size in SIZES}
    bodies = {f"{size} characters": {"messages": [{"role": "user", "content": text}]} for size, text in texts.items()}
    bodies["1000000, not ASCII"] = {"messages": [{"role": "user", "content": "Größe " * 166_667}]}
    bodies["200 messages of 1000"] = {"messages": [{"role": "user", "content": texts[1_000]}] * 200}
    longest = 0.0
    for name, body in bodies.items():
        demand = read_demand(body, chat=True, longest_token_characters=16)
        measuring = milliseconds(lambda body=body: read_demand(body, chat=True, longest_token_characters=16))
        deciding = milliseconds(lambda demand=demand: decide(chosen_by, demand, named=None, state=state, permitted=None))
        text = json.dumps(body)
        reading = milliseconds(lambda text=text: json.loads(text))
        both = measuring + deciding
        longest = max(longest, both)
        print(f"{name:>22}: measured in {measuring:6.3f} ms, decided in {deciding:6.3f} ms, {both / reading:6.2f} of the JSON")
    met = longest <= TARGET_MILLISECONDS
    print(f"{longest:.3f} ms at most, aimed at {TARGET_MILLISECONDS} ms: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
