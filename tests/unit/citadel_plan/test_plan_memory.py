"""Memory figures, worked by hand. M = MiB, G = GiB."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from citadel_plan.inputs import Isa, WeightFormat
from citadel_plan.memory import (
    RUNTIME_BASE_BYTES,
    activation_bytes,
    blocks_per_sequence,
    kv_bytes_per_token,
    kv_pool_bytes,
    load_transient_bytes,
    memory_needed,
    packed_embeddings_bytes,
    spend,
    weights_bytes_by_formula,
)
from unit.plan_examples import GIB, MIB, parsed_models, production_models, tiny_overrides

if TYPE_CHECKING:
    from citadel_plan.inputs import Model, Variant


def model(name: str) -> Model:
    return parsed_models()[name]


def variant(name: str, variant_name: str) -> Variant:
    return next(entry for entry in model(name).variants if entry.name == variant_name)


# 2 (keys and values) x layers x kv heads x head_dim x bytes
@pytest.mark.parametrize(
    ("name", "dtype", "size"),
    [
        ("mixtral-8x7b", "auto", 2 * 32 * 8 * 128 * 2),  # 131,072, as vLLM's log says
        ("hermes-2", "auto", 131_072),
        ("phi-3-mini", "auto", 2 * 32 * 32 * 96 * 2),  # 393,216: every head keeps its own
        ("phi-3-mini", "fp8", 196_608),
    ],
)
def test_kv_bytes_of_a_token(name: str, dtype: str, size: int) -> None:
    assert kv_bytes_per_token(model(name).architecture, dtype) == size


@pytest.mark.parametrize(
    ("name", "context", "in_flight", "block", "blocks"),
    [
        ("mixtral-8x7b", 32768, 2048, 128, 256),  # no window: 32768 / 128
        ("hermes-2", 8192, 2048, 128, 64),  # window: min(4095 + 2048, 8192) = 6143 -> 48 + 1 = 49; full context 64 is more
        ("hermes-2", 8192, 4096, 16, 513),  # window: 8191 / 16 -> 512 + 1; one more than the full 512
        ("openchat-3.5", 4096, 2048, 128, 33),  # window: min(6143, 4096) -> 32 + 1; one more than the full 32
        ("phi-3-mini", 2048, 2048, 128, 17),  # window: min(2046 + 2048, 2048) -> 16 + 1
        ("phi-3-mini", 2049, 2048, 128, 18),  # a block begun is a block held
    ],
)
def test_blocks_of_a_sequence_are_the_larger_of_window_and_full(name: str, context: int, in_flight: int, block: int, blocks: int) -> None:
    architecture = model(name).architecture
    held = blocks_per_sequence(architecture, context_tokens=context, in_flight_tokens=in_flight, block_tokens=block)
    assert held == blocks


def test_the_pool_has_room_for_the_null_block() -> None:
    # The figure with which vLLM starts a Mixtral of one sequence, and below which it refuses: (256 + 1) x 16 M.
    pool = kv_pool_bytes(
        model("mixtral-8x7b").architecture,
        kv_cache_dtype="auto",
        context_tokens=32768,
        in_flight_tokens=2048,
        num_seqs=1,
        block_tokens=128,
    )
    assert pool == 4_311_744_512


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # 2048 tokens x 2 bytes x (4 x 4096 + 48 x 128 + 2 x (3 x 14336 + 4096)) + 2 x 32000 x 22
        ("mixtral-8x7b", 2048 * 2 * 116_736 + 1_408_000),
        # 2048 x 2 x (4 x 4096 + 48 x 128 + 3 x 14336) + 2 x 32002 x 22
        ("hermes-2", 2048 * 2 * 65_536 + 1_408_088),
        # 2048 x 2 x (4 x 3072 + 96 x 96 + 3 x 8192) + 2 x 32064 x 22
        ("phi-3-mini", 2048 * 2 * 46_080 + 1_410_816),
    ],
)
def test_activations_follow_the_dimensions(name: str, size: int) -> None:
    assert activation_bytes(model(name), num_seqs=2) == size


@pytest.mark.parametrize(
    ("vocabulary", "size"),
    [
        # What a request for the log probabilities of its prompt took on the lab's machine, 937 M, is 15 bytes a logit: 2048 x 15 x 32000.
        (32_000, 2048 * (2 * 4096 + 15 * 32_000) + 1_408_000),
        # Of a small vocabulary the layers are more.
        (512, 2048 * 2 * 65_536 + 22_528),
    ],
)
def test_log_probabilities_of_prompts_are_counted_where_they_are_allowed(vocabulary: int, size: int) -> None:
    hermes = model("hermes-2")
    generous = replace(
        hermes,
        architecture=replace(hermes.architecture, vocabulary=vocabulary),
        engine=replace(hermes.engine, prompt_logprobs=True),
    )
    assert activation_bytes(generous, num_seqs=2) == size


def test_loading_bf16_mixtral_holds_one_module_twice() -> None:
    # Gate and up of all experts of a layer: 8 x 28672 x 4096 x 2 bytes = 1.75 G.
    assert load_transient_bytes(model("mixtral-8x7b").architecture, WeightFormat.BF16) == 1792 * MIB


@pytest.mark.parametrize(
    ("name", "isa", "size"),
    [
        # Embedding and output head, each vocabulary x hidden x 2 bytes, packed by oneDNN beside the originals.
        ("mixtral-8x7b", Isa.AMX, 2 * 32000 * 4096 * 2),
        ("hermes-2", Isa.AVX512, 2 * 32002 * 4096 * 2),
        ("phi-3-mini", Isa.AVX512, 2 * 32064 * 3072 * 2),
        ("hermes-2", Isa.AVX2, 0),  # no bf16 product in oneDNN: torch's works on the original
    ],
)
def test_packed_copies_of_the_embeddings_stay(name: str, isa: Isa, size: int) -> None:
    assert packed_embeddings_bytes(model(name).architecture, isa) == size


# 46,983,684,096 weights + 513 blocks x 16 M + the processes + 479,558,656 activations + 524,288,000 copies of the embeddings; with
# processes of 1250 M that is 57,904,962,560 and 5 % of it 2,895,248,128: 57,984 M.
def test_need_of_mixtral_int8_for_two_sequences() -> None:
    needed = memory_needed(model("mixtral-8x7b"), variant("mixtral-8x7b", "int8"), 2, Isa.AMX)
    assert needed.weights_bytes == 46_983_684_096
    assert needed.kv_cache_bytes == 8_606_711_808
    assert needed.runtime_bytes == RUNTIME_BASE_BYTES + 479_558_656 + 524_288_000
    used = 46_983_684_096 + 8_606_711_808 + needed.runtime_bytes
    assert needed.headroom_bytes - used * 5 // 100 in range(1, MIB + 1)
    assert needed.total_bytes == used + needed.headroom_bytes
    assert needed.total_bytes % MIB == 0


# 2,277,120,000 weights + 35 blocks x 24 M + 1250 M + 190,154,496 + 394,002,432 = 5,052,800,768; 5 % would be 241 M, half a G is more.
def test_a_small_service_keeps_a_quarter_of_a_gib_of_headroom() -> None:
    needed = memory_needed(model("phi-3-mini"), variant("phi-3-mini", "int4-kv8"), 2, Isa.AVX512)
    assert needed.weights_bytes + needed.kv_cache_bytes == 2_277_120_000 + 35 * 24 * MIB
    assert needed.headroom_bytes in range(256 * MIB, 257 * MIB)


# What is compared with the cgroups of the lab host: its tiny models, which are of no size, so that the rest is the processes'.
# KV pool of Mixtral: 16 sequences x 256 blocks + 1, each 128 tokens x 2 x 2 layers x 1 head x 32 x 2 bytes = 32 K: 128 M.
# Activations: 2048 x 2 x (4 x 64 + 4 x 32 + 2 x (3 x 128 + 64)) + 16 x 512 x 22 = 5.2 M.
def test_prediction_for_a_model_of_no_size_is_its_processes_and_its_pool() -> None:
    tiny = parsed_models(tiny_overrides())
    needed = memory_needed(tiny["mixtral-8x7b"], tiny["mixtral-8x7b"].variants[0], 16, Isa.AVX2)
    assert needed.weights_bytes == 969_344
    assert needed.kv_cache_bytes == (16 * 256 + 1) * 32 * 1024
    assert needed.runtime_bytes == RUNTIME_BASE_BYTES + 2048 * 2 * 1280 + 16 * 512 * 22


def test_headroom_covers_what_loading_takes_beyond_the_pool() -> None:
    # A small pool, bf16: Mixtral cut down to a context of 1024 tokens; 17 blocks of 16 M are 0.27 G, the module being
    # repacked takes 1.75 G, 5 % of what is used would cover it here, so the sum is made small by few layers' weights.
    entry = model("mixtral-8x7b")
    short = replace(entry, request=replace(entry.request, context_tokens=1024))
    light = replace(variant("mixtral-8x7b", "bf16"), weights_bytes=4 * GIB)
    needed = memory_needed(short, light, 2, Isa.AMX)
    assert needed.kv_cache_bytes == 17 * 16 * MIB
    assert needed.headroom_bytes >= 1792 * MIB - needed.kv_cache_bytes
    assert needed.headroom_bytes < 1792 * MIB - needed.kv_cache_bytes + MIB


def test_compiling_costs_memory() -> None:
    entry = model("hermes-2")
    compiled = replace(entry, engine=replace(entry.engine, enforce_eager=False))
    one, other = (memory_needed(each, variant("hermes-2", "int8"), 2, Isa.AMX).runtime_bytes for each in (entry, compiled))
    assert other - one == GIB


@pytest.mark.parametrize(
    ("name", "variant_name", "granted_gib", "seqs"),
    [
        # Each sequence takes 4 G + its share of 5 %: (43.76 + 2.16 + 0.016 + s x 4) x 1.05 <= 90 -> s <= 9.9
        ("mixtral-8x7b", "int8", 90, 9),
        # (6.99 + 1.96 + 0.016 + s x 1) x 1.05 <= 15 -> s <= 5.3
        ("hermes-2", "int8", 15, 5),
        # 3.87 + 1.96 + 0.016 + s x 0.516 + 0.5 <= 8 -> s <= 3.2
        ("openchat-3.5", "int4", 8, 3),
        # (2.12 + 1.78 + 0.023 + s x 0.398) x 1.05 <= 40 -> 85, and max_num_seqs is 32
        ("phi-3-mini", "int4-kv8", 40, 32),
    ],
)
def test_kv_takes_what_the_grant_leaves(name: str, variant_name: str, granted_gib: int, seqs: int) -> None:
    num_seqs, memory = spend(model(name), variant(name, variant_name), granted_gib * GIB, Isa.AMX)
    assert num_seqs == seqs
    assert memory.total_bytes == granted_gib * GIB
    assert memory.headroom_bytes >= (memory.weights_bytes + memory.kv_cache_bytes + memory.runtime_bytes) * 5 // 100


@pytest.mark.parametrize(
    ("name", "variant_name"),
    [(name, entry["name"]) for name, data in production_models().items() for entry in data["variants"]],
)
def test_the_catalogue_agrees_with_the_formula(name: str, variant_name: str) -> None:
    entry = variant(name, variant_name)
    expected = weights_bytes_by_formula(model(name).architecture, entry.weight_format)
    assert entry.weights_bytes == pytest.approx(expected, rel=0.001)
