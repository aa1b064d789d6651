"""Which variant runs where: the matrix read from vLLM 0.32."""

from __future__ import annotations

import pytest

from citadel_plan.inputs import Device, Isa
from citadel_plan.variants import why_not
from unit.plan_examples import host_facts, parsed_models, problems_of

EVERYWHERE = {Isa.AVX2, Isa.AVX512, Isa.AMX}


@pytest.mark.parametrize(
    ("name", "weight_format", "kv_cache_dtype", "runs_on"),
    [
        ("hermes-2", "bf16", "auto", EVERYWHERE),
        ("hermes-2", "int8", "auto", EVERYWHERE),
        ("hermes-2", "int4", "auto", {Isa.AVX512, Isa.AMX}),  # the AVX2 library has no cpu_gemm_wna16
        ("hermes-2", "fp8", "auto", {Isa.AMX}),
        ("hermes-2", "bf16", "fp8", {Isa.AVX512, Isa.AMX}),
        ("phi-3-mini", "int4", "fp8", {Isa.AVX512, Isa.AMX}),  # head_dim 96 is a multiple of 32
        ("mixtral-8x7b", "bf16", "auto", EVERYWHERE),
        ("mixtral-8x7b", "int8", "auto", {Isa.AMX}),
        ("mixtral-8x7b", "int4", "auto", {Isa.AMX}),
        ("mixtral-8x7b", "fp8", "auto", set()),
    ],
)
def test_matrix_on_the_cpu(name: str, weight_format: str, kv_cache_dtype: str, runs_on: set[Isa]) -> None:
    override = {name: {"variants": [{"name": "bf16", "weight_format": weight_format, "kv_cache_dtype": kv_cache_dtype}]}}
    model = parsed_models(override)[name]
    found = {isa for isa in Isa if why_not(model.variants[0], model.architecture, Device.CPU, isa) is None}
    assert found == runs_on


def test_fp8_cache_needs_heads_of_32() -> None:
    model = parsed_models({"phi-3-mini": {"architecture": {"head_dim": 80}, "variants": [{"name": "bf16", "kv_cache_dtype": "fp8"}]}})[
        "phi-3-mini"
    ]
    reason = why_not(model.variants[0], model.architecture, Device.CPU, Isa.AMX)
    assert reason == "an fp8 KV cache needs a head_dim that 32 divides"


@pytest.mark.parametrize(
    ("architecture", "weight_format", "reason"),
    [
        ({"head_dim": 72}, "bf16", "attention on a CPU has no head_dim of 72"),
        ({"head_dim": 80}, "bf16", None),  # with 16 divides, with a slower kernel
        ({"intermediate": 14352}, "int4", "int4 on a CPU needs layers whose hidden and intermediate sizes 32 divides"),
        ({"hidden": 4112}, "int4", "int4 on a CPU needs layers whose hidden and intermediate sizes 32 divides"),
        ({"hidden": 4112}, "int8", None),
    ],
)
def test_dimensions_that_no_kernel_has(architecture: dict[str, int], weight_format: str, reason: str | None) -> None:
    override = {"hermes-2": {"architecture": architecture, "variants": [{"name": "bf16", "weight_format": weight_format}]}}
    model = parsed_models(override)["hermes-2"]
    assert why_not(model.variants[0], model.architecture, Device.CPU, Isa.AMX) == reason
    assert why_not(model.variants[0], model.architecture, Device.CUDA, None) is None


def test_everything_runs_on_cuda() -> None:
    for model in parsed_models({}).values():
        assert all(why_not(variant, model.architecture, Device.CUDA, None) is None for variant in model.variants)


def test_a_pinned_variant_that_cannot_run_is_refused_with_the_reason() -> None:
    (problem,) = problems_of(facts=host_facts(isa="avx2", memory_gib=512), overrides={"hermes-2": {"pin": {"variant": "int4"}}})
    assert problem == (
        "citadel_models.hermes-2 has no variant that runs on hx-llm-server-01: int4 (int4 needs a CPU with AVX-512):"
        " leave citadel_model_overrides.hermes-2.pin.variant out, or pin another."
    )
