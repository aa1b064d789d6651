"""How much memory a model service needs on the CPU, figure by figure.

Every formula names its source: vLLM 0.32 by file, or the measurement. GiB = 2**30.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .inputs import Architecture, Isa, Model, Variant, WeightFormat
from .units import GIB, MIB, round_up

CPU_BLOCK_TOKENS: Final = 128
"""vLLM's block size on the CPU (platforms/cpu.py)."""

CPU_CONCURRENT_BATCHES: Final = 1
"""Batches under way at a time: asynchronous scheduling is off on the CPU (platforms/cpu.py)."""

# What the processes of a service take, model or not: anonymous, shared and kernel memory of the cgroup, without weights
# and KV pool. Measured on the lab host: vLLM 0.32, eager, two cores, models of less than 1 MB, at idle; predicted beside
# measured there (playbooks/compare.yml): -1.3 to +0.9 % at idle, -0.7 to +3.1 % with every sequence at full context.
# To recalibrate, change these figures and nothing else: what they may be wrong by is HEADROOM's part, not theirs.
API_SERVER_BYTES: Final = 417 * MIB
"""The process that answers HTTP: Python, torch, tokenizer."""

ENGINE_CORE_BYTES: Final = 403 * MIB
"""The process that schedules."""

WORKER_BYTES: Final = 420 * MIB
"""The process that computes, without what it holds of the model."""

KERNEL_BYTES: Final = 10 * MIB
"""Kernel memory of all three: page tables, sockets, stacks."""

RUNTIME_BASE_BYTES: Final = API_SERVER_BYTES + ENGINE_CORE_BYTES + WORKER_BYTES + KERNEL_BYTES

COMPILE_BYTES: Final = GIB
"""What torch.compile adds while it builds kernels at the first start. An estimate: nobody has measured it here."""

# Safety, apart from the honest estimate above: a service that meets its limit is killed, not slowed.
HEADROOM_PERCENT: Final = 5
"""Fragmentation and page tables (2 bytes of a thousand) grow with what is used."""

MIN_HEADROOM_BYTES: Final = 256 * MIB
"""For small models: a full load took up to 43 MiB more than predicted on the lab host (playbooks/compare.yml, four tiny
models, every sequence at full context); the rest keeps mapped libraries from being read again and again from disk."""

KV_CACHE_ELEMENT_BYTES: Final = {"auto": 2, "fp8": 1}
WEIGHT_ELEMENT_BYTES_PERCENT: Final = {
    WeightFormat.BF16: 200,
    WeightFormat.INT8: 100,
    WeightFormat.FP8: 100,
    WeightFormat.INT4: 52,
}
"""Bytes of 100 parameters. int4 with groups of 128, a 16-bit scale and a 4-bit zero each: 0.51953 bytes."""

_PARAMETER_BYTES: Final = 2
"""A parameter that no quantization touches, in bf16."""

_EMBEDDING_TABLES: Final = 2
"""Input embedding and output head; each is packed for itself, also where they are one tensor."""

_ACTIVATION_BYTES: Final = 2
_LOGIT_BYTES: Final = 22
"""A logit as bf16, as float32, as a probability, sorted, and its 8-byte index."""

_PROMPT_LOGIT_BYTES: Final = 15
"""A logit of a prompt, in all the forms that it has at once until its log probability is known. Measured with vLLM 0.32 on a CPU: a
prompt of 8,192 tokens with ``echo`` and ``logprobs`` took 937 MiB, for batches of 2,048 tokens and a vocabulary of 32,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of one service, in bytes; the four parts are the whole."""

    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int
    headroom_bytes: int

    @property
    def total_bytes(self) -> int:
        """The limit that systemd enforces."""
        return self.weights_bytes + self.kv_cache_bytes + self.runtime_bytes + self.headroom_bytes


def kv_bytes_per_token(architecture: Architecture, kv_cache_dtype: str) -> int:
    """Keys and values of one token over all layers.

    Source: vllm/v1/kv_cache_interface.py, AttentionSpec.page_size_bytes; 131,072 for Mixtral, as in the log.
    """
    heads = architecture.kv_heads * architecture.head_dim
    return 2 * architecture.layers * heads * KV_CACHE_ELEMENT_BYTES[kv_cache_dtype]


def blocks_per_sequence(architecture: Architecture, *, context_tokens: int, in_flight_tokens: int, block_tokens: int) -> int:
    """KV blocks that one sequence of full context holds.

    With a sliding window vLLM counts ``ceil(min(window - 1 + in_flight, context) / block) + 1``
    (vllm/v1/kv_cache_interface.py, SlidingWindowSpec.max_admission_blocks_per_request), which can be one block more
    than without. The larger of both is planned: a window that vLLM does not use must not break the plan.

    Args:
        architecture: The model.
        context_tokens: Tokens of a full context.
        in_flight_tokens: Tokens scheduled and not yet settled: ``max_num_batched_tokens``, once for each batch that
            is under way at a time (vllm/config/vllm.py, max_in_flight_tokens).
        block_tokens: Tokens of a block.

    """
    full = -(-context_tokens // block_tokens)
    window = architecture.sliding_window_tokens
    if window is None:
        return full
    held = min(window - 1 + in_flight_tokens, context_tokens)
    return max(full, -(-held // block_tokens) + 1)


def kv_pool_bytes(
    architecture: Architecture,
    *,
    kv_cache_dtype: str,
    context_tokens: int,
    in_flight_tokens: int,
    num_seqs: int,
    block_tokens: int,
) -> int:
    """KV pool for ``num_seqs`` sequences of full context.

    One block more than they hold: vLLM keeps a null block, and refuses to start when a single sequence does not
    fit beside it (vllm/v1/core/kv_cache_utils.py). 4,311,744,512 bytes for one Mixtral sequence of 32,768 tokens.
    """
    blocks = blocks_per_sequence(
        architecture,
        context_tokens=context_tokens,
        in_flight_tokens=in_flight_tokens,
        block_tokens=block_tokens,
    )
    return (num_seqs * blocks + 1) * block_tokens * kv_bytes_per_token(architecture, kv_cache_dtype)


def activation_bytes(model: Model, *, num_seqs: int) -> int:
    """Activations of one forward pass over a full batch of tokens.

    Counted from the layers of vllm/model_executor/models/{mixtral,mistral,phi3}.py, in bf16: residual, normed input,
    attention output and layer output (4 x hidden); queries, keys and values; gate, up and their product
    (3 x intermediate), for a mixture of experts once per chosen expert and with its outputs before they are
    summed. Summed as if all lived at once.

    When the layers are through, a request may want the log probabilities of its prompt, where the engine's
    ``prompt_logprobs`` lets it: one logit per token of the batch and word of the vocabulary, one request after the other
    (vllm/v1/worker/gpu_model_runner.py, _get_prompt_logprobs_dict). vLLM's own profile of its memory leaves that out.

    To the larger of both come the logits of one token per sequence with what sampling makes of them.
    """
    architecture, tokens = model.architecture, model.engine.max_num_batched_tokens
    attention = (architecture.heads + 2 * architecture.kv_heads) * architecture.head_dim
    feed_forward = 3 * architecture.intermediate
    if architecture.is_mixture_of_experts:
        feed_forward = architecture.experts_per_token * (feed_forward + architecture.hidden)
    per_token = (4 * architecture.hidden + attention + feed_forward) * _ACTIVATION_BYTES
    if model.engine.prompt_logprobs:
        per_token = max(per_token, architecture.hidden * _ACTIVATION_BYTES + architecture.vocabulary * _PROMPT_LOGIT_BYTES)
    return tokens * per_token + num_seqs * architecture.vocabulary * _LOGIT_BYTES


def packed_embeddings_bytes(architecture: Architecture, isa: Isa) -> int:
    """Copies of embedding and output head in oneDNN's layout, which stay beside the originals.

    Source: vllm/model_executor/layers/vocab_parallel_embedding.py, process_weights_after_loading calls
    dispatch_cpu_unquantized_gemm with remove_weight=False for both tables, in every variant, as no quantization touches
    them. Measured: creating the handler for a table of 500 MiB took 500 MiB more at once. With AVX2 alone oneDNN has
    no bf16 product, vLLM falls back to torch's, and nothing is copied.
    """
    if isa is Isa.AVX2:
        return 0
    return _EMBEDDING_TABLES * architecture.vocabulary * architecture.hidden * _PARAMETER_BYTES


def load_transient_bytes(architecture: Architecture, weight_format: WeightFormat) -> int:
    """Give what loading needs beside the weights: one module twice, while its layout is changed.

    Source: vllm/model_executor/layers/utils.py, dispatch_cpu_unquantized_gemm: repacks a module, then frees the
    original. The largest module is gate and up together, all experts of a layer in one; 1.75 GiB for bf16 Mixtral.
    """
    parameters = 2 * architecture.intermediate * architecture.hidden * max(1, architecture.experts)
    return -(-parameters * WEIGHT_ELEMENT_BYTES_PERCENT[weight_format] // 100)


def runtime_bytes(model: Model, *, num_seqs: int, isa: Isa) -> int:
    """Sum up what the processes of a service take besides weights and KV pool.

    An estimate of what is measured after a full batch, without any safety in it.
    """
    compiling = 0 if model.engine.enforce_eager is not False else COMPILE_BYTES
    activations = activation_bytes(model, num_seqs=num_seqs)
    return RUNTIME_BASE_BYTES + compiling + activations + packed_embeddings_bytes(model.architecture, isa)


def memory_needed(model: Model, variant: Variant, num_seqs: int, isa: Isa) -> Memory:
    """Sum up what a service needs to hold ``num_seqs`` sequences of full context.

    The headroom is 5 %, half a GiB, or what loading needs beyond the KV pool, which is allocated after the weights:
    the largest of the three. It rounds the sum up to a whole MiB.
    """
    kv_cache = kv_pool_bytes(
        model.architecture,
        kv_cache_dtype=variant.kv_cache_dtype,
        context_tokens=model.request.context_tokens,
        in_flight_tokens=CPU_CONCURRENT_BATCHES * model.engine.max_num_batched_tokens,
        num_seqs=num_seqs,
        block_tokens=CPU_BLOCK_TOKENS,
    )
    runtime = runtime_bytes(model, num_seqs=num_seqs, isa=isa)
    used = variant.weights_bytes + kv_cache + runtime
    headroom = max(
        -(-used * HEADROOM_PERCENT // 100),
        MIN_HEADROOM_BYTES,
        load_transient_bytes(model.architecture, variant.weight_format) - kv_cache,
    )
    return Memory(
        weights_bytes=variant.weights_bytes,
        kv_cache_bytes=kv_cache,
        runtime_bytes=runtime,
        headroom_bytes=round_up(used + headroom, MIB) - used,
    )


def spend(model: Model, variant: Variant, granted_bytes: int, isa: Isa) -> tuple[int, Memory]:
    """Turn a grant into sequences.

    KV grows to the most sequences that fit, ``max_num_seqs`` at most; the rest is headroom, so that the limit stays
    exactly what was granted and an operator finds the figure that was asked for.

    Args:
        model: The service.
        variant: The chosen variant; at ``min_num_seqs`` it fits the grant.
        granted_bytes: The grant.
        isa: The host's instruction set.

    Returns:
        The number of sequences, and the memory, whose total is the grant.

    """
    low, high = model.min_num_seqs, model.max_num_seqs
    while low < high:
        middle = (low + high + 1) // 2
        if memory_needed(model, variant, middle, isa).total_bytes <= granted_bytes:
            low = middle
        else:
            high = middle - 1
    needed = memory_needed(model, variant, low, isa)
    surplus = granted_bytes - needed.total_bytes
    return low, Memory(
        weights_bytes=needed.weights_bytes,
        kv_cache_bytes=needed.kv_cache_bytes,
        runtime_bytes=needed.runtime_bytes,
        headroom_bytes=needed.headroom_bytes + surplus,
    )


def weights_bytes_by_formula(architecture: Architecture, weight_format: WeightFormat) -> int:
    """Estimate the weights of a format: linear layers in it, everything else in bf16.

    Matches the published sizes of Mixtral bf16 and AWQ and of Phi-3 AWQ to the printed digit.
    """
    linear = architecture.linear_parameters * WEIGHT_ELEMENT_BYTES_PERCENT[weight_format] // 100
    return linear + _PARAMETER_BYTES * architecture.other_parameters
