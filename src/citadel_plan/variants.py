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
    table, kind = (_EXPERTS, " in a mixture of experts") if architecture.is_mixture_of_experts else (_DENSE, "")
    least = table.get(variant.weight_format)
    if least is None:
        return f"{variant.weight_format}{kind} runs on no CPU"
    if isa is None or _ORDER.index(isa) < _ORDER.index(least):
        return f"{variant.weight_format}{kind} needs a CPU with {_named(least)}"
    if variant.kv_cache_dtype == "fp8":
        if _ORDER.index(isa) < _ORDER.index(Isa.AVX512):
            return "an fp8 KV cache needs a CPU with AVX-512"
        if architecture.head_dim % _FP8_HEAD_STEP:
            return f"an fp8 KV cache needs a head_dim that {_FP8_HEAD_STEP} divides"
    return None


def _named(isa: Isa) -> str:
    return {Isa.AVX2: "AVX2", Isa.AVX512: "AVX-512", Isa.AMX: "AMX"}[isa]
