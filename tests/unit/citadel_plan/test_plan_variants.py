"""Which variant runs where: the matrix read from vLLM 0.32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from citadel_plan.catalogue import merge_catalogue
from citadel_plan.inputs import Device, Isa
from citadel_plan.parse import parse_models
from citadel_plan.problems import Problems
from citadel_plan.variants import why_not
from unit.plan_examples import host_facts, problems_of, production_models

if TYPE_CHECKING:
    from citadel_plan.inputs import Model

EVERYWHERE = {Isa.AVX2, Isa.AVX512, Isa.AMX}


def parsed(overrides: dict[str, object]) -> dict[str, Model]:
    problems = Problems("test")
    models = parse_models(merge_catalogue(production_models(), overrides, problems), problems)
    problems.raise_if_any()
    return {entry.name: entry for entry in models}


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
    model = parsed(override)[name]
    found = {isa for isa in Isa if why_not(model.variants[0], model.architecture, Device.CPU, isa) is None}
    assert found == runs_on


def test_fp8_cache_needs_heads_of_32() -> None:
    model = parsed({"phi-3-mini": {"architecture": {"head_dim": 80}, "variants": [{"name": "bf16", "kv_cache_dtype": "fp8"}]}})[
        "phi-3-mini"
    ]
    reason = why_not(model.variants[0], model.architecture, Device.CPU, Isa.AMX)
    assert reason == "an fp8 KV cache needs a head_dim that 32 divides"


def test_everything_runs_on_cuda() -> None:
    for model in parsed({}).values():
        assert all(why_not(variant, model.architecture, Device.CUDA, None) is None for variant in model.variants)


def test_a_pinned_variant_that_cannot_run_is_refused_with_the_reason() -> None:
    (problem,) = problems_of(facts=host_facts(isa="avx2", memory_gib=512), overrides={"hermes-2": {"pin": {"variant": "int4"}}})
    assert problem == (
        "citadel_models.hermes-2 has no variant that runs on hx-llm-server-01: int4 (int4 needs a CPU with AVX-512):"
        " leave citadel_model_overrides.hermes-2.pin.variant out, or pin another."
    )
