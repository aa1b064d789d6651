"""How long a start and a step may take, against figures worked out by hand."""

from __future__ import annotations

import pytest

from citadel_plan.inputs import Architecture, Isa
from citadel_plan.timeouts import CORE_FLOPS, load_timeout_seconds, stall_timeout_seconds, step_operations
from unit.plan_examples import host_facts, problems_of, production_plan

MIXTRAL = {
    "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "experts": 8, "experts_per_token": 2, "vocabulary": 32000,
    "intermediate": 14336, "sliding_window_tokens": None, "native_context_tokens": 32768,
    "linear_parameters": 46_439_333_888, "other_parameters": 263_458_816,
}  # fmt: skip


def architecture(**changes: int) -> Architecture:
    return Architecture(model_class="MixtralForCausalLM", **(MIXTRAL | changes))


def seconds(isa: Isa | None, *, cores: int = 8, tokens: int = 2048, context: int = 32768, **changes: int) -> int:
    return stall_timeout_seconds(architecture(**changes), max_num_batched_tokens=tokens, context_tokens=context, isa=isa, cores=cores)


@pytest.mark.parametrize(("weights_bytes", "expected"), [(1, 301), (64 * 2**20, 301), (64 * 2**20 + 1, 302), (46_983_684_096, 1001)])
def test_a_start_may_take_what_a_slow_disk_takes(weights_bytes: int, expected: int) -> None:
    assert load_timeout_seconds(weights_bytes) == expected


def test_a_step_counts_the_chosen_experts_and_the_context() -> None:
    # 12.6e9 active parameters in linear layers, two operations each, and 17.2e9 for the attention to 32,768 tokens.
    active = 46_439_333_888 - 6 * 3 * 4096 * 14336 * 32
    assert active == 12_616_466_432
    attention = 4 * 32 * 4096 * 32768
    assert step_operations(architecture(), max_num_batched_tokens=2048, context_tokens=32768) == 2048 * (2 * active + attention)


def test_a_dense_model_counts_every_parameter() -> None:
    dense = architecture(experts=1, experts_per_token=1, linear_parameters=1000)
    assert step_operations(dense, max_num_batched_tokens=1, context_tokens=0) == 2000


def test_the_slower_the_host_the_more_patience() -> None:
    assert set(CORE_FLOPS) == set(Isa)
    assert seconds(Isa.AMX) == 60 + 218
    assert seconds(Isa.AMX) < seconds(Isa.AVX512) < seconds(Isa.AVX2)
    assert seconds(Isa.AMX, cores=4) > seconds(Isa.AMX)
    assert seconds(Isa.AMX, tokens=4096) > seconds(Isa.AMX)
    assert seconds(None) == 60


def test_the_plan_has_both_and_an_operator_may_set_them() -> None:
    mixtral = production_plan().services[0]
    assert (mixtral.load_timeout_seconds, mixtral.stall_timeout_seconds) == (1001, 278)
    engine = {"load_timeout_seconds": 2000, "stall_timeout_seconds": 600}
    mixtral = production_plan(overrides={"mixtral-8x7b": {"engine": engine}}).services[0]
    assert (mixtral.load_timeout_seconds, mixtral.stall_timeout_seconds) == (2000, 600)
    on_gpus = production_plan(host_facts(memory_gib=256, gpus_gib=(79.6, 79.6))).services
    assert {service.stall_timeout_seconds for service in on_gpus} == {60}


def test_what_the_liveness_counts_cannot_be_switched_off() -> None:
    (problem,) = problems_of(overrides={"hermes-2": {"engine": {"extra_arguments": ["--disable-log-stats"]}}})
    assert "sets --disable-log-stats, which the plan decides: leave it out" in problem
