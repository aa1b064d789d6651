"""The plan as a whole: its pinned shape, its sums, and what is made from it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from citadel_plan import (
    list_edge_targets,
    list_gateway_targets,
    list_latency_objectives,
    list_metrics_targets,
    list_node_targets,
    list_shared_models,
    list_upstreams,
    plan,
)
from unit.plan_examples import GIB, HOST, MIB, host_facts, problems_of, production_models, production_plan, settings, tiny_overrides

# docs and other tools read these: a key that goes or changes its meaning is a new schema_version.
PINNED = {
    "": ["schema_version", "host", "device", "isa", "policy", "services", "gateway", "monitoring", "totals", "warnings"],
    "service": [
        "name", "unit", "variant", "api_port", "metrics_port", "state_port", "upstream_port", "context_tokens", "max_num_seqs",
        "memory_requested_bytes", "memory_max_bytes", "weights_bytes", "kv_cache_bytes", "runtime_bytes", "headroom_bytes",
        "cpus_requested",
        "cpu_set", "cpu_quota_percent", "cpu_weight", "numa_nodes", "tasks_max", "io_weight",
        "storage_requested_bytes", "storage_needed_bytes",
    ],
    "gateway": [
        "name", "unit", "port", "workers", "worker_memory_max_bytes", "memory_max_bytes", "cpus_requested", "cpu_set", "cpu_quota_percent",
        "tasks_max",
    ],
    "monitoring": ["prometheus_port"],
    "totals": ["memory_capacity_bytes", "memory_reserved_bytes", "memory_max_bytes", "cpus_available", "cpus_requested"],
}  # fmt: skip
ROLES_NEED = [
    "description", "specialisation", "target_latency_milliseconds", "modes", "max_output_tokens", "source", "dtype", "quantization",
    "kv_cache_dtype", "block_tokens", "max_waiting", "max_num_batched_tokens", "tensor_parallel_size", "enforce_eager", "omp_threads_bind",
    "omp_num_threads", "omp_places",
    "load_timeout_seconds", "stall_timeout_seconds", "extra_arguments", "expected_weights_bytes", "cpus_exclusive",
]  # fmt: skip


def as_dict(**arguments: object) -> dict[str, Any]:
    return production_plan(**arguments).to_dict()


@pytest.mark.parametrize("facts", [host_facts(), host_facts(gpus_gib=(79.6,), memory_gib=256)], ids=["cpu", "cuda"])
def test_the_shape_is_the_pinned_one_on_either_device(facts: dict[str, Any]) -> None:
    result = as_dict(facts=facts)
    assert set(PINNED[""]) <= set(result)
    for service in result["services"]:
        assert set(PINNED["service"]) | set(ROLES_NEED) | {"gpu_ids", "gpu_memory_utilization"} <= set(service)
    for key in ("gateway", "monitoring", "totals"):
        assert set(PINNED[key]) <= set(result[key])
    assert set(result["services"][0]["source"]) == {"type", "repository", "revision", "path"}


def test_four_may_wait_for_each_place() -> None:
    for service in as_dict()["services"]:
        assert service["max_waiting"] == 4 * service["max_num_seqs"]


def test_only_plain_types_leave() -> None:
    result = as_dict()

    def check(value: object) -> None:
        assert type(value) in {dict, list, str, int, float, bool, type(None)}
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    check(result)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "facts",
    [host_facts(), host_facts(memory_gib=125.6, cores=16), host_facts(memory_gib=200, isa="avx2"), host_facts(memory_gib=256, nodes=2)],
)
def test_the_four_parts_are_the_whole_and_the_sums_are_within_the_host(facts: dict[str, Any]) -> None:
    result = as_dict(facts=facts)
    for service in result["services"]:
        parts = (service[f"{part}_bytes"] for part in ("weights", "kv_cache", "runtime", "headroom"))
        assert service["memory_max_bytes"] == sum(parts)
        assert service["memory_max_bytes"] % MIB == 0
    totals, granted = result["totals"], [*result["services"], result["gateway"]]
    assert totals["memory_max_bytes"] == sum(entry["memory_max_bytes"] for entry in granted) == result["slice"]["memory_max_bytes"]
    assert totals["memory_max_bytes"] + totals["memory_reserved_bytes"] + totals["memory_free_bytes"] == totals["memory_capacity_bytes"]
    assert totals["memory_free_bytes"] >= 0
    assert totals["cpus_requested"] == 22


def test_figures_of_the_specification() -> None:
    result = as_dict()
    assert result["services"][0]["unit"] == "citadel-llm@mixtral-8x7b.service"
    assert result["gateway"]["unit"] == "citadel-llm@unified-api-gateway.service"
    assert result["totals"]["storage_requested_bytes"] == 7600 * GIB
    assert "storage: 7600.0 GiB are allocated, which is more than is free; the chosen weights need 57.0 GiB" in result["warnings"]
    mixtral = result["services"][0]
    assert (mixtral["kv_cache_bytes"], mixtral["max_num_seqs"]) == ((9 * 256 + 1) * 16 * MIB, 9)
    assert mixtral["load_timeout_seconds"] == 300 + 701  # 46,983,684,096 bytes at 64 MiB a second
    assert mixtral["max_output_tokens"] == 32767


def test_the_order_of_the_inventory_does_not_matter() -> None:
    def reverse(value: object) -> object:
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in reversed(value)}
        return value

    facts = host_facts()
    shuffled = facts | {"cpus": facts["cpus"][::-1], "listening_ports": facts["listening_ports"][::-1]}
    one = plan(production_models(), overrides=tiny_overrides(), host=HOST, host_facts=facts, settings=settings())
    other = plan(
        reverse(production_models()),
        overrides=reverse(tiny_overrides()),
        host=HOST,
        host_facts=reverse(shuffled),
        settings=reverse(settings()),
    )
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())


def test_what_fills_the_disk_meanwhile_does_not_change_the_plan() -> None:
    # Logs grow between two runs; the second must plan, and write, exactly what the first did.
    assert as_dict(facts=host_facts(storage_free_bytes=5000 * GIB)) == as_dict(facts=host_facts(storage_free_bytes=4999 * GIB))


def test_an_override_says_only_what_differs() -> None:
    overrides = {"hermes-2": {"request": {"port": 11410}, "variants": [{"name": "int8", "weights_bytes": 7_506_927_617}]}}
    service = production_plan(overrides=overrides).services[-1]
    assert (service.name, service.api_port, service.variant, service.expected_weights_bytes) == ("hermes-2", 11410, "int8", 7_506_927_617)
    assert service.source.path == "/srv/citadel/models/hermes-2-int8"
    assert service.memory_requested_bytes == 15 * GIB


def test_a_new_variant_comes_last_and_a_changed_source_drops_what_does_not_apply() -> None:
    source = {"type": "host_folder", "path": "/data/hermes"}
    overrides = {
        "hermes-2": {
            "pin": {"variant": "mine"},
            "variants": [
                {"name": "bf16", "source": source},
                {"name": "mine", "weight_format": "int8", "weights_bytes": 7_506_927_616, "source": source},
            ],
        }
    }
    service = production_plan(overrides=overrides).services[1]
    assert (service.variant, service.source.type, service.source.repository, service.source.path) == (
        "mine",
        "host_folder",
        None,
        "/data/hermes",
    )


def test_a_catalogue_that_contradicts_itself_is_warned_of() -> None:
    warnings = production_plan(overrides={"hermes-2": {"variants": [{"name": "int8", "weights_bytes": 750_692_761}]}}).warnings
    assert (
        "hermes-2: citadel_model_overrides.hermes-2.variants.int8.weights_bytes is 0.7 GiB and its parameters make 7.0 GiB in int8:"
        " one of them is wrong"
    ) in warnings


def test_disk_is_enforced_with_its_reserve() -> None:
    # 57.0 G of weights: 77.1 free with 20 kept is enough, 77 is not.
    needed = production_plan().totals.storage_needed_bytes
    assert production_plan(facts=host_facts(storage_free_bytes=needed + 20 * GIB))
    (problem,) = problems_of(facts=host_facts(storage_free_bytes=needed + 20 * GIB - MIB))
    assert problem.startswith("The weights need 57.0 GiB")


def test_an_allocation_below_the_need_is_warned_of() -> None:
    plan = production_plan(overrides={"hermes-2": {"request": {"storage": "5GiB"}}})
    assert (
        "storage: hermes-2 needs 7.1 GiB for its weights, which is more than the 5.0 GiB of"
        " citadel_model_overrides.hermes-2.request.storage" in plan.warnings
    )


@pytest.mark.parametrize(
    ("gateway", "cores", "workers"),
    [
        ({}, 24, 3),  # (2048 - 448) / 512 = 3.1
        ({"memory": "8GiB"}, 24, 4),  # 15 would fit, 4 cores
        ({"memory": "8GiB"}, 16, 3),  # scaled down to 3 cores
        ({"memory": "960MiB"}, 24, 1),
        ({"workers": 1}, 24, 1),
        ({"memory": "8GiB", "workers": 9}, 24, 9),  # the operator's word
        ({}, 2, 2),  # all share two cores
    ],
)
def test_workers_of_the_gateway(gateway: dict[str, Any], cores: int, workers: int) -> None:
    overrides = {"mixtral-8x7b": {"request": {"memory": "60GiB"}}}
    assert production_plan(facts=host_facts(cores=cores), overrides=overrides, gateway=gateway).gateway.workers == workers


@pytest.mark.parametrize(
    ("gateway", "mebibytes"),
    [
        ({}, 533),  # (2048 - 448) / 3
        ({"workers": 1}, 1600),
        ({"memory": "960MiB"}, 512),
        ({"memory": "1536MiB"}, 544),  # (1536 - 448) / 2
    ],
)
def test_workers_may_hold_what_a_replacement_leaves(gateway: dict[str, Any], mebibytes: int) -> None:
    assert production_plan(gateway=gateway).gateway.worker_memory_max_bytes == mebibytes * MIB


def entry(result: dict[str, Any], address: str = "192.168.10.29") -> dict[str, Any]:
    return {"plan": result, "address": address}


def only(name: str, **changes: object) -> dict[str, Any]:
    """Plan a host that serves one model of the catalogue."""
    others = {other: {"enabled": False} for other in production_models() if other != name}
    return as_dict(overrides={**others, name: changes})


OTHER = "hx-llm-server-02"


def test_a_gateway_calls_every_model_once_on_loopback() -> None:
    plans = {
        HOST: entry(as_dict()),
        OTHER: entry(only("phi-3-mini", min_num_seqs=1, max_num_seqs=1, request={"context_tokens": 1024}), "192.168.10.30"),
    }
    upstreams = list_upstreams(plans, host=HOST)
    assert [(upstream["model"], upstream["host"], upstream["api_base"]) for upstream in upstreams] == [
        ("hermes-2", HOST, "http://127.0.0.1:31401/v1"),
        ("mixtral-8x7b", HOST, "http://127.0.0.1:31400/v1"),
        ("openchat-3.5", HOST, "http://127.0.0.1:31402/v1"),
        ("phi-3-mini", HOST, "http://127.0.0.1:31403/v1"),
    ]
    alone = list_upstreams({HOST: plans[HOST]}, host=HOST)
    assert upstreams[:3] == alone[:3]
    assert upstreams[3] == alone[3] | {"context_tokens": 1024, "max_output_tokens": 1023, "max_num_seqs": alone[3]["max_num_seqs"] + 1}
    assert upstreams[0] == {
        "service": "hermes-2",
        "model": "hermes-2",
        "host": HOST,
        "api_base": "http://127.0.0.1:31401/v1",
        "description": "Conversational model with coherent dialogue and memory of the conversation",
        "specialisation": ["dialogue coherence", "conversation memory"],
        "modes": ["chat", "completion"],
        "context_tokens": 8192,
        "max_output_tokens": 8191,
        "max_num_seqs": 5,
        "target_latency_milliseconds": 1500,
    }


def test_instances_of_a_model_share_it_in_proportion_to_their_places() -> None:
    plans = {HOST: entry(as_dict()), OTHER: entry(only("phi-3-mini", min_num_seqs=1, max_num_seqs=1), "192.168.10.30")}
    places = next(service["max_num_seqs"] for service in plans[HOST]["plan"]["services"] if service["name"] == "phi-3-mini")
    here = {"host": HOST, "address": "192.168.10.29", "port": 11403, "places": places, "weight": places}
    there = {"host": OTHER, "address": "192.168.10.30", "port": 11403, "places": 1, "weight": 1}
    (shared,) = list_shared_models(plans, host=HOST)
    waiting = sum(plan["plan"]["services"][-1]["max_waiting"] for plan in plans.values())
    assert shared == {"name": "phi-3-mini", "upstream_port": 31403, "max_waiting": waiting, "instances": [here, there]}
    assert [model["name"] for model in list_shared_models(plans, host=OTHER)] == ["hermes-2", "mixtral-8x7b", "openchat-3.5", "phi-3-mini"]
    assert list_shared_models(plans, host=OTHER)[3]["instances"] == [there, here], "its own first"
    assert list_shared_models({HOST: plans[HOST]}, host=HOST) == []


def test_weights_are_what_haproxy_knows() -> None:
    plans = {
        HOST: entry(only("phi-3-mini")),
        OTHER: entry(only("phi-3-mini"), "192.168.10.30"),
        "small": entry(only("phi-3-mini"), "192.168.10.31"),
    }
    for host, places in {HOST: 1024, OTHER: 512, "small": 2}.items():
        plans[host]["plan"]["services"][0]["max_num_seqs"] = places
    assert [instance["weight"] for instance in list_shared_models(plans, host=HOST)[0]["instances"]] == [256, 128, 1]


@pytest.mark.parametrize(
    ("there", "address", "sentence"),
    [
        (
            only("phi-3-mini", request={"port": 11401}),
            "192.168.10.30",
            "hermes-2 and phi-3-mini would both be called at port 31401 of 127.0.0.1 on hx-llm-server-01",
        ),
        (only("phi-3-mini"), "fd00::30", "need addresses of one family (citadel_server_address): hx-llm-server-01 192.168.10.29"),
        (only("phi-3-mini"), "llm.example.org", "llm.example.org is no IP address"),
    ],
    ids=["a port of two", "families", "a name"],
)
def test_hosts_that_do_not_go_together_are_refused(there: dict[str, Any], address: str, sentence: str) -> None:
    here = as_dict(overrides={"phi-3-mini": {"enabled": False}})
    with pytest.raises(ValueError, match=re.escape(sentence)):
        list_shared_models({HOST: entry(here), OTHER: entry(there, address)}, host=HOST)


@pytest.mark.parametrize(
    ("plans", "sentence"),
    [
        ({"other": {"address": "192.168.10.30"}}, "citadel_upstreams has no plan for other: give every host as {plan: ..., address: ...}."),
        (
            {"other": entry({"services": []}, "")},
            "citadel_upstreams has no address for other: set ansible_host or the address its edge listens on.",
        ),
    ],
)
def test_upstreams_without_what_they_need_are_refused(plans: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"citadel_upstreams") as caught:
        list_upstreams(plans, host=HOST)
    assert str(caught.value) == sentence


def test_metrics_are_scraped_where_the_specification_says() -> None:
    targets = list_metrics_targets({HOST: entry(as_dict())})
    assert [(target["service"], target["address"], target["port"]) for target in targets] == [
        ("mixtral-8x7b", "192.168.10.29", 11401),
        ("hermes-2", "192.168.10.29", 11402),
        ("openchat-3.5", "192.168.10.29", 11403),
        ("phi-3-mini", "192.168.10.29", 11404),
    ]


def test_metrics_of_the_host_whose_edge_is_left_out_are_scraped_on_loopback() -> None:
    plans = {HOST: entry(as_dict()), "other": entry(as_dict())}
    targets = list_metrics_targets(plans, loopback_host=HOST)
    assert [(target["host"], target["address"], target["port"]) for target in targets] == [
        *((HOST, "127.0.0.1", port) for port in (11400, 11401, 11402, 11403)),
        *(("other", "192.168.10.29", port) for port in (11401, 11402, 11403, 11404)),
    ]


def test_edges_and_gateways_of_all_hosts_are_asked() -> None:
    plans = {HOST: entry(as_dict()), OTHER: entry(as_dict(), "192.168.10.30")}
    assert list_edge_targets(plans, host=OTHER) == [
        {"service": "edge", "host": HOST, "address": "192.168.10.29", "port": 8405},
        {"service": "breakers", "host": HOST, "address": "192.168.10.29", "port": 8406},
        {"service": "edge", "host": OTHER, "address": "127.0.0.1", "port": 8405},
        {"service": "breakers", "host": OTHER, "address": "127.0.0.1", "port": 8406},
    ]
    one = {"service": "unified-api-gateway", "host": HOST, "address": "192.168.10.29", "port": 8000}
    assert list_gateway_targets(plans, gateways=[HOST]) == [one]
    assert list_gateway_targets(plans, gateways=[OTHER, HOST], loopback_host=HOST) == [
        one | {"address": "127.0.0.1"},
        one | {"host": OTHER, "address": "192.168.10.30"},
    ]


def test_nodes_are_asked_on_loopback_at_home_and_at_their_addresses_elsewhere() -> None:
    plans = {HOST: entry(as_dict()), "other": entry(as_dict()) | {"address": "192.168.10.30"}}
    assert [(target["host"], target["address"], target["port"]) for target in list_node_targets(plans, host=HOST)] == [
        (HOST, "127.0.0.1", 9100),
        ("other", "192.168.10.30", 9100),
    ]
    assert [target["host"] for target in list_node_targets(plans, host="monitoring-only")] == [HOST, "monitoring-only", "other"]


@pytest.mark.parametrize(
    ("milliseconds", "lower", "upper"),
    [
        (2000, ("1.0", 0.333333), ("2.5", 0.666667)),
        (1500, ("1.0", 0.666667), ("2.5", 0.333333)),
        (1000, ("0.75", 0.0), ("1.0", 1.0)),
        (500, ("0.25", 0.0), ("0.5", 1.0)),
        (1, ("0.001", 0.0), ("0.001", 1.0)),
        (3_600_000, ("640.0", 0.0), ("2560.0", 1.0)),
    ],
)
def test_a_target_is_a_weighted_sum_of_the_buckets_beside_it(milliseconds: int, lower: tuple[str, float], upper: tuple[str, float]) -> None:
    plan_of_host = as_dict()
    plan_of_host["services"][1]["target_latency_milliseconds"] = milliseconds
    found = list_latency_objectives({HOST: entry(plan_of_host)})
    assert [objective["model"] for objective in found] == [service["name"] for service in plan_of_host["services"]]
    objective = found[1]
    assert objective["target_seconds"] == milliseconds / 1000
    assert (objective["lower_bound"], objective["lower_weight"]) == lower
    assert (objective["upper_bound"], objective["upper_weight"]) == upper
