"""Which variant really runs where: read from vLLM 0.32's source and its compiled libraries.

Sources: vllm/platforms/cpu.py (which library is loaded), the operators those libraries hold,
vllm/model_executor/layers/fused_moe/experts/cpu_moe.py, vllm/model_executor/kernels/linear,
vllm/v1/attention/backends/cpu_attn.py. Some combinations are accepted at start and fail at the first request.
"""

from __future__ import annotations

from typing import Final

from .inputs import Architecture, Device, Isa, Variant, WeightFormat

_ORDER: Final = (Isa.AVX2, Isa.AVX512, Isa.AMX)
_FP8_HEAD_STEP: Final = 32
_INT4_STEP: Final = 32
"""Rows and columns that an int4 product takes at a time (kernels/linear/mixed_precision/cpu.py, can_implement)."""
_HEAD_DIMS: Final = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})
"""Sizes of heads that vLLM's attention on CPUs was compiled for (cpu_attn.py, get_supported_head_sizes)."""

_DENSE: Final[dict[WeightFormat, Isa]] = {
    WeightFormat.BF16: Isa.AVX2,
    WeightFormat.INT8: Isa.AVX2,
    WeightFormat.INT4: Isa.AVX512,
    WeightFormat.FP8: Isa.AMX,
}
"""The least instruction set for a dense model: int4 needs cpu_gemm_wna16, which the AVX2 library lacks."""

_EXPERTS: Final[dict[WeightFormat, Isa]] = {
    WeightFormat.BF16: Isa.AVX2,
    WeightFormat.INT8: Isa.AMX,
    WeightFormat.INT4: Isa.AMX,
}
"""The least instruction set for a mixture of experts; fp8 with one scale per tensor runs on no CPU."""


def why_not(variant: Variant, architecture: Architecture, device: Device, isa: Isa | None) -> str | None:
    """Say why a variant cannot run, or None where it can.

    Args:
        variant: The variant.
        architecture: Its model.
        device: What the host's models run on.
        isa: The host's instruction set; needed on the CPU only.

    Returns:
        Part of a sentence, such as "int4 needs a CPU with AVX-512", or None.

    """
    if device is Device.CUDA:
        return None
    return (
        _format_problem(variant, architecture, isa) or _shape_problem(variant, architecture) or _cache_problem(variant, architecture, isa)
    )


def _reaches(isa: Isa | None, least: Isa) -> bool:
    return isa is not None and _ORDER.index(isa) >= _ORDER.index(least)


def _format_problem(variant: Variant, architecture: Architecture, isa: Isa | None) -> str | None:
    table, kind = (_EXPERTS, " in a mixture of experts") if architecture.is_mixture_of_experts else (_DENSE, "")
    least = table.get(variant.weight_format)
    if least is None:
        return f"{variant.weight_format}{kind} runs on no CPU"
    return None if _reaches(isa, least) else f"{variant.weight_format}{kind} needs a CPU with {_named(least)}"


def _shape_problem(variant: Variant, architecture: Architecture) -> str | None:
    if architecture.head_dim not in _HEAD_DIMS:
        return f"attention on a CPU has no head_dim of {architecture.head_dim}"
    if variant.weight_format is WeightFormat.INT4 and (architecture.hidden % _INT4_STEP or architecture.intermediate % _INT4_STEP):
        return f"int4 on a CPU needs layers whose hidden and intermediate sizes {_INT4_STEP} divides"
    return None


def _cache_problem(variant: Variant, architecture: Architecture, isa: Isa | None) -> str | None:
    if variant.kv_cache_dtype != "fp8":
        return None
    if not _reaches(isa, Isa.AVX512):
        return "an fp8 KV cache needs a CPU with AVX-512"
    return f"an fp8 KV cache needs a head_dim that {_FP8_HEAD_STEP} divides" if architecture.head_dim % _FP8_HEAD_STEP else None


def _named(isa: Isa) -> str:
    return {Isa.AVX2: "AVX2", Isa.AVX512: "AVX-512", Isa.AMX: "AMX"}[isa]
