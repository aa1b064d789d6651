"""What a folder of weights says of its model: config.json and the headers of the safetensors files, never the weights.

Needs the standard library alone and nothing of this package: the Ansible module that verifies weights on a host
carries this one file along (module_utils/), so that catalogue and verification read a folder in the same way.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Figures = dict[str, str | int | None]


class ModelFolderError(ValueError):
    """The folder cannot be served. Its text is the end of a sentence that begins with the folder: "has no config.json"."""


class UnknownArchitectureError(ModelFolderError):
    """The folder may be sound, but nobody has counted how much memory models of its class need."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as its header describes it."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Description:
    """A model as the catalogue describes one."""

    architecture: Figures
    """The keys of ``architecture`` in the catalogue."""
    weight_format: str
    weights_bytes: int


# --- files

INDEX: Final = "model.safetensors.index.json"
_OTHER_WEIGHTS: Final = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
_HEADER_SIZE: Final = struct.Struct("<Q")
_MAX_HEADER_BYTES: Final = 100_000_000
"""As in the safetensors library; a larger one is not a header."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``.

    Raises:
        ModelFolderError: Where it is missing, no JSON, or names no architecture.

    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError("has no config.json") from None
    except OSError as error:
        raise ModelFolderError(f"has a config.json that cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ModelFolderError(f"has a config.json that is not JSON ({error})") from None
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelFolderError("has a config.json without 'architectures'")
    return dict(config)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the headers of the weight files that vLLM would load.

    With an index these are the files that it names and no others (vllm/model_executor/model_loader/weight_utils.py,
    filter_duplicate_safetensors_files): some repositories hold a second copy in another layout beside them.

    Raises:
        ModelFolderError: Where there are none, one is missing, or one is not whole.

    """
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
        if others:
            raise ModelFolderError(
                f"has weights as {others[0]} only, not as *.safetensors: take a revision that has those, or convert them with"
                " save_pretrained of the transformers library"
            )
        raise ModelFolderError("has no weights (*.safetensors)")
    named = _files_in_index(folder)
    if missing := sorted(set(named) - set(files)):
        raise ModelFolderError(f"lacks {', '.join(missing)}, which its {INDEX} names")
    tensors: dict[str, Tensor] = {}
    for name in named or files:
        for key, tensor in _read_header(folder / name).items():
            if key in tensors:
                raise ModelFolderError(f"has the tensor {key} twice, the second time in {name}: remove the copies or add {INDEX}")
            tensors[key] = tensor
    if not tensors:
        raise ModelFolderError("has weight files without a single tensor")
    return tensors


def _files_in_index(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.exists():
        return []
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise ModelFolderError(f"has damaged weights: {INDEX} does not say which file holds which tensor") from None


def _read_header(path: Path) -> dict[str, Tensor]:
    """Read one file's header: 8 bytes little-endian size, JSON, data (https://huggingface.co/docs/safetensors#format)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_HEADER_SIZE.size)
            if len(prefix) < _HEADER_SIZE.size:
                raise ModelFolderError(f"has damaged weights: {path.name} is cut off after {size} bytes")
            (header_bytes,) = _HEADER_SIZE.unpack(prefix)
            if header_bytes > _MAX_HEADER_BYTES:
                raise ModelFolderError(f"has damaged weights: {path.name} is not a safetensors file")
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        raise ModelFolderError(f"has weights that cannot be read: {path.name} ({error.strerror})") from None
    except ModelFolderError:
        raise
    except ValueError:
        cut = size < _HEADER_SIZE.size + header_bytes
        raise ModelFolderError(
            f"has damaged weights: {path.name} is {'cut off in its header' if cut else 'not a safetensors file'}"
        ) from None
    tensors: dict[str, Tensor] = {}
    data_bytes = 0
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(extent) for extent in entry["shape"])
            if not 0 <= begin <= end:
                raise ValueError(name)
            tensors[name] = Tensor(dtype=str(entry["dtype"]), shape=shape, size_bytes=end - begin)
            data_bytes = max(data_bytes, end)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelFolderError(f"has damaged weights: {path.name} has a header that does not describe tensors") from None
    whole = _HEADER_SIZE.size + header_bytes + data_bytes
    if size < whole:
        raise ModelFolderError(f"has damaged weights: {path.name} is cut off: {size} bytes of {whole}")
    return tensors


def weights_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Sum the bytes of all tensors, without headers."""
    return sum(tensor.size_bytes for tensor in tensors.values())


# --- the model


@dataclass(frozen=True)
class _Class:
    """How the config.json of one class of models is to be read, where a key is missing.

    Source: transformers/models/*/configuration_*.py as vLLM 0.32 uses them.
    """

    kv_heads_default_to_heads: bool = False
    sliding_window_default: int | None = None
    window_needs_a_switch: bool = False
    head_dim_is_required: bool = False


CLASSES: Final[Mapping[str, _Class]] = {
    "LlamaForCausalLM": _Class(kv_heads_default_to_heads=True),
    "MistralForCausalLM": _Class(sliding_window_default=4096),
    "MixtralForCausalLM": _Class(),
    "Phi3ForCausalLM": _Class(kv_heads_default_to_heads=True),
    "Qwen2ForCausalLM": _Class(sliding_window_default=4096, window_needs_a_switch=True),
    "Qwen3ForCausalLM": _Class(sliding_window_default=4096, window_needs_a_switch=True, head_dim_is_required=True),
}
"""The classes whose layers the plan's formulas count: attention with key and value heads, gate, up and down projection,
all of it once per expert in a mixture."""

_BLOCK: Final = re.compile(r"(?:^|\.)layers\.\d+\.")
_ROUTERS: Final = (".block_sparse_moe.gate.weight", ".mlp.gate.weight")
_PACKED: Final = (".qweight", ".weight_packed")
_NO_PARAMETERS: Final = (
    ".scales", ".qzeros", ".g_idx", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
    ".input_scale", ".input_zero_point", ".output_scale", ".k_scale", ".v_scale",
)  # fmt: skip
"""What a quantization adds beside the parameters."""

_INT4_PER_WORD: Final = 8
_UNQUANTIZED: Final = frozenset({"BF16", "F16"})


def read_architecture(config: Mapping[str, Any]) -> Figures:
    """Read the figures of ``architecture`` that stand in config.json; the two counts of parameters stand in the weights.

    Raises:
        UnknownArchitectureError: Where the class is not one of :data:`CLASSES`.
        ModelFolderError: Where a key is missing or no number.

    """
    name = config["architectures"][0]
    if name not in CLASSES:
        raise UnknownArchitectureError(f"is of the architecture {name}, which nobody has counted: known are {', '.join(CLASSES)}")
    kind = CLASSES[name]
    hidden, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    kv_heads = _integer(config, "num_key_value_heads", heads if kind.kv_heads_default_to_heads else None)
    mixture = "num_local_experts" in config or name == "MixtralForCausalLM"
    return {
        "class": name,
        "layers": _integer(config, "num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": _integer(config, "head_dim", None if kind.head_dim_is_required else hidden // heads),
        "experts": _integer(config, "num_local_experts") if mixture else 0,
        "experts_per_token": _integer(config, "num_experts_per_tok") if mixture else 0,
        "vocabulary": _integer(config, "vocab_size"),
        "intermediate": _integer(config, "intermediate_size"),
        "sliding_window_tokens": _sliding_window(config, kind),
        "native_context_tokens": _integer(config, "max_position_embeddings"),
    }


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise ModelFolderError(f"has a config.json without '{key}'")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelFolderError(f"has a config.json with {key} {json.dumps(value)}, which is not a number from 1 up")
    return value


def _sliding_window(config: Mapping[str, Any], kind: _Class) -> int | None:
    """Read the attention window; null and 0 mean none (vllm/config/model.py), and so does a switch that is off."""
    if not config.get("use_sliding_window", not kind.window_needs_a_switch):
        return None
    if config.get("sliding_window", kind.sliding_window_default) in {None, 0}:
        return None
    return _integer(config, "sliding_window", kind.sliding_window_default)


def describe(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Description:
    """Describe a model as the catalogue does.

    Args:
        config: Its config.json.
        tensors: The headers of its weights.

    Raises:
        UnknownArchitectureError: Where the class is not one of :data:`CLASSES`.
        ModelFolderError: Where config.json and weights contradict each other or the weights' format is none that the
            plan knows.

    """
    figures = read_architecture(config)
    weight_format = _weight_format(config, tensors)
    linear = {name for name in tensors if _is_linear(name, tensors[name])}
    counts = {name: _parameters(name, tensor) for name, tensor in tensors.items()}
    linear_parameters = sum(counts[name] for name in linear)
    _check_linear(figures, linear_parameters)
    _check_vocabulary(figures, config, tensors)
    figures["linear_parameters"] = linear_parameters
    figures["other_parameters"] = sum(counts.values()) - linear_parameters
    return Description(architecture=figures, weight_format=weight_format, weights_bytes=weights_bytes(tensors))


def _is_linear(name: str, tensor: Tensor) -> bool:
    """Tell what a quantization touches: the matrices inside the decoder blocks, without the router of the experts."""
    if _BLOCK.search(name) is None or name.endswith((*_ROUTERS, *_NO_PARAMETERS)):
        return False
    return len(tensor.shape) >= 2


def _parameters(name: str, tensor: Tensor) -> int:
    if name.endswith(_NO_PARAMETERS):
        return 0
    return math.prod(tensor.shape) * (_INT4_PER_WORD if name.endswith(_PACKED) else 1)


def _check_linear(figures: Figures, found: int) -> None:
    """Compare the matrices with what config.json makes of them: layers, heads, widths and experts in one figure."""
    layers, hidden, heads, kv_heads, head_dim, intermediate, experts = (
        int(figures[key] or 0) for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "experts")
    )
    attention = hidden * head_dim * (heads + 2 * kv_heads) + heads * head_dim * hidden
    expected = layers * (attention + max(1, experts) * 3 * hidden * intermediate)
    if found != expected:
        raise ModelFolderError(
            f"has {found} parameters in the matrices of its decoder blocks, and its config.json makes {expected} ({layers} layers,"
            f" {heads} heads, {kv_heads} key and value heads): files are missing, or the two belong to different models"
        )


def _check_vocabulary(figures: Figures, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    expected = (figures["vocabulary"], figures["hidden"])
    embeddings = {name: tensor for name, tensor in tensors.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    for name, tensor in embeddings.items():
        if tensor.shape != expected:
            raise ModelFolderError(
                f"has {name} of {' x '.join(map(str, tensor.shape))}, and its config.json makes {expected[0]} x {expected[1]}"
                " (vocab_size x hidden_size)"
            )
    if not any(name.endswith("embed_tokens.weight") for name in embeddings):
        raise ModelFolderError("has no embed_tokens.weight among its tensors: files are missing")
    if len(embeddings) == 1 and not config.get("tie_word_embeddings", False):
        raise ModelFolderError("has no lm_head.weight, and its config.json has no tie_word_embeddings: files are missing")


def _weight_format(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Name the format of the matrices, as config.json and their own type agree on it."""
    promised, dtypes = _promised_format(config.get("quantization_config"))
    found = {tensor.dtype for name, tensor in tensors.items() if _is_linear(name, tensor)}
    if found == {"F32"} and promised == "bf16":
        raise ModelFolderError("has weights in F32, twice what vLLM would use: save them in bfloat16 first")
    # A quantization may leave single matrices as they are.
    if not found & dtypes or not found <= dtypes | _UNQUANTIZED:
        raise ModelFolderError(
            f"has matrices of type {' and '.join(sorted(found)) or 'none'}, and its config.json promises {promised}"
            f" ({' or '.join(sorted(dtypes))}): the two belong to different models"
        )
    return promised


def _promised_format(quantization: object) -> tuple[str, frozenset[str]]:
    """Read the format from ``quantization_config``, with the types that its matrices have then."""
    if quantization is None:
        return "bf16", _UNQUANTIZED
    if not isinstance(quantization, Mapping):
        raise ModelFolderError("has a config.json whose quantization_config is not a mapping")
    method = quantization.get("quant_method")
    bits = quantization.get("bits")
    if method in {"awq", "gptq"}:
        if bits != 4:
            raise ModelFolderError(f"is quantized as {method} with {bits} bits: the plan knows 4")
        if method == "gptq" and quantization.get("desc_act") and quantization.get("group_size") != -1:
            raise ModelFolderError(
                f"is quantized as gptq with desc_act in groups of {quantization.get('group_size')}, which vLLM no longer loads: take a"
                " revision with desc_act false"
            )
        return "int4", frozenset({"I32"})
    if method == "fp8":
        return "fp8", frozenset({"F8_E4M3"})
    if method == "compressed-tensors":
        return _compressed_format(quantization)
    raise ModelFolderError(f"is quantized as {method}: the plan knows awq, gptq, fp8 and compressed-tensors")


def _compressed_format(quantization: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
    groups = quantization.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    found = {_scheme(scheme) for scheme in schemes}
    known: dict[tuple[Any, Any, Any], tuple[str, frozenset[str]]] = {
        ("int", 8, 8): ("int8", frozenset({"I8"})),
        ("int", 4, None): ("int4", frozenset({"I32"})),
        ("float", 8, 8): ("fp8", frozenset({"F8_E4M3"})),
    }
    formats = [known[scheme] for scheme in found if scheme in known]
    if len(found) != 1 or not formats:
        shown = _listed(
            f"{kind}{bits} weights with {f'{activations}-bit' if activations else '16-bit'} activations"
            for kind, bits, activations in found
        )
        raise ModelFolderError(
            f"is quantized as compressed-tensors with {shown or 'no scheme'}: the plan knows int8 weights with 8-bit activations (W8A8),"
            " float8 with 8-bit activations, and int4 weights (W4A16)"
        )
    return formats[0]


def _scheme(group: object) -> tuple[Any, Any, Any]:
    """Give type and bits of the weights and bits of the activations of one group of layers."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    activations = group.get("input_activations") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return (None, None, None)
    return (weights.get("type"), weights.get("num_bits"), activations.get("num_bits") if isinstance(activations, Mapping) else None)


def _listed(texts: Iterable[str]) -> str:
    return " and ".join(sorted(texts))


def mismatches(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Compare figures of a folder with those of the catalogue, key by key.

    Returns:
        For each key of both that differs: ``"layers is 31 in the files and 32 in the catalogue"``.

    """
    return [
        f"{key} is {_shown(found[key])} in the files and {_shown(value)} in the catalogue"
        for key, value in expected.items()
        if key in found and found[key] != value
    ]


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
