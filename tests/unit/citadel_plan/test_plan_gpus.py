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


# Needs of two sequences in G: weights + cache + 1.5 for the worker + 0.26 to 0.45 of activations, with 3 %.
#   Mixtral  bf16 (87.0 + 8.0 + 1.9) x 1.03 = 99.9; int8 (43.8 + 8.0 + 1.9) x 1.03 = 55.4; int4 (23.0 + 8.0 + 1.9) x 1.03 = 33.9
#   Hermes-2 bf16 (13.5 + 2.0 + 1.8) x 1.03 = 17.8; int8 11.1; int4 7.9
#   OpenChat bf16 (13.5 + 1.0 + 1.8) x 1.03 = 16.7; int8 10.1; int4 6.8
#   Phi-3    bf16 ( 7.1 + 1.5 + 1.7) x 1.03 = 10.6; int8 7.2; int4 5.5
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # One of 80: 75.6 usable. bf16 of Mixtral fits nowhere; int8 + bf16 x 3 = 100.5. Evenly down: Hermes-2 int8 (saves most of the
        # three), then OpenChat, then Phi-3: 55.4 + 11.1 + 10.1 + 7.2 = 83.8, still too much. Then Mixtral int4: 33.9 + 28.4 = 62.3.
        # Up again: Mixtral cannot, Hermes-2 in bf16 makes 69.0, OpenChat in bf16 75.6 and rounded up too much, Phi-3 in bf16 72.4.
        (
            (H100,),
            {
                "mixtral-8x7b": ("int4", (0,)),
                "hermes-2": ("bf16", (0,)),
                "openchat-3.5": ("int8", (0,)),
                "phi-3-mini": ("bf16", (0,)),
            },
        ),
        # Two of 48: 45.6 usable each. Mixtral bf16 would be 51 on each of two; int8 is 28.9 on each of two and leaves 16.7 on each: both
        # 7B in bf16 (17.8 and 16.7) and Phi-3 (10.6) do not fit. Hermes-2 int8: 11.1 beside Phi-3? 28.9 + 16.7 = 45.6 is too close, and
        # 28.9 + 11.1 + 10.6 too much; OpenChat int8: 28.9 + 11.1 on one, 28.9 + 10.1 on the other, Phi-3 bf16 10.6 on neither; int8 7.2
        # makes 28.9 + 10.1 + 7.2 = 46.2 > 45.6. Mixtral int4 then fits one card alone (33.9), with Hermes-2 11.1 beside it = 45.0;
        # OpenChat and Phi-3 on the other. Up again, all in bf16: Hermes-2 moves over (17.8), OpenChat beside it (34.5), Phi-3
        # beside Mixtral (44.5).
        (
            (48, 48),
            {
                "mixtral-8x7b": ("int4", (0,)),
                "hermes-2": ("bf16", (1,)),
                "openchat-3.5": ("bf16", (1,)),
                "phi-3-mini": ("bf16", (0,)),
            },
        ),
        # One of 141: 133.9 usable, bf16 for all is 145.0. Mixtral alone steps down (it saves most): 55.4 + 17.8 + 16.7 + 10.6 = 100.5.
        (
            (141,),
            {
                "mixtral-8x7b": ("int8", (0,)),
                "hermes-2": ("bf16", (0,)),
                "openchat-3.5": ("bf16", (0,)),
                "phi-3-mini": ("bf16", (0,)),
            },
        ),
        # Two of 141: everything in bf16; Mixtral fills one, the others the next.
        (
            (141, 141),
            {
                "mixtral-8x7b": ("bf16", (0,)),
                "hermes-2": ("bf16", (0,)),
                "openchat-3.5": ("bf16", (1,)),
                "phi-3-mini": ("bf16", (0,)),
            },
        ),
    ],
)
def test_four_models_on_the_cards_there_are(sizes: tuple[float, ...], expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    assert placed(facts=gpu_host(*sizes)) == expected


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
    assert problems[0].startswith("citadel_models.mixtral-8x7b fits no GPU of hx-llm-server-01: int4 needs 32.")
    (problem,) = problems_of(facts=gpu_host(24), overrides={"mixtral-8x7b": {"enabled": False}, "hermes-2": {"min_num_seqs": 10}})
    assert problem.startswith("The services do not fit the GPUs of hx-llm-server-01 together, even in their smallest variants: hermes-2")


def test_cpu_is_used_on_a_host_with_cards_when_told_to() -> None:
    plan = production_plan(facts=gpu_host(H100), device="cpu")
    assert plan.device == "cpu"
    assert all(service.gpu_ids == () and service.gpu is None for service in plan.services)


def test_host_memory_is_granted_as_on_the_cpu() -> None:
    # A CUDA service needs 5 G of the host and 5 %: 5.25 of Phi-3's 4; the other requests are kept.
    plan = production_plan(facts=gpu_host(H100))
    granted = [service.memory_max_bytes / GIB for service in plan.services]
    assert granted == [90, 15, 8, 5.25]


def test_the_instruction_set_does_not_matter_with_cards() -> None:
    assert production_plan(facts=gpu_host(H100, isa="none")).device == "cuda"


def test_a_model_of_whose_heads_cannot_be_split_is_refused() -> None:
    models = production_models()
    models["hermes-2"]["architecture"] |= {"heads": 15, "kv_heads": 5}
    del models["mixtral-8x7b"], models["openchat-3.5"], models["phi-3-mini"]
    (problem,) = problems_of(models=models, facts=gpu_host(7, 7, 7, 7))
    assert "and its 15 heads cannot be split over enough equal ones" in problem
