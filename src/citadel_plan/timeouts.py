"""How long a service may take to start, and how long it may compute without a result, before it counts as failed or hung.

Both are limits for what goes wrong, not predictions: a limit that is too short kills a healthy model and costs its load
again, one that is too long costs only patience. So every rate here is the slowest that is still plausible.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .inputs import Isa
from .units import MIB

if TYPE_CHECKING:
    from .inputs import Architecture

LOAD_BASE_SECONDS: Final = 300
"""Imports and start-up: 34 to 59 s for a model of no size on two idle cores, 100 s on two busy ones, a multiple with four at once."""

LOAD_BYTES_PER_SECOND: Final = 64 * MIB
"""A slow disk, so that only a load that hangs runs into the time limit."""

STALL_BASE_SECONDS: Final = 60
"""Whatever is not arithmetic: a host that is busy with something else, a kernel that is compiled at its first use."""

CORE_FLOPS: Final = MappingProxyType({Isa.AVX2: 5 * 10**9, Isa.AVX512: 15 * 10**9, Isa.AMX: 50 * 10**9})
"""Floating-point operations per second and core in a linear layer.

AVX2: half of what was measured, 9.7e9 (torch 2.13, bfloat16, 256 x 4096 x 4096, one thread of a busy EPYC core). AVX-512 and
AMX: assumed, not measured; a tenth or less of what such cores do at their peak.
"""


def load_timeout_seconds(weights_bytes: int) -> int:
    """Longest time from the start of a service to its first token: base plus reading the weights.

    1,001 s for Mixtral in int8 (46,983,684,096 bytes).
    """
    return LOAD_BASE_SECONDS + -(-weights_bytes // LOAD_BYTES_PER_SECOND)


def step_operations(architecture: Architecture, *, max_num_batched_tokens: int, context_tokens: int) -> int:
    """Floating-point operations of the longest step of the engine: a full batch of prompt tokens at the end of a full context.

    Two per parameter and token in the linear layers, of a mixture's experts only the chosen ones; in the attention, for each
    token, head and layer, two products of ``head_dim`` with every token of the context (vLLM counts alike:
    vllm/v1/metrics/perf.py).
    """
    expert = 3 * architecture.hidden * architecture.intermediate * architecture.layers
    idle_experts = max(0, architecture.experts - architecture.experts_per_token) if architecture.is_mixture_of_experts else 0
    active = architecture.linear_parameters - idle_experts * expert
    attention = 4 * architecture.layers * architecture.heads * architecture.head_dim * context_tokens
    return max_num_batched_tokens * (2 * active + attention)


def stall_timeout_seconds(
    architecture: Architecture, *, max_num_batched_tokens: int, context_tokens: int, isa: Isa | None, cores: int
) -> int:
    """Longest time for which an engine that uses its CPUs may count nothing: base plus its longest step.

    Args:
        architecture: The model.
        max_num_batched_tokens: Tokens of a step.
        context_tokens: Tokens of a full context.
        isa: What the cores can; None where the model runs on GPUs, whose steps take less than a second.
        cores: Physical cores that compute.

    Returns:
        Seconds, rounded up.

    """
    if isa is None:
        return STALL_BASE_SECONDS
    operations = step_operations(architecture, max_num_batched_tokens=max_num_batched_tokens, context_tokens=context_tokens)
    return STALL_BASE_SECONDS + -(-operations // (max(1, cores) * CORE_FLOPS[isa]))
