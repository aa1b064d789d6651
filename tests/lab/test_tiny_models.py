"""The lab's models are complete, consistent and the same on every run; that vLLM serves them is shown on the lab's host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jinja2.sandbox
import numpy as np
import numpy.typing as npt
import pytest
from safetensors import deserialize
from tokenizers import Tokenizer

from lab import tiny_models

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini"]
FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    tiny_models.make_models(path)
    return path


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    tensors = {}
    for name, tensor in deserialize(path.read_bytes()):
        assert tensor["dtype"] == "BF16", name
        words = np.frombuffer(tensor["data"], dtype="<u2").astype("<u4") << np.uint32(16)
        tensors[name] = words.view("<f4").reshape(tensor["shape"])
    return tensors


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Derive what Hugging Face's classes expect for this configuration, written down independently of the program."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    expected: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    dense = {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    split = {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden)}
    mixture = {"block_sparse_moe.gate": (config.get("num_local_experts", 0), hidden)}
    for expert in range(config.get("num_local_experts", 0)):
        mixture[f"block_sparse_moe.experts.{expert}.w1"] = (inner, hidden)
        mixture[f"block_sparse_moe.experts.{expert}.w2"] = (hidden, inner)
        mixture[f"block_sparse_moe.experts.{expert}.w3"] = (inner, hidden)
    fused = {
        "self_attn.qkv_proj": (queries + 2 * keys, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    blocks = {
        "MixtralForCausalLM": split | mixture,
        "MistralForCausalLM": split | dense,
        "Phi3ForCausalLM": fused,
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        expected[f"{prefix}.input_layernorm.weight"] = (hidden,)
        expected[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        expected[f"{prefix}.self_attn.o_proj.weight"] = (hidden, queries)
        for name, shape in blocks[config["architectures"][0]].items():
            expected[f"{prefix}.{name}.weight"] = shape
    return expected


def render(model_folder: Path, messages: list[dict[str, str]]) -> str:
    config = read_json(model_folder / "tokenizer_config.json")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(config["chat_template"]).render(
        messages=messages, add_generation_prompt=True, bos_token=config["bos_token"], eos_token=config["eos_token"]
    )


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_the_command_writes_four_folders_and_says_what_is_in_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, tiny_models.__file__, str(tmp_path / "new" / "models")], check=True, capture_output=True, text=True, umask=0o077
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == NAMES
    for line, model in zip(lines, tiny_models.MODELS, strict=True):
        assert f" {model.parameters} parameters, {model.weights_bytes} bytes" in line
        target = tmp_path / "new" / "models" / model.name
        assert {path.name for path in target.iterdir()} == FILES
        assert target.stat().st_mode & 0o777 == 0o755
        assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o644}


def test_every_run_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for run, hash_seed in enumerate(("1", "2")):
        subprocess.run(
            [sys.executable, tiny_models.__file__, str(tmp_path / str(run))],
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )
        for name in NAMES:
            for file in FILES:
                assert (tmp_path / str(run) / name / file).read_bytes() == (folder / name / file).read_bytes(), f"{name}/{file}"


def test_a_second_run_touches_nothing_and_mends_what_was_broken(tmp_path: Path) -> None:
    tiny_models.make_models(tmp_path)
    before = snapshot(tmp_path)
    tiny_models.make_models(tmp_path)
    assert snapshot(tmp_path) == before

    broken = tmp_path / "hermes-2" / "model.safetensors"
    good = broken.read_bytes()
    broken.write_bytes(good[:1000])
    with broken.open("rb") as mapped:
        tiny_models.make_models(tmp_path)
        assert mapped.read() == good[:1000], "the file was rewritten under a reader"
    assert broken.read_bytes() == good
    assert set(snapshot(tmp_path)) == set(before)


@pytest.mark.parametrize(
    ("name", "architecture", "context_tokens", "sliding_window"),
    [
        ("mixtral-8x7b", "MixtralForCausalLM", 32768, None),
        ("hermes-2", "MistralForCausalLM", 32768, 4096),
        ("openchat-3.5", "MistralForCausalLM", 8192, 4096),
        ("phi-3-mini", "Phi3ForCausalLM", 4096, 2047),
    ],
)
def test_config_is_that_of_the_real_model_but_for_sizes(
    folder: Path, name: str, architecture: str, context_tokens: int, sliding_window: int | None
) -> None:
    config = read_json(folder / name / "config.json")
    assert config["architectures"] == [architecture]
    assert config["max_position_embeddings"] == context_tokens
    assert config["sliding_window"] == sliding_window
    assert config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is False
    if architecture == "MixtralForCausalLM":
        assert (config["num_local_experts"], config["num_experts_per_tok"]) == (8, 2)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    assert head_dim % 32 == 0, "vLLM's CPU attention supports no smaller head"
    assert read_json(folder / name / "tokenizer_config.json")["model_max_length"] == context_tokens


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_the_config_calls_for(folder: Path, name: str) -> None:
    tensors = read_tensors(folder / name / "model.safetensors")
    assert {key: values.shape for key, values in tensors.items()} == shapes_of(read_json(folder / name / "config.json"))
    assert all(np.isfinite(values).all() for values in tensors.values())


@pytest.mark.parametrize("model", tiny_models.MODELS, ids=NAMES)
def test_the_returned_figures_are_those_of_the_files(folder: Path, model: tiny_models.TinyModel) -> None:
    tensors = read_tensors(folder / model.name / "model.safetensors")
    config = read_json(folder / model.name / "config.json")
    assert model.parameters == sum(values.size for values in tensors.values())
    assert model.weights_bytes == 2 * model.parameters
    figures = model.architecture()
    assert figures["linear_parameters"] == model.parameters - model.other_parameters
    assert figures == {
        "class": config["architectures"][0],
        "layers": config["num_hidden_layers"],
        "hidden": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "kv_heads": config["num_key_value_heads"],
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
        "experts": config.get("num_local_experts", 0),
        "experts_per_token": config.get("num_experts_per_tok", 0),
        "vocabulary": config["vocab_size"],
        "intermediate": config["intermediate_size"],
        "sliding_window_tokens": config["sliding_window"],
        "native_context_tokens": config["max_position_embeddings"],
        "linear_parameters": figures["linear_parameters"],
        "other_parameters": figures["other_parameters"],
    }


@pytest.mark.parametrize(
    ("index", "sizes", "linear_parameters", "other_parameters"),
    [
        (
            0,
            {"hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 14336, "vocabulary": 32000},
            46439333888,
            263458816,
        ),
        (
            1,
            {"hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 14336, "vocabulary": 32002},
            6979321856,
            262426624,
        ),
        (
            3,
            {"hidden": 3072, "heads": 32, "kv_heads": 32, "head_dim": 96, "intermediate": 8192, "vocabulary": 32064},
            3623878656,
            197200896,
        ),
    ],
    ids=["mixtral-8x7b", "hermes-2", "phi-3-mini"],
)
def test_with_the_real_sizes_the_figures_are_the_published_ones(
    index: int, sizes: dict[str, int], linear_parameters: int, other_parameters: int
) -> None:
    real = replace(tiny_models.MODELS[index], layers=32, **sizes)
    assert (real.linear_parameters, real.other_parameters) == (linear_parameters, other_parameters)


@pytest.mark.parametrize("name", NAMES)
def test_any_text_survives_the_tokenizer(folder: Path, name: str) -> None:
    tokenizer = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
    vocabulary = read_json(folder / name / "config.json")["vocab_size"]
    for text in ("The gateway asks another one.", "  spaces\n\tand tabs", "žluťoučký kůň 漢字 🦙", ""):
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text
        assert all(0 <= token < vocabulary for token in ids)
    assert tokenizer.get_vocab_size() <= vocabulary


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("mixtral-8x7b", "<s> [INST] Be brief.\n\nHello [/INST] Hi</s> [INST] Who? [/INST]"),
        (
            "hermes-2",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
            "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "openchat-3.5",
            "<s>GPT4 Correct System: Be brief.<|end_of_turn|>GPT4 Correct User: Hello<|end_of_turn|>"
            "GPT4 Correct Assistant: Hi<|end_of_turn|>GPT4 Correct User: Who?<|end_of_turn|>GPT4 Correct Assistant:",
        ),
        (
            "phi-3-mini",
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\n",
        ),
    ],
)
def test_chat_template_renders_as_the_real_model_expects(folder: Path, name: str, prompt: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Who?"},
    ]
    assert render(folder / name, messages) == prompt
    tokenizer = Tokenizer.from_file(str(folder / name / "tokenizer.json"))
    tokens = tokenizer.encode(prompt).tokens
    special = {"<s>", "</s>", *tiny_models.MODELS[NAMES.index(name)].special_tokens}
    assert [token for token in tokens if token in special], "no turn is marked by a token of its own"
    assert not [token for token in tokens if token not in special and "<|" in token]


def test_mixtral_refuses_two_questions_in_a_row_as_the_real_template_does(folder: Path) -> None:
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        render(folder / "mixtral-8x7b", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


@pytest.mark.parametrize("model", tiny_models.MODELS, ids=NAMES)
def test_end_tokens_exist_and_a_request_without_max_tokens_gets_a_short_answer(folder: Path, model: tiny_models.TinyModel) -> None:
    tokenizer = Tokenizer.from_file(str(folder / model.name / "tokenizer.json"))
    config = read_json(folder / model.name / "config.json")
    generation = read_json(folder / model.name / "generation_config.json")
    ends = generation["eos_token_id"] if isinstance(generation["eos_token_id"], list) else [generation["eos_token_id"]]
    assert config["eos_token_id"] in ends
    assert [tokenizer.id_to_token(token) for token in ends] == list(model.stop_tokens)
    assert tokenizer.decode([*ends, config["bos_token_id"], config["pad_token_id"]]) == ""
    assert 0 < generation["max_new_tokens"] <= 256


@pytest.mark.parametrize("model", tiny_models.MODELS, ids=NAMES)
def test_answers_are_words_of_the_corpus_and_never_end_by_themselves(folder: Path, model: tiny_models.TinyModel) -> None:
    """Embedding and output matrix alone, as the layers add only a little; they must leave the constant channel alone."""
    tokenizer = Tokenizer.from_file(str(folder / model.name / "tokenizer.json"))
    tensors = read_tensors(folder / model.name / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    normalised = embedding / np.sqrt((embedding**2).mean(axis=1, keepdims=True))
    logits = normalised @ tensors["lm_head.weight"].T

    text = " ".join((*tiny_models.CORPUS, tiny_models.CORPUS[0]))
    ids = tokenizer.encode(text).ids
    followers: dict[int, set[int]] = {}
    for before, after in pairwise(ids):
        followers.setdefault(before, set()).add(after)
    for token, expected in followers.items():
        assert int(logits[token].argmax()) in expected, f"after {tokenizer.id_to_token(token)}"

    silent = sorted(set(range(model.vocabulary)) - set(ids))
    assert {tokenizer.token_to_id(token) for token in ("<s>", "</s>", *model.special_tokens)} <= set(silent)
    assert (logits[:, silent].max(axis=1) < logits.max(axis=1) - 40).all()
    for name, values in tensors.items():
        if name.endswith((".o_proj.weight", ".down_proj.weight", ".w2.weight")):
            assert not values[0].any(), name
            assert values[1:].all(axis=1).any(), name


def test_bfloat16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, -2.0, 1.00390625, 1.01171875, 1.0078124, 0.0, 3.3895314e38], dtype=np.float32)
    words = tiny_models._bfloat16(values)
    assert words.tolist() == [0x3F80, 0xC000, 0x3F80, 0x3F82, 0x3F81, 0x0000, 0x7F7F]
