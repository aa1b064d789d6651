"""CPU sets: whole cores, one node each where it can be helped, scaled down or shared where cores run out."""

from __future__ import annotations

from typing import Any

import pytest

from citadel_plan.cpus import deal_cores
from citadel_plan.id_lists import parse_ids
from unit.plan_examples import GIB, host_facts, problems_of, production_models, production_plan


def small_host(cores: int, memory_gib: float = 125.6, **changes: object) -> dict[str, Any]:
    return host_facts(memory_gib=memory_gib, cores=cores, **changes)


# Requests of the specification in order of their ports, the gateway last: 8, 4, 4, 2, 4 = 22.
@pytest.mark.parametrize(
    ("requests", "available", "dealt"),
    [
        ((8, 4, 4, 2, 4), 24, (8, 4, 4, 2, 4)),  # enough
        ((8, 4, 4, 2, 4), 22, (8, 4, 4, 2, 4)),
        # One each, 11 left. Highest request / (dealt + 1) each time: 8/2 -> Mixtral 2; 8/3 -> 3; then all at 2: Mixtral 4, the
        # three of 4 -> 2; 8/5 -> 5; all at 4/3: Mixtral 6, the three -> 3. 6 + 3 + 3 + 1 + 3 = 16.
        ((8, 4, 4, 2, 4), 16, (6, 3, 3, 1, 3)),
        ((8, 4, 4, 2, 4), 8, (4, 1, 1, 1, 1)),  # 3 left: 8/2, 8/3, then 8/4 and 4/2 tie, and the first wins
        ((8, 4, 4, 2, 4), 5, (1, 1, 1, 1, 1)),
        ((1, 1), 2, (1, 1)),
    ],
)
def test_cores_are_dealt_in_proportion(requests: tuple[int, ...], available: int, dealt: tuple[int, ...]) -> None:
    assert deal_cores(requests, available) == dealt


def test_the_specification_on_24_cores() -> None:
    plan = production_plan()
    assert [service.cpu_set for service in plan.services] == ["0-7", "8-11", "12-15", "16-17"]
    assert plan.gateway.cpu_set == "18-21"
    assert [service.cpu_quota_percent for service in plan.services] == [800, 400, 400, 200]
    assert [service.cpu_weight for service in plan.services] == [800, 400, 400, 200]
    assert [service.omp_threads_bind for service in plan.services] == ["0-7", "8-11", "12-15", "16-17"]
    assert all(service.cpus_exclusive for service in plan.services)
    assert (plan.gateway.cpu_quota_percent, plan.gateway.cpu_weight, plan.gateway.workers) == (400, 400, 3)


def test_sixteen_cores_scale_the_sets_down() -> None:
    plan = production_plan(facts=small_host(16))
    assert [service.cpu_set for service in plan.services] == ["0-5", "6-8", "9-11", "12"]
    assert plan.gateway.cpu_set == "13-15"
    assert [service.cpu_quota_percent for service in plan.services] == [600, 300, 300, 100]
    assert [service.cpu_weight for service in plan.services] == [800, 400, 400, 200]  # in proportion to the request
    assert plan.warnings[-2] == (
        "cpus: 22 cores are requested and hx-llm-server-01 has 16: scaled down to mixtral-8x7b 6 of 8, hermes-2 3 of 4, openchat-3.5 3 of"
        " 4, phi-3-mini 1 of 2, gateway 3"
    )


def test_below_one_core_per_service_all_share() -> None:
    plan = production_plan(facts=small_host(4))
    assert {service.cpu_set for service in plan.services} == {"0-3"} == {plan.gateway.cpu_set}
    assert not any(service.cpus_exclusive for service in plan.services)
    assert [service.cpu_quota_percent for service in plan.services] == [None] * 4
    assert plan.gateway.cpu_quota_percent is None
    assert [service.cpu_weight for service in plan.services] == [800, 400, 400, 200]
    assert plan.gateway.cpu_weight == 10_000, "it goes before those who have nothing to do without it"
    threads = {(service.omp_threads_bind, service.omp_num_threads, service.omp_places) for service in plan.services}
    assert threads == {("0-3", 4, "{0,1,2,3}")}


def test_five_cores_are_enough_for_one_each() -> None:
    plan = production_plan(facts=small_host(5))
    assert [service.cpu_set for service in plan.services] == ["0", "1", "2", "3"]
    assert plan.gateway.cpu_set == "4"


def test_a_quota_of_the_operators_holds_in_every_mode() -> None:
    overrides = {"hermes-2": {"request": {"cpu_quota_percent": 150, "cpu_weight": 55, "io_weight": 300, "tasks_max": 700}}}
    gateway = {"cpu_quota_percent": 80, "cpu_weight": 9, "io_weight": 7, "tasks_max": 333}
    for cores in (2, 16, 24):
        plan = production_plan(facts=small_host(cores), overrides=overrides, gateway=gateway)
        service = plan.services[1]
        assert (service.cpu_quota_percent, service.cpu_weight, service.io_weight, service.tasks_max) == (150, 55, 300, 700)
        assert (plan.gateway.cpu_quota_percent, plan.gateway.cpu_weight) == (80, 9)
        assert (plan.gateway.io_weight, plan.gateway.tasks_max) == (7, 333)
        assert plan.slice.tasks_max == 3 * 512 + 700 + 333


def test_a_quota_above_the_host_is_refused() -> None:
    problems = problems_of(
        facts=small_host(2),
        overrides={"hermes-2": {"request": {"cpu_quota_percent": 201}}},
        gateway={"cpu_quota_percent": 300},
    )
    assert problems == (
        "citadel_model_overrides.hermes-2.request.cpu_quota_percent is 201, which is more than the 200 of all 2 CPUs of hx-llm-server-01:"
        " lower it or leave it out.",
        "citadel_plan_settings.gateway.cpu_quota_percent is 300, which is more than the 200 of all 2 CPUs of hx-llm-server-01: lower it or"
        " leave it out.",
    )


def test_weights_stay_within_what_systemd_takes() -> None:
    plan = production_plan(overrides={"mixtral-8x7b": {"request": {"cpus": 4096}}})
    assert plan.services[0].cpu_weight == 10_000


def test_cores_with_two_threads_are_never_split() -> None:
    # 24 cores, CPU n and n + 24 on one core: 8 cores are 16 CPUs, one thread computes on each core.
    facts = host_facts(cores=48, thread_siblings=[f"{core},{core + 24}" for core in range(24)])
    plan = production_plan(facts=facts)
    assert [service.cpu_set for service in plan.services] == ["0-7,24-31", "8-11,32-35", "12-15,36-39", "16-17,40-41"]
    assert [service.omp_threads_bind for service in plan.services] == ["0-7", "8-11", "12-15", "16-17"]
    assert [service.cpu_quota_percent for service in plan.services] == [1600, 800, 800, 400]
    assert plan.totals.cpus_available == 24


def test_neighbouring_threads_of_one_core_stay_together() -> None:
    facts = host_facts(cores=48, thread_siblings=[f"{2 * core}-{2 * core + 1}" for core in range(24)])
    plan = production_plan(facts=facts)
    assert plan.services[1].cpu_set == "16-23"
    assert plan.services[1].omp_threads_bind == "16,18,20,22"


def test_each_service_stays_on_one_node_with_its_memory() -> None:
    # Two nodes of 12 cores and 128 G (125 usable). By port: Mixtral 8 cores and 90 G on node 0, Hermes-2 4 cores and 15 G on node 0,
    # then node 0 has no core left: OpenChat and Phi-3 on node 1, the gateway with them.
    plan = production_plan(facts=host_facts(memory_gib=256, nodes=2))
    assert [(service.cpu_set, service.numa_nodes) for service in plan.services] == [
        ("0-7", (0,)),
        ("8-11", (0,)),
        ("12-15", (1,)),
        ("16-17", (1,)),
    ]
    assert plan.gateway.cpu_set == "18-21"


def test_a_request_beyond_a_node_is_cut_down_to_it() -> None:
    # Two nodes of 64 G, each 61 without its part of the reserve: Mixtral gets 61 of 90 and a node to itself; the rest lies on the other.
    plan = production_plan(facts=host_facts(memory_gib=128, nodes=2))
    mixtral = plan.services[0]
    assert mixtral.memory_max_bytes == 61 * GIB
    assert mixtral.numa_nodes == (0,)
    assert {service.numa_nodes for service in plan.services[1:]} == {(1,)}
    assert "mixtral-8x7b: requested 90.0 GiB and granted 61.0 GiB, as NUMA node 0 has 61.0 GiB for services" in plan.warnings


def test_strict_refuses_a_request_beyond_a_node() -> None:
    assert problems_of(facts=host_facts(memory_gib=128, nodes=2), policy="strict")[-1] == (
        "citadel_models.mixtral-8x7b.request.memory is 90.0 GiB, which is more than the 61.0 GiB that a NUMA node has for a service, and"
        " vLLM keeps a model on one node: lower it."
    )


def test_a_model_that_fits_no_node_is_refused() -> None:
    # bf16 needs 102 G; a node has 93 of 96 G.
    (problem,) = problems_of(facts=host_facts(memory_gib=192, nodes=2), overrides={"mixtral-8x7b": {"pin": {"variant": "bf16"}}})
    assert problem.startswith("citadel_models.mixtral-8x7b needs 10")
    assert problem.endswith(
        "GiB at least, and no NUMA node has more than 93.0 GiB for a service, and vLLM keeps a model on one node: take a smaller"
        " variant, or lower context_tokens or min_num_seqs."
    )


def exact(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Overrides that ask for exactly these sizes, in GiB, for the three small models."""
    names = ("hermes-2", "openchat-3.5", "phi-3-mini")
    return {
        "mixtral-8x7b": {"enabled": False},
        **{name: {"pin": {"memory": f"{size}GiB"}} for name, size in zip(names, sizes, strict=True)},
    }


def test_services_that_do_not_fit_the_nodes_together_are_refused() -> None:
    # Nodes of 64 G (61 usable): three services of 40 G find two nodes. Cut down to 21 the third finds room: 40 + 21 = 61.
    facts = host_facts(memory_gib=128, nodes=2)
    (problem,) = problems_of(facts=facts, overrides=exact((40, 40, 22)))
    assert problem == (
        "The services do not fit the NUMA nodes of hx-llm-server-01, and vLLM keeps each model on one node: hermes-2 40.0 GiB,"
        " openchat-3.5 40.0 GiB, phi-3-mini 22.0 GiB at least; there is room for node 0 61.0 GiB, node 1 61.0 GiB: take smaller"
        " variants or shorter contexts, or set enabled: false on a model."
    )
    assert production_plan(facts=facts, overrides=exact((40, 40, 21))).services[2].numa_nodes[0] in {0, 1}


def test_requests_are_cut_as_little_as_the_nodes_allow() -> None:
    # Three requests of 40 G on two nodes of 61: two share one, and the one with the larger slack gives the 19 that are missing.
    names = ("hermes-2", "openchat-3.5", "phi-3-mini")
    overrides = {"mixtral-8x7b": {"enabled": False}, **{name: {"request": {"memory": "40GiB"}} for name in names}}
    facts = host_facts(memory_gib=128, nodes=2)
    facts["memory_bytes"] += 8 * GIB  # so that the sum of the requests is no obstacle
    plan = production_plan(facts=facts, overrides=overrides)
    assert sorted(service.memory_max_bytes / GIB for service in plan.services) == [21, 40, 40]


def test_a_request_that_no_node_holds_does_not_press_the_others_together() -> None:
    # Three nodes of 64, 62 usable: Mixtral asks for 90 and gets 62; the two that ask for 40 get them, each on a node of its own.
    overrides = {"phi-3-mini": {"enabled": False}, **{name: {"request": {"memory": "40GiB"}} for name in ("hermes-2", "openchat-3.5")}}
    plan = production_plan(facts=host_facts(memory_gib=192, nodes=3), overrides=overrides)
    assert [service.memory_max_bytes / GIB for service in plan.services] == [62, 40, 40]


def test_a_placement_is_found_where_first_fit_finds_none() -> None:
    # Nodes of 61 usable. By port as by size, 30 + 24 share one node and 3 x 18 the other, and neither has 12 left. But 30 + 18 + 12 and
    # 24 + 18 + 18.
    template = production_models()["phi-3-mini"]
    sizes = (30, 24, 18, 18, 18, 12)
    entries = {
        f"model-{number}": {**template, "request": {**template["request"], "port": 11400 + number}, "pin": {"memory": f"{size}GiB"}}
        for number, size in enumerate(sizes)
    }
    facts = host_facts(memory_gib=128, nodes=2)
    facts["memory_bytes"] = 140 * GIB  # so that the gateway's 2 are no obstacle
    plan = production_plan(facts=facts, models=entries)
    on_node = [sum(size for size, service in zip(sizes, plan.services, strict=True) if service.numa_nodes[0] == node) for node in (0, 1)]
    assert on_node == [60, 60]


def test_a_node_more_does_not_turn_a_plan_into_a_refusal() -> None:
    # Asked for 60 G on nodes of 59 usable: cut to 59. One node larger by 1 G would, if it set the measure for both, leave one out.
    overrides = {
        "mixtral-8x7b": {"enabled": False},
        "phi-3-mini": {"enabled": False},
        **{name: {"request": {"memory": "60GiB"}} for name in ("hermes-2", "openchat-3.5")},
    }
    facts = host_facts(memory_gib=124, nodes=2)
    facts["memory_bytes"] += 16 * GIB
    larger = {**facts, "numa_nodes": [{**facts["numa_nodes"][0], "memory_bytes": 63 * GIB}, facts["numa_nodes"][1]]}
    for each in (facts, larger):
        plan = production_plan(facts=each, overrides=overrides)
        assert {service.numa_nodes for service in plan.services} == {(0,), (1,)}


def test_memory_that_no_cpu_has_is_of_no_use_to_a_model() -> None:
    # An expander of 96 G beside one node of 64: 160 in all, but vLLM binds to the node of the CPUs, 61.6 without its part of the reserve.
    facts = host_facts(memory_gib=160)
    facts["numa_nodes"] = [
        {"id": 0, "cpus": "0-23", "memory_bytes": 64 * GIB},
        {"id": 1, "cpus": "", "memory_bytes": 96 * GIB},
    ]
    (problem,) = problems_of(facts=facts)
    assert "there is room for node 0 61.6 GiB" in problem
    small = {"mixtral-8x7b": {"enabled": False}}
    assert {service.numa_nodes for service in production_plan(facts=facts, overrides=small).services} == {(0,)}


def test_nodes_are_no_walls_for_memory_with_cards() -> None:
    # Host memory of a CUDA worker is bound to no node: 90 G are granted though each node has 64.
    facts = host_facts(memory_gib=128, nodes=2, gpus_gib=(141,))
    assert production_plan(facts=facts).services[0].memory_max_bytes == 90 * GIB


def test_a_set_spans_nodes_only_where_it_must() -> None:
    # Four nodes of 4 cores: no node has the 6 that Mixtral is dealt. The largest first, each where most cores are left: Mixtral has node 0
    # to itself and two cores of another; everybody else stays at home.
    plan = production_plan(facts=host_facts(memory_gib=512, cores=16, nodes=4))
    mixtral = plan.services[0]
    assert mixtral.numa_nodes[0] == 0
    assert len(mixtral.numa_nodes) == 2
    assert len(parse_ids(mixtral.omp_threads_bind or "")) == 6
    assert any(warning.startswith("mixtral-8x7b: its 6 cores span NUMA nodes") for warning in plan.warnings)
    assert all(len(service.numa_nodes) == 1 for service in plan.services[1:])


def test_services_that_must_share_a_node_each_have_a_core_there() -> None:
    # Node 0 has 100 G and 4 of 24 cores, node 1 has 20 G: memory puts Hermes-2 and OpenChat (40 each) on node 0, where both want 4 cores.
    # Two each there and two elsewhere, behind the two of Phi-3.
    facts = host_facts(memory_gib=120)
    facts["numa_nodes"] = [{"id": 0, "cpus": "0-3", "memory_bytes": 100 * GIB}, {"id": 1, "cpus": "4-23", "memory_bytes": 20 * GIB}]
    plan = production_plan(facts=facts, overrides=exact((40, 40, 12)))
    assert [service.numa_nodes for service in plan.services] == [(0, 1), (0, 1), (1,)]
    assert [service.cpu_set for service in plan.services[:2]] == ["0-1,6-7", "2-3,8-9"]
    assert all(service.cpus_exclusive for service in plan.services)


def test_without_a_core_for_each_at_home_all_share() -> None:
    # As before, but node 0 has a single core for two services.
    facts = host_facts(memory_gib=120)
    facts["numa_nodes"] = [{"id": 0, "cpus": "0", "memory_bytes": 100 * GIB}, {"id": 1, "cpus": "1-23", "memory_bytes": 20 * GIB}]
    plan = production_plan(facts=facts, overrides=exact((40, 40, 12)))
    assert [service.numa_nodes[0] for service in plan.services] == [0, 0, 1]
    assert {service.cpu_set for service in plan.services} == {"0-23"}
    assert [service.omp_threads_bind for service in plan.services] == ["0", "0", "1-23"]
    assert (
        "cpus: not every service finds a core on the NUMA node that holds its memory: all share them, in proportion to their weights"
        in plan.warnings
    )


def test_cores_of_ones_own_are_worth_more_than_the_whole_request() -> None:
    # Node 0 has 90 usable and one core, node 1 has 30 and 23 cores. Asked for 40 each both would be on node 0; cut down to 30 one of them
    # finds memory and cores on node 1.
    facts = host_facts(memory_gib=126)
    facts["numa_nodes"] = [{"id": 0, "cpus": "0", "memory_bytes": 94.5 * GIB}, {"id": 1, "cpus": "1-23", "memory_bytes": 31.5 * GIB}]
    facts["numa_nodes"] = [{**node, "memory_bytes": int(node["memory_bytes"])} for node in facts["numa_nodes"]]
    overrides = {
        "mixtral-8x7b": {"enabled": False},
        "phi-3-mini": {"enabled": False},
        **{name: {"request": {"memory": "40GiB"}} for name in ("hermes-2", "openchat-3.5")},
    }
    plan = production_plan(facts=facts, overrides=overrides)
    assert {service.numa_nodes[0]: service.memory_max_bytes / GIB for service in plan.services} == {0: 40, 1: 30}
    assert all(service.cpus_exclusive for service in plan.services)


def test_a_spanning_set_begins_at_home_where_it_can() -> None:
    # vLLM takes the node of the lowest CPU that computes. Node 1 holds Hermes-2 with 2 of its 4 cores; nodes 0 and 2 have cores to spare.
    facts = host_facts(memory_gib=120)
    facts["numa_nodes"] = [
        {"id": 0, "cpus": "0-7", "memory_bytes": 15 * GIB},
        {"id": 1, "cpus": "8-9", "memory_bytes": 90 * GIB},
        {"id": 2, "cpus": "10-23", "memory_bytes": 15 * GIB},
    ]
    overrides = {"mixtral-8x7b": {"enabled": False}, "openchat-3.5": {"enabled": False}, "hermes-2": {"pin": {"memory": "40GiB"}}}
    hermes = production_plan(facts=facts, overrides=overrides).services[0]
    assert hermes.numa_nodes == (1, 2)
    assert hermes.omp_threads_bind == "8-9,12-13"  # 10 and 11 are Phi-3's


def test_the_memory_node_comes_first_whatever_its_number() -> None:
    # What AllowedMemoryNodes= and CPU_VISIBLE_MEMORY_NODES are rendered from. Memory puts Hermes-2 on node 1, which has 2 cores;
    # the two others come from node 0, behind those of Phi-3.
    facts = host_facts(memory_gib=120, cores=8)
    facts["numa_nodes"] = [{"id": 0, "cpus": "0-5", "memory_bytes": 20 * GIB}, {"id": 1, "cpus": "6-7", "memory_bytes": 100 * GIB}]
    overrides = {"mixtral-8x7b": {"enabled": False}, "openchat-3.5": {"enabled": False}, "hermes-2": {"pin": {"memory": "40GiB"}}}
    hermes = production_plan(facts=facts, overrides=overrides, gateway={"cpus": 1}).services[0]
    assert hermes.numa_nodes == (1, 0)
    assert hermes.cpu_set == "2-3,6-7"
    # On 2 vLLM would look for the room of the KV cache on node 0: what does not compute runs there.
    assert hermes.omp_threads_bind == "6-7"


def test_a_pinned_set_lives_where_its_lowest_cpu_is() -> None:
    # CPUs in turn on either node, CPU n and n + 24 on one core: of the pinned ones vLLM looks at CPU 1, though 24 is of the first core.
    facts = host_facts(cores=48, nodes=2, memory_gib=256, thread_siblings=[f"{core},{core + 24}" for core in range(24)])
    for node in facts["numa_nodes"]:
        node["cpus"] = ",".join(str(cpu) for cpu in range(48) if cpu % 2 == node["id"])
    hermes = production_plan(facts=facts, overrides={"hermes-2": {"pin": {"cpu_set": "1,24"}}}).services[1]
    assert (hermes.numa_nodes, hermes.omp_threads_bind) == ((1, 0), "1,24")


def test_a_pinned_set_is_kept_and_nobody_else_gets_it() -> None:
    plan = production_plan(overrides={"hermes-2": {"pin": {"cpu_set": "0-3"}}})
    assert [service.cpu_set for service in plan.services] == ["4-11", "0-3", "12-15", "16-17"]
    assert plan.services[1].cpus_exclusive


def test_pins_that_cannot_be_kept_are_refused() -> None:
    overrides = {
        "hermes-2": {"pin": {"cpu_set": "0-3"}},
        "phi-3-mini": {"pin": {"cpu_set": "3-4"}},
        "openchat-3.5": {"pin": {"cpu_set": "40-41"}},
    }
    assert problems_of(overrides=overrides) == (
        "citadel_model_overrides.openchat-3.5.pin.cpu_set is 40-41, and hx-llm-server-01 has no CPU 40-41: choose from 0-23.",
        "citadel_model_overrides.phi-3-mini.pin.cpu_set is 3-4, which shares a core (CPU 3) with"
        " citadel_model_overrides.hermes-2.pin.cpu_set: choose sets that do not overlap.",
    )


def test_a_pin_keeps_its_cores_where_the_others_share() -> None:
    # Four cores for five: Hermes-2 has pinned one of them, the others share three.
    plan = production_plan(facts=small_host(4), overrides={"hermes-2": {"pin": {"cpu_set": "1"}}})
    assert [service.cpu_set for service in plan.services] == ["0,2-3", "1", "0,2-3", "0,2-3"]
    assert [service.cpus_exclusive for service in plan.services] == [False, True, False, False]
    assert plan.gateway.cpu_set == "0,2-3"


def test_a_pin_on_every_core_is_shared() -> None:
    plan = production_plan(facts=small_host(2), overrides={"hermes-2": {"pin": {"cpu_set": "0-1"}}})
    assert {service.cpu_set for service in plan.services} == {"0-1"}
    assert not any(service.cpus_exclusive for service in plan.services)


def test_a_pin_of_one_thread_keeps_the_other_one_free() -> None:
    facts = host_facts(cores=48, thread_siblings=[f"{core},{core + 24}" for core in range(24)])
    plan = production_plan(facts=facts, overrides={"hermes-2": {"pin": {"cpu_set": "0-3"}}})
    assert plan.services[1].cpu_set == "0-3"
    others = {cpu for entry in (*plan.services, plan.gateway) if entry.name != "hermes-2" for cpu in parse_ids(entry.cpu_set)}
    assert others.isdisjoint({0, 1, 2, 3, 24, 25, 26, 27})


def test_a_pinned_set_decides_the_node_and_is_refused_where_that_has_no_memory() -> None:
    # Node 1 has 20 G, 19 usable.
    facts = host_facts(memory_gib=120)
    facts["numa_nodes"] = [{"id": 0, "cpus": "0-11", "memory_bytes": 100 * GIB}, {"id": 1, "cpus": "12-23", "memory_bytes": 20 * GIB}]
    overrides = exact((40, 12, 12))
    overrides["hermes-2"]["pin"]["cpu_set"] = "0-3"
    assert production_plan(facts=facts, overrides=overrides).services[0].numa_nodes == (0,)
    overrides["hermes-2"]["pin"]["cpu_set"] = "12-15"
    (problem,) = problems_of(facts=facts, overrides=overrides)
    assert "hermes-2 40.0 GiB (citadel_model_overrides.hermes-2.pin.cpu_set puts it on node 1)" in problem
