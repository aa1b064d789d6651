"""GPUs as bins. Nothing here has a GPU: the tables are worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from unit.plan_examples import GIB, host_facts, problems_of, production_models, production_plan

H100 = 79.6
"""An 80 GB card in GiB, as nvidia-smi gives it (81,559 MiB)."""


def gpu_host(*sizes: float, memory_gib: float = 256, **changes: object) -> dict[str, Any]:
    return host_facts(memory_gib=memory_gib, gpus_gib=sizes, **changes)


def placed(**arguments: object) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {service.name: (service.variant, service.gpu_ids) for service in production_plan(**arguments).services}


# What fits which cards is worked out in test_plan_hosts.py. Needs of two sequences on one card, in G:
#   Mixtral bf16 99.9, int8 55.3, int4 33.9; Hermes-2 bf16 17.8, int8 11.1, int4 7.9; OpenChat bf16 16.7, int8 10.0, int4 6.8;
#   Phi-3 bf16 10.6, int8 7.2, int4 5.5
def test_two_large_cards_hold_everything_at_its_best() -> None:
    # Two of 141, 133.9 usable: Mixtral bf16 99.9 and 17.8 beside it; 16.7 do not fit there any more, 10.6 do.
    assert placed(facts=gpu_host(141, 141)) == {
        "mixtral-8x7b": ("bf16", (0,)),
        "hermes-2": ("bf16", (0,)),
        "openchat-3.5": ("bf16", (1,)),
        "phi-3-mini": ("bf16", (0,)),
    }


@pytest.mark.parametrize("sizes", [(H100,), (48, 48), (141,), (24, 24, 24, 24), (80, 24)])
def test_no_card_is_planned_beyond_95_percent(sizes: tuple[float, ...]) -> None:
    plan = production_plan(facts=gpu_host(*sizes))
    for gpu_id in range(len(sizes)):
        shares = [service.gpu_memory_utilization or 0 for service in plan.services if gpu_id in service.gpu_ids]
        assert sum(shares) <= 0.95 + 1e-9
    for service in plan.services:
        assert service.gpu is not None
        assert service.tensor_parallel_size == len(service.gpu_ids)
        gpu = service.gpu
        assert gpu.memory_bytes == gpu.weights_bytes + gpu.kv_cache_bytes + gpu.runtime_bytes + gpu.headroom_bytes
        assert gpu.headroom_bytes >= 0
        assert service.memory_max_bytes == service.runtime_bytes + service.headroom_bytes
        assert (service.weights_bytes, service.kv_cache_bytes) == (0, 0)
        assert service.expected_weights_bytes <= gpu.weights_bytes
        assert (service.omp_threads_bind, service.enforce_eager, service.block_tokens) == (None, False, 16)


def test_a_variant_that_the_cards_force_is_told() -> None:
    warnings = [warning for warning in production_plan(facts=gpu_host(141)).warnings if "runs as" in warning]
    assert warnings == ["mixtral-8x7b: runs as int8, since bf16 does not fit the GPUs beside the others"]


def test_a_model_too_large_for_one_card_is_split_over_equal_ones() -> None:
    # Mixtral int4 needs 33.9 G, a card of 24 has 22.8: half of weights and cache on each, (11.5 + 4.0 + 1.9) x 1.03 = 17.9.
    mixtral = production_plan(facts=gpu_host(24, 24, 24, 24), overrides={"mixtral-8x7b": {"pin": {"variant": "int4"}}}).services[0]
    assert mixtral.tensor_parallel_size == 2
    assert len(mixtral.gpu_ids) == 2


def test_pinned_cards_are_used_and_only_those() -> None:
    plan = production_plan(facts=gpu_host(141, 141), overrides={"hermes-2": {"pin": {"gpu_ids": [1]}}})
    assert plan.services[1].gpu_ids == (1,)
    overrides = {"hermes-2": {"pin": {"gpu_ids": [0, 1]}}}
    assert production_plan(facts=gpu_host(141, 141), overrides=overrides).services[1].tensor_parallel_size == 2


def test_a_pinned_card_that_is_not_there_is_refused() -> None:
    (problem,) = problems_of(facts=gpu_host(H100), overrides={"hermes-2": {"pin": {"gpu_ids": [3]}}})
    assert problem == "citadel_model_overrides.hermes-2.pin.gpu_ids names GPU 3, which hx-llm-server-01 does not have: choose from [0]."


def test_cards_that_are_too_small_are_refused() -> None:
    problems = problems_of(facts=gpu_host(16))
    assert problems[0].startswith(
        "citadel_models.mixtral-8x7b fits no GPU of hx-llm-server-01: int4 needs 33.9 GiB on one GPU, and its 32 heads"
    )
    (problem,) = problems_of(facts=gpu_host(24), overrides={"mixtral-8x7b": {"enabled": False}, "hermes-2": {"min_num_seqs": 10}})
    assert problem.startswith("The services do not fit the GPUs of hx-llm-server-01 together, even in their smallest variants: hermes-2")


def test_pinned_cards_that_cannot_share_a_model_are_refused() -> None:
    facts = gpu_host(80, 48, 48, 48)
    for gpu_ids in ([0, 1], [1, 2, 3]):  # unequal; and 32 heads are not dealt out to three
        (problem,) = problems_of(facts=facts, overrides={"hermes-2": {"pin": {"gpu_ids": gpu_ids}}})
        assert problem.startswith(
            f"citadel_model_overrides.hermes-2.pin.gpu_ids is {gpu_ids}, on which hermes-2 does not fit: int4 needs 7."
        )
    assert production_plan(facts=facts, overrides={"hermes-2": {"pin": {"gpu_ids": [1, 2]}}}).services[1].gpu_ids == (1, 2)


@pytest.mark.parametrize(
    ("architecture", "workers"),
    [
        ({"heads": 32, "kv_heads": 8}, 2),
        ({"heads": 12, "kv_heads": 4, "head_dim": 128}, 2),
        ({"heads": 15, "kv_heads": 15}, 3),  # an odd number of cards where heads and layers are dealt out to it
        ({"heads": 32, "kv_heads": 1}, 2),  # one head of keys and values is repeated on both
        ({"heads": 12, "kv_heads": 3}, 3),  # three such heads neither split over two nor repeat evenly
    ],
)
def test_heads_are_dealt_out_evenly(architecture: dict[str, int], workers: int) -> None:
    # 14336 x 3 / 3: a feed-forward layer that two and three divide. 34 G of weights fit two cards of 24.
    models = production_models()
    hermes = models["hermes-2"]
    hermes["architecture"] |= architecture | {"intermediate": 43008, "linear_parameters": 17 * 10**9}
    hermes["variants"] = [hermes["variants"][0] | {"weights_bytes": 34 * GIB}]
    plan = production_plan(models={"hermes-2": hermes}, facts=gpu_host(24, 24, 24, 24))
    assert plan.services[0].tensor_parallel_size == workers


def test_a_feed_forward_layer_that_cannot_be_dealt_out_keeps_a_model_on_one_card() -> None:
    models = production_models()
    models["hermes-2"]["architecture"] |= {"intermediate": 14335}
    models["hermes-2"]["variants"] = [models["hermes-2"]["variants"][0] | {"weights_bytes": 34 * GIB}]
    (problem,) = problems_of(models={"hermes-2": models["hermes-2"]}, facts=gpu_host(24, 24, 24, 24))
    assert problem.startswith("citadel_models.hermes-2 fits no GPU of hx-llm-server-01")


def test_a_service_spreads_over_more_cards_than_it_needs_where_it_finds_no_room_otherwise() -> None:
    # Three services of 14.0 G on two cards of 24, 22.8 usable: one each, and the third on both, 7.9 on each.
    template = production_models()["phi-3-mini"]
    variant = template["variants"][0] | {"weights_bytes": int(10.4 * GIB)}
    models = {
        f"model-{number}": {
            **template,
            "request": {**template["request"], "port": 11400 + 2 * number},
            "max_num_seqs": 2,
            "variants": [variant],
        }
        for number in range(3)
    }
    plan = production_plan(models=models, facts=gpu_host(24, 24))
    assert sorted(service.gpu_ids for service in plan.services) == [(0,), (0, 1), (1,)]


def test_services_that_first_fit_leaves_out_are_placed() -> None:
    # Two cards of 100 G, 95 usable. Needs of 47.4, 37.9, three of 28.4 and 18.9: weights + 3.2 of cache and runtime, with 3 %. The largest
    # first, 47.4 + 37.9 share one card and 3 x 28.4 the other, and neither has 18.9 left. But 47.4 + 28.4 + 18.9 and 37.9 + 28.4 + 28.4.
    template = production_models()["phi-3-mini"]
    weights = (42.8, 33.6, 24.4, 24.4, 24.4, 15.2)
    models = {
        f"model-{number}": {
            **template,
            "request": {**template["request"], "port": 11400 + 2 * number},
            "max_num_seqs": 2,
            "variants": [template["variants"][0] | {"weights_bytes": int(size * GIB)}],
        }
        for number, size in enumerate(weights)
    }
    first, second, *equal, last = (service.gpu_ids for service in production_plan(models=models, facts=gpu_host(100, 100)).services)
    assert first == last != second
    assert sorted(equal) == sorted([first, second, second])


def test_variants_go_down_where_the_disk_is_too_small_for_better_ones() -> None:
    # Two of 141 hold everything in bf16, 121.1 of weights and 4 x 64 M; 100 of disk are usable: Mixtral alone goes down, 43.2 less.
    facts = gpu_host(141, 141, storage_free_bytes=120 * GIB)
    assert [variant for variant, _ in placed(facts=facts).values()] == ["int8", "bf16", "bf16", "bf16"]
    (problem,) = problems_of(facts=gpu_host(141, 141, storage_free_bytes=50 * GIB))
    assert problem.startswith("The weights need 33.1 GiB (mixtral-8x7b 23.0 GiB, ")


def test_cpu_is_used_on_a_host_with_cards_when_told_to() -> None:
    plan = production_plan(facts=gpu_host(H100), device="cpu")
    assert plan.device == "cpu"
    assert all(service.gpu_ids == () and service.gpu is None for service in plan.services)


def test_host_memory_is_granted_as_on_the_cpu() -> None:
    # A CUDA service needs 5 G of the host and 5 %: 5.25 of Phi-3's 4; the other requests are kept.
    plan = production_plan(facts=gpu_host(H100))
    granted = [service.memory_max_bytes / GIB for service in plan.services]
    assert granted == [90, 15, 8, 5.25]


def test_host_memory_that_is_asked_for_in_vain_is_given_back() -> None:
    # 64 - 6 - 2 = 56 for 117 asked for: weights and cache are on the cards, so Mixtral can do with 56 - 15 - 8 - 5.25. strict refuses.
    plan = production_plan(facts=gpu_host(H100, memory_gib=64))
    assert [service.memory_max_bytes / GIB for service in plan.services] == [27.75, 15, 8, 5.25]
    assert "mixtral-8x7b: gives 62.2 GiB of its 90.0 GiB back, as the host does not have them" in plan.warnings
    problems = problems_of(facts=gpu_host(H100, memory_gib=64), policy="strict")
    assert problems[0].startswith("The requests add up to 119.0 GiB")


def test_host_memory_that_is_too_small_for_the_processes_is_refused() -> None:
    # 4 x 5.25 + 2 + 6 = 29.
    assert production_plan(facts=gpu_host(H100, memory_gib=29))
    (problem,) = problems_of(facts=gpu_host(H100, memory_gib=28.9))
    assert problem.startswith("The least that the processes need and what is pinned add up to 23.0 GiB")


def test_the_instruction_set_does_not_matter_with_cards() -> None:
    assert production_plan(facts=gpu_host(H100, isa="none")).device == "cuda"


def test_a_model_whose_heads_cannot_be_split_is_refused() -> None:
    models = production_models()
    models["hermes-2"]["architecture"] |= {"heads": 15, "kv_heads": 5}
    del models["mixtral-8x7b"], models["openchat-3.5"], models["phi-3-mini"]
    (problem,) = problems_of(models=models, facts=gpu_host(7, 7, 7, 7))
    assert "and its 15 heads (5 of keys and values) cannot be split over enough equal ones" in problem
