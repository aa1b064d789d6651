"""What holds for any inventory and any host that can be planned, found by hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from citadel_plan import PlanError, plan
from citadel_plan.cpus import deal_cores
from citadel_plan.id_lists import format_ids, parse_ids
from unit.plan_examples import GIB, HOST, MIB, host_facts, production_models
from unit.plan_examples import settings as plan_settings

TEMPLATES = production_models()


def expand(cpu_set: str) -> set[int]:
    return set(parse_ids(cpu_set))


@st.composite
def inventories(draw: st.DrawFn) -> dict[str, Any]:
    """Draw one to six models of the catalogue's architectures, with requests of any size."""
    models: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 6))):
        template = TEMPLATES[draw(st.sampled_from(sorted(TEMPLATES)))]
        request = {
            **template["request"],
            "port": draw(st.integers(11400, 11440)),
            "memory": f"{draw(st.integers(2, 120))}GiB",
            "cpus": draw(st.integers(1, 12)),
            "context_tokens": draw(st.sampled_from([512, 1000, 2048, 4096])),
        }
        seqs = draw(st.integers(1, 4))
        models[f"model-{number}"] = {**template, "request": request, "min_num_seqs": seqs, "max_num_seqs": seqs + draw(st.integers(0, 20))}
    return models


@st.composite
def hosts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a host of any size, with threads or without, on one to four nodes, with cards or without."""
    nodes = draw(st.sampled_from([1, 1, 2, 4]))
    cores = nodes * draw(st.integers(1, 16))
    facts = host_facts(
        memory_gib=draw(st.sampled_from([24, 64, 125.6, 256, 512, 1024])),
        cores=cores,
        nodes=nodes,
        isa=draw(st.sampled_from(["avx2", "avx512", "amx"])),
        gpus_gib=tuple(draw(st.lists(st.sampled_from([24, 48, 79.6]), max_size=4))) if draw(st.booleans()) else (),
    )
    if cores % 2 == 0 and nodes == 1 and draw(st.booleans()):
        facts["thread_siblings"] = [f"{core},{core + cores // 2}" for core in range(cores // 2)]
    return facts


def planned(models: dict[str, Any], facts: dict[str, Any], policy: str) -> dict[str, Any] | None:
    try:
        return plan(models, overrides=None, host=HOST, host_facts=facts, settings=plan_settings(policy=policy)).to_dict()
    except PlanError:
        return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(models=inventories(), facts=hosts(), policy=st.sampled_from(["rebalance", "strict"]))
def test_a_plan_never_gives_more_than_there_is(models: dict[str, Any], facts: dict[str, Any], policy: str) -> None:
    result = planned(models, facts, policy)
    assume(result is not None)
    assert result is not None
    services, gateway = result["services"], result["gateway"]

    ports = [port for service in services for port in (service["api_port"], service["state_port"], service["upstream_port"])]
    assert len(set(ports)) == len(ports)
    assert [service["api_port"] for service in services] == sorted(service["api_port"] for service in services)

    assert sum(entry["memory_max_bytes"] for entry in [*services, gateway]) <= facts["memory_bytes"] - 6 * GIB
    for service in services:
        model = models[service["name"]]
        assert service["memory_max_bytes"] == sum(
            service[key] for key in ("weights_bytes", "kv_cache_bytes", "runtime_bytes", "headroom_bytes")
        )
        assert service["headroom_bytes"] > 0
        assert model["min_num_seqs"] <= service["max_num_seqs"] <= model["max_num_seqs"]
        if policy == "strict":
            assert service["memory_max_bytes"] == service["memory_requested_bytes"]

    everything = set(range(len(facts["cpus"])))
    sets = [expand(entry["cpu_set"]) for entry in [*services, gateway]]
    assert all(each and each <= everything for each in sets)
    if all(entry["cpus_exclusive"] for entry in [*services, gateway]):
        assert sum(len(each) for each in sets) == len(set().union(*sets))
        for core in facts.get("thread_siblings", []):
            assert all(expand(core) <= each or not expand(core) & each for each in sets)
    else:
        assert all(each == everything for each in sets)
    if result["device"] == "cpu":
        for service in services:
            assert expand(service["omp_threads_bind"]) <= expand(service["cpu_set"])
        for node in facts["numa_nodes"]:
            held = sum(service["memory_max_bytes"] for service in services if service["numa_nodes"][0] == node["id"])
            assert held <= node["memory_bytes"]
    else:
        for gpu in facts["gpus"]:
            assert sum(service["gpu_memory_utilization"] for service in services if gpu["id"] in service["gpu_ids"]) <= 0.95 + 1e-9


@settings(max_examples=100, deadline=None)
@given(models=inventories(), facts=hosts(), order=st.randoms(use_true_random=False))
def test_the_same_input_gives_the_same_bytes_in_any_order(models: dict[str, Any], facts: dict[str, Any], order: Any) -> None:  # noqa: ANN401
    def shuffled(value: object) -> object:
        if not isinstance(value, dict):
            return value
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key]) for key in keys}

    one, other = (json.dumps(planned(each, facts, "rebalance")) for each in (models, shuffled(models)))
    assert one == other


@settings(max_examples=200, deadline=None)
@given(models=inventories(), facts=hosts(), more_gib=st.integers(1, 256))
def test_more_memory_never_turns_a_plan_into_a_refusal(models: dict[str, Any], facts: dict[str, Any], more_gib: int) -> None:
    facts["numa_nodes"] = [{"id": 0, "cpus": format_ids(facts["cpus"]), "memory_bytes": facts["memory_bytes"]}]
    larger = {**facts, "memory_bytes": facts["memory_bytes"] + more_gib * GIB}
    if planned(models, facts, "rebalance") is not None:
        assert planned(models, larger, "rebalance") is not None


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


@settings(deadline=None)
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
