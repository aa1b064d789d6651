"""Folders of weights for tests: real configurations and tensor headers over files that are holes, whatever size they claim."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.tiny_models import MODELS, TinyModel

DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "I32": 4, "I64": 8, "F8_E4M3": 1}
Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""

# Sizes as published with each model.
MISTRAL = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "intermediate": 14336}
REAL_SIZES: dict[str, dict[str, int]] = {
    "mixtral-8x7b": {**MISTRAL, "vocabulary": 32000},
    "hermes-2": {**MISTRAL, "vocabulary": 32002},
    "openchat-3.5": {**MISTRAL, "vocabulary": 32002},
    "phi-3-mini": {"layers": 32, "hidden": 3072, "heads": 32, "kv_heads": 32, "head_dim": 96, "intermediate": 8192, "vocabulary": 32064},
}

W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True},
        }
    },
    "ignore": ["lm_head"],
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
GROUP = 128


def real_model(name: str) -> TinyModel:
    """The lab's model of this name with the sizes of the real one."""
    tiny = next(model for model in MODELS if model.name == name)
    sizes: dict[str, Any] = REAL_SIZES[name]
    return replace(tiny, **sizes)


def config_of(model: TinyModel, **changes: object) -> dict[str, Any]:
    """Its config.json, as far as anybody reads it; keys that are changed to ... are left out."""
    config: dict[str, Any] = {
        "architectures": [model.class_name],
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate,
        "max_position_embeddings": model.native_context_tokens,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "sliding_window": model.sliding_window_tokens,
        "tie_word_embeddings": False,
        "vocab_size": model.vocabulary,
    }
    if model.experts:
        config |= {"num_local_experts": model.experts, "num_experts_per_tok": model.experts_per_token}
    return {key: value for key, value in {**config, **changes}.items() if value is not ...}


def tensors_of(model: TinyModel, weight_format: str = "bf16") -> Tensors:
    """Its tensors in a format, named and shaped as the tools that make it do: llm-compressor, AutoAWQ, AutoGPTQ."""
    tensors: Tensors = {}
    for name, shape in model.tensor_shapes.items():
        linear = name.startswith("model.layers.") and len(shape) == 2 and not name.endswith(".block_sparse_moe.gate.weight")
        stem = name.removesuffix(".weight")
        if not linear or weight_format == "bf16":
            tensors[name] = ("F16" if weight_format in {"awq", "gptq"} else "BF16", shape)
            continue
        rows, columns = shape
        if weight_format == "int8":
            tensors[name] = ("I8", shape)
            tensors[f"{stem}.weight_scale"] = ("BF16", (rows, 1))
        elif weight_format == "fp8":
            tensors[name] = ("F8_E4M3", shape)
            tensors[f"{stem}.weight_scale"] = ("F32", (1,))
        elif weight_format == "awq":
            tensors[f"{stem}.qweight"] = ("I32", (columns, rows // 8))
            tensors[f"{stem}.qzeros"] = ("I32", (columns // GROUP, rows // 8))
            tensors[f"{stem}.scales"] = ("F16", (columns // GROUP, rows))
        elif weight_format == "gptq":
            tensors[f"{stem}.qweight"] = ("I32", (columns // 8, rows))
            tensors[f"{stem}.qzeros"] = ("I32", (columns // GROUP, rows // 8))
            tensors[f"{stem}.scales"] = ("F16", (columns // GROUP, rows))
            tensors[f"{stem}.g_idx"] = ("I32", (columns,))
        else:
            raise ValueError(weight_format)
    return tensors


def write_weights(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file whose header is real and whose data is a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


def write_folder(folder: Path, config: object, tensors: Tensors, *, shards: int = 1) -> Path:
    """Write a model folder; with several shards there is an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_weights(folder / "model.safetensors", tensors)
        return folder
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_dealt(list(tensors), shards), start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        write_weights(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _dealt(names: Sequence[str], hands: int) -> list[Sequence[str]]:
    return [names[hand::hands] for hand in range(hands)]
