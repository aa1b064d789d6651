"""What holds for any inventory and any host, found by hypothesis: whatever is planned is sound, whatever is suggested plans.

The first property alone has 2,000 examples, all of them together some 3,000.
"""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from citadel_plan import PlanError, api, plan
from citadel_plan.cpus import deal_cores
from citadel_plan.id_lists import format_ids, parse_ids
from citadel_plan.inputs import WeightFormat
from citadel_plan.memory import WEIGHT_ELEMENT_BYTES_PERCENT
from unit.plan_examples import GIB, HOST, MIB, host_facts, need_bytes, production_models, with_suggestion
from unit.plan_examples import settings as plan_settings

TEMPLATES = production_models()

relaxed = settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large])


def made_up_architecture(choice: random.Random) -> dict[str, Any]:
    """Make a model of one of the families, of any size from tiny to beyond Mixtral's."""
    template = TEMPLATES[choice.choice(sorted(TEMPLATES))]["architecture"]
    if choice.random() < 0.5:
        return dict(template)
    heads = choice.choice([2, 8, 12, 32])
    kv_heads = choice.choice([count for count in (1, 2, 4, 8, 32) if heads % count == 0])
    layers, hidden, head_dim = choice.randint(1, 40), choice.choice([64, 1024, 3072, 4096]), choice.choice([32, 80, 96, 128])
    intermediate, vocabulary = hidden * choice.randint(2, 4), choice.choice([512, 32000, 128256])
    experts = choice.choice([0, 0, 4, 8])
    feed_forward = 3 * hidden * intermediate * max(1, experts)
    return {
        **template,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "experts": experts,
        "experts_per_token": 2 if experts else 0,
        "vocabulary": vocabulary,
        "intermediate": intermediate,
        "sliding_window_tokens": choice.choice([None, 1, 2047, 4096]),
        "native_context_tokens": 32768,
        "linear_parameters": layers * (feed_forward + hidden * head_dim * (2 * heads + 2 * kv_heads)),
        "other_parameters": 2 * vocabulary * hidden + layers * 2 * hidden,
    }


def made_up_model(seed: int) -> dict[str, Any]:
    """Make an architecture with one to five variants in any order, with weights as its parameters make them."""
    choice = random.Random(seed)  # noqa: S311 - it makes examples
    architecture = made_up_architecture(choice)
    names = choice.sample(["bf16", "int8", "int4", "int4-kv8", "fp8"], choice.randint(1, 5))
    if "bf16" not in names and choice.random() < 0.95:
        names.append("bf16")
    found = []
    for name in names:
        weight_format = WeightFormat(name.split("-")[0])
        linear = architecture["linear_parameters"] * WEIGHT_ELEMENT_BYTES_PERCENT[weight_format] // 100
        found.append(
            {
                "name": name,
                "weight_format": weight_format.value,
                "weights_bytes": linear + 2 * architecture["other_parameters"],
                "kv_cache_dtype": "fp8" if name.endswith("kv8") else "auto",
                "source": {"type": "host_folder", "path": f"/data/{name}"},
            }
        )
    return {
        "description": "A model",
        "specialisation": ["anything"],
        "modes": ["chat"],
        "architecture": architecture,
        "variants": found,
    }


MODELS = [made_up_model(seed) for seed in range(80)]
"""Drawn from instead of drawn each time, which would take longer than what is tested."""


def pins(choice: int, model: dict[str, Any]) -> dict[str, Any]:
    """Pin something in a third of the models."""
    pin: dict[str, Any] = {}
    choice, kind = divmod(choice, 12)
    if kind in {8, 9}:
        pin["variant"] = model["variants"][choice % len(model["variants"])]["name"]
    if kind in {9, 10}:
        pin["memory"] = f"{2 + choice % 50}GiB"
    if kind == 11:
        pin["cpu_set"] = str(choice % 6)
    return pin


@st.composite
def inventories(draw: st.DrawFn, largest: int = 6) -> dict[str, Any]:
    """Draw one to six models with requests of any size, some with pins, some left out."""
    models: dict[str, Any] = {}
    most = draw(st.sampled_from([10, 40, 120]))
    for number in draw(st.lists(st.integers(0, 40), min_size=1, max_size=largest, unique=True)):
        model = draw(st.sampled_from(MODELS))
        choice = draw(st.integers(0, 2**20))
        seqs = 1 + choice % 4
        request = {
            "port": 11400 + number,
            "memory": f"{draw(st.integers(2, most))}GiB",
            "cpus": 1 + choice % 12,
            "context_tokens": (512, 1000, 2048, 4096)[choice // 12 % 4],
            "storage": "10GiB",
            "target_latency_milliseconds": 1000,
        }
        models[f"model-{number}"] = {
            **model,
            "enabled": choice // 48 % 12 != 11,
            "request": request,
            "min_num_seqs": seqs,
            "max_num_seqs": seqs + choice // 576 % 20,
            "pin": pins(choice // 11520, model),
        }
    return models


@st.composite
def hosts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a host of any size: nodes even or not, some of memory only, threads in either order or none, cards or none."""
    nodes = draw(st.sampled_from([1, 1, 2, 2, 4]))
    cores = nodes * draw(st.integers(1, 16))
    facts = host_facts(
        memory_gib=draw(st.sampled_from([256, 125.6, 512, 64, 48, 24, 1024])),
        cores=cores,
        nodes=nodes,
        isa=draw(st.sampled_from(["amx", "avx512", "avx2"])),
        gpus_gib=tuple(draw(st.lists(st.sampled_from([24, 48, 79.6]), max_size=4))) if draw(st.booleans()) else (),
    )
    if nodes > 1 and draw(st.booleans()):
        parts = draw(st.lists(st.integers(1, 9), min_size=nodes, max_size=nodes))
        for node, part in zip(facts["numa_nodes"], parts, strict=True):
            node["memory_bytes"] = facts["memory_bytes"] * part // sum(parts)
    if nodes > 1 and draw(st.integers(0, 4)) == 0:
        # The last node's memory stays, its CPUs are the first one's.
        first, last = facts["numa_nodes"][0], facts["numa_nodes"][-1]
        first["cpus"], last["cpus"] = f"{first['cpus']},{last['cpus']}", ""
    if cores % 2 == 0 and nodes == 1 and draw(st.booleans()):
        apart = draw(st.booleans())
        pairs = [(core, core + cores // 2) if apart else (2 * core, 2 * core + 1) for core in range(cores // 2)]
        facts["thread_siblings"] = [f"{one},{other}" for one, other in pairs]
    return facts


policies = st.sampled_from(["rebalance", "rebalance", "strict"])


def planned(models: object, facts: object, policy: str) -> dict[str, Any] | None:
    """Plan without asking for suggestions, of which other properties speak."""
    try:
        with patch.object(api, "suggest", return_value=()):
            return plan(models, overrides=None, host=HOST, host_facts=facts, settings=plan_settings(policy=policy)).to_dict()
    except PlanError:
        return None


def expand(cpu_set: str) -> set[int]:
    return set(parse_ids(cpu_set))


def assert_memory_holds(result: dict[str, Any], models: dict[str, Any], facts: dict[str, Any]) -> None:
    services, gateway = result["services"], result["gateway"]
    assert sum(entry["memory_max_bytes"] for entry in [*services, gateway]) <= facts["memory_bytes"] - 6 * GIB
    for service in services:
        model = models[service["name"]]
        parts = [service[f"{part}_bytes"] for part in ("weights", "kv_cache", "runtime", "headroom")]
        assert service["memory_max_bytes"] == sum(parts)
        assert min(parts) >= 0
        assert parts[3] > 0
        assert service["memory_max_bytes"] % MIB == 0
        assert model["min_num_seqs"] <= service["max_num_seqs"] <= model["max_num_seqs"]
        pin = model["pin"]
        if result["policy"] == "strict" and "memory" not in pin:
            assert service["memory_max_bytes"] == service["memory_requested_bytes"]
        if "memory" in pin:
            assert service["memory_max_bytes"] == int(pin["memory"].removesuffix("GiB")) * GIB
        assert service["variant"] == pin.get("variant", service["variant"])


def assert_loads_hold(result: dict[str, Any], models: dict[str, Any]) -> None:
    """A load takes its most before the KV cache is there: weights, processes, and one module twice. It stays below the service's limit.

    With the limits within the host and within each node, no load meets another, so all may run at once.
    """
    for service in result["services"]:
        architecture = models[service["name"]]["architecture"]
        (weight_format,) = {entry["weight_format"] for entry in models[service["name"]]["variants"] if entry["name"] == service["variant"]}
        module = 2 * architecture["intermediate"] * architecture["hidden"] * max(1, architecture["experts"])
        twice = module * {"bf16": 200, "int8": 100, "fp8": 100, "int4": 52}[weight_format] // 100
        assert service["weights_bytes"] + service["runtime_bytes"] + twice <= service["memory_max_bytes"]


def assert_nodes_hold(result: dict[str, Any], facts: dict[str, Any]) -> None:
    nodes = facts["numa_nodes"]
    if len(nodes) == 1:
        return
    together = sum(node["memory_bytes"] for node in nodes)
    for node in nodes:
        held = sum(service["memory_max_bytes"] for service in result["services"] if service["numa_nodes"][0] == node["id"])
        assert held <= node["memory_bytes"] - 6 * GIB * node["memory_bytes"] // together


def assert_cards_hold(result: dict[str, Any], facts: dict[str, Any]) -> None:
    for gpu in facts["gpus"]:
        here = [service for service in result["services"] if gpu["id"] in service["gpu_ids"]]
        assert sum(round(service["gpu_memory_utilization"] * 1000) for service in here) <= 950
        assert sum(service["gpu"]["memory_bytes"] // len(service["gpu_ids"]) for service in here) <= gpu["memory_bytes"] * 95 // 100
    for service in result["services"]:
        gpu = service["gpu"]
        assert gpu["memory_bytes"] == sum(gpu[f"{part}_bytes"] for part in ("weights", "kv_cache", "runtime", "headroom"))
        assert gpu["headroom_bytes"] >= 0
        assert len({facts["gpus"][gpu_id]["memory_bytes"] for gpu_id in service["gpu_ids"]}) == 1


def assert_cpus_hold(result: dict[str, Any], models: dict[str, Any], facts: dict[str, Any]) -> None:
    entries = [*result["services"], result["gateway"]]
    everything = set(facts["cpus"])
    sets = {entry["name"]: expand(entry["cpu_set"]) for entry in entries}
    assert all(each and each <= everything for each in sets.values())
    exclusive = [entry["name"] for entry in entries if entry["cpus_exclusive"]]
    for name in exclusive:
        assert all(sets[name].isdisjoint(sets[other]) for other in sets if other != name)
    for core in (expand(text) for text in facts.get("thread_siblings", [])):
        for name, each in sets.items():
            pinned = name in models and "cpu_set" in models[name]["pin"]
            assert pinned or core <= each or not core & each
    home = {cpu: node["id"] for node in facts["numa_nodes"] if node["cpus"] for cpu in expand(node["cpus"])}
    for service in result["services"]:
        pin = models[service["name"]]["pin"].get("cpu_set")
        assert pin is None or service["cpu_set"] == pin
        assert {home[cpu] for cpu in sets[service["name"]]} <= set(service["numa_nodes"])
        if result["device"] == "cpu":
            bound = expand(service["omp_threads_bind"])
            assert len(bound) == service["omp_num_threads"] > 0
            assert (service["omp_places"] is None) == service["cpus_exclusive"]
            assert service["omp_places"] is None or set(map(int, service["omp_places"].strip("{}").split(","))) == bound
            assert bound <= sets[service["name"]]
            # The lowest thread computes where the memory is, unless the node has no core at all for the service.
            at_home = [cpu for cpu in sets[service["name"]] if home[cpu] == service["numa_nodes"][0]]
            assert at_home or not service["cpus_exclusive"]
            assert not at_home or min(bound) in at_home


@settings(relaxed, max_examples=2000)
@given(models=inventories(), facts=hosts(), policy=policies)
def test_a_plan_never_gives_more_than_there_is(models: dict[str, Any], facts: dict[str, Any], policy: str) -> None:
    result = planned(models, facts, policy)
    if result is None:
        return
    services = result["services"]
    ports = [port for service in services for port in (service["api_port"], service["state_port"], service["upstream_port"])]
    assert len(set(ports)) == len(ports)
    assert [service["api_port"] for service in services] == sorted(service["api_port"] for service in services)
    assert_memory_holds(result, models, facts)
    assert_cpus_hold(result, models, facts)
    if result["device"] == "cpu":
        assert_loads_hold(result, models)
        assert_nodes_hold(result, facts)
    else:
        assert_cards_hold(result, facts)


def shuffled(value: object, order: random.Random) -> object:
    if isinstance(value, list):
        return [shuffled(item, order) for item in value]
    if not isinstance(value, dict):
        return value
    keys = list(value)
    order.shuffle(keys)
    return {key: shuffled(value[key], order) for key in keys}


@settings(relaxed, max_examples=200)
@given(models=inventories(), facts=hosts(), policy=policies, seed=st.integers(0, 2**32))
def test_the_same_input_gives_the_same_bytes_in_any_order(models: dict[str, Any], facts: dict[str, Any], policy: str, seed: int) -> None:
    def bytes_of(*given_models: object) -> str:
        try:
            with patch.object(api, "suggest", return_value=()):
                made = plan(
                    *given_models, overrides={}, host=HOST, host_facts=other, settings=shuffled(plan_settings(policy=policy), order)
                )
        except PlanError as error:
            return str(error)
        return json.dumps(made.to_dict())

    order = random.Random(seed)  # noqa: S311 - it shuffles keys
    other = facts
    one = bytes_of(models)
    other = shuffled(facts, order)
    assert one == bytes_of(shuffled(models, order))


@settings(relaxed, max_examples=150)
@given(models=inventories(), facts=hosts())
def test_planning_what_was_planned_changes_nothing(models: dict[str, Any], facts: dict[str, Any]) -> None:
    first = planned(models, facts, "rebalance")
    assume(first is not None)
    assert first is not None
    # The second run meets the listeners of the first.
    own = [
        {"address": "127.0.0.1", "port": service[key], "unit": unit}
        for service in first["services"]
        for key, unit in (("api_port", service["unit"]), ("state_port", "citadel-state.service"), ("upstream_port", "haproxy.service"))
    ]
    assert planned(models, {**facts, "listening_ports": facts["listening_ports"] + own}, "rebalance") == first
    # What was decided, written down as pins, is decided again.
    pinned = {
        name: {**model, "pin": {**model["pin"], "variant": service["variant"], "memory": f"{service['memory_max_bytes'] // MIB}MiB"}}
        for name, model in models.items()
        for service in [next((entry for entry in first["services"] if entry["name"] == name), None)]
        if service is not None
    }
    second = planned(pinned, facts, "rebalance")
    assert second is not None
    keys = ("variant", "memory_max_bytes", "max_num_seqs", "kv_cache_bytes")
    assert [[entry[key] for key in keys] for entry in second["services"]] == [[entry[key] for key in keys] for entry in first["services"]]


@settings(relaxed, max_examples=600)
@given(models=inventories(), facts=hosts(), policy=policies, more=st.lists(st.integers(0, 64), min_size=4, max_size=4))
def test_more_memory_never_turns_a_plan_into_a_refusal(models: dict[str, Any], facts: dict[str, Any], policy: str, more: list[int]) -> None:
    larger = {
        **facts,
        "numa_nodes": [
            {**node, "memory_bytes": node["memory_bytes"] + gib * GIB} for node, gib in zip(facts["numa_nodes"], more, strict=False)
        ],
        "gpus": [{**gpu, "memory_bytes": gpu["memory_bytes"] + more[0] * GIB} for gpu in facts["gpus"]],
    }
    larger["memory_bytes"] += sum(more) * GIB
    if planned(models, facts, policy) is not None:
        assert planned(models, larger, policy) is not None


NEEDS = {
    name: [need_bytes(name, variant["name"]) for variant in TEMPLATES[name]["variants"]]
    for name in ("hermes-2", "openchat-3.5", "phi-3-mini")
}


@st.composite
def tight_nodes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """Draw nodes that the services hardly fit, and what each service must have by the rule of the design."""
    count = draw(st.integers(2, 6))
    names = [draw(st.sampled_from(sorted(NEEDS))) for _ in range(count)]
    most = draw(st.sampled_from([20, 60]))
    sizes = [draw(st.integers(9, most)) for _ in range(count)]  # enough for the smallest variant of each
    exact = draw(st.booleans())
    models = {
        f"model-{number}": {
            **TEMPLATES[name],
            "request": {**TEMPLATES[name]["request"], "port": 11400 + 2 * number, "memory": f"{size}GiB", "cpus": 1},
            "pin": {"memory": f"{size}GiB"} if exact else {},
        }
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    }
    # The first variant that fits the request, best quality first; where none does, the smallest.
    floors = [
        size * GIB if exact else next((need for need in NEEDS[name] if need <= size * GIB), min(NEEDS[name]))
        for name, size in zip(names, sizes, strict=True)
    ]
    nodes = draw(st.integers(2, 3))
    owner = [draw(st.integers(0, nodes - 1)) for _ in range(count)]
    facts = host_facts(memory_gib=1024, cores=8 * nodes, nodes=nodes)
    for node in facts["numa_nodes"]:
        full = sum(floor for floor, index in zip(floors, owner, strict=True) if index == node["id"])
        node["memory_bytes"] = max(4, full // GIB + draw(st.integers(0, 3))) * GIB
    return models, facts, floors


def rooms(facts: dict[str, Any]) -> list[int]:
    memory = [node["memory_bytes"] for node in facts["numa_nodes"]]
    return [size - -(-6 * GIB * size // sum(memory)) for size in memory]


@settings(relaxed, max_examples=400)
@given(inputs=tight_nodes(), more=st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_nodes_are_planned_exactly_where_there_is_a_way(inputs: tuple[dict[str, Any], dict[str, Any], list[int]], more: list[int]) -> None:
    models, facts, floors = inputs
    larger = {
        **facts,
        "numa_nodes": [
            {**node, "memory_bytes": node["memory_bytes"] + gib * GIB} for node, gib in zip(facts["numa_nodes"], more, strict=False)
        ],
    }
    for each in (facts, larger):
        there_is_a_way = any(
            all(
                sum(floor for floor, index in zip(floors, homes, strict=True) if index == node) <= room
                for node, room in enumerate(rooms(each))
            )
            for homes in product(range(len(each["numa_nodes"])), repeat=len(floors))
        )
        result = planned(models, each, "rebalance")
        assert (result is not None) == there_is_a_way
        if result is not None:
            assert_nodes_hold(result, each)


@settings(relaxed, max_examples=250)
@given(models=inventories(largest=4), facts=hosts(), policy=policies)
def test_every_suggestion_plans(models: dict[str, Any], facts: dict[str, Any], policy: str) -> None:
    assume(planned(models, facts, policy) is None)
    changed = plan_settings(policy=policy)
    try:
        plan(models, overrides=None, host=HOST, host_facts=facts, settings=changed)
    except PlanError as refusal:
        for suggestion in refusal.suggestions:
            overrides, suggested = with_suggestion(suggestion, None, changed)
            assert plan(models, overrides=overrides, host=HOST, host_facts=facts, settings=suggested)


@given(requests=st.lists(st.integers(1, 64), min_size=1, max_size=20), spare=st.integers(0, 300))
def test_dealing_gives_everybody_a_core_and_nobody_more_than_asked(requests: list[int], spare: int) -> None:
    available = len(requests) + spare
    dealt = deal_cores(requests, available)
    assert sum(dealt) == min(available, sum(requests))
    assert all(1 <= got <= asked for got, asked in zip(dealt, requests, strict=True))
    # With one core more nobody gets less.
    assert all(more >= got for more, got in zip(deal_cores(requests, available + 1), dealt, strict=True))


@given(ids=st.sets(st.integers(0, 500), min_size=1))
def test_lists_of_ids_survive_a_round_trip(ids: set[int]) -> None:
    assert set(parse_ids(format_ids(ids))) == ids


@given(memory_mib=st.integers(2300, 65536), seqs=st.integers(1, 64))
def test_a_larger_grant_never_holds_fewer_sequences(memory_mib: int, seqs: int) -> None:
    models = {"phi-3-mini": {**TEMPLATES["phi-3-mini"], "min_num_seqs": 1, "max_num_seqs": seqs, "pin": {"variant": "int4-kv8"}}}
    found = []
    for granted in (memory_mib, memory_mib + 500):
        models["phi-3-mini"]["request"] = {**models["phi-3-mini"]["request"], "memory": f"{granted}MiB"}
        result = planned(models, host_facts(), "rebalance")
        assert result is not None
        found.append(result["services"][0]["max_num_seqs"])
        assert result["services"][0]["memory_max_bytes"] >= granted * MIB
    assert found[0] <= found[1]
