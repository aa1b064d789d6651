"""A catalogue entry from a folder of weights: what the files say, and a request that fits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalogue import CATALOGUE, merge_catalogue
from .memory import memory_needed
from .model_folder import Description, ModelFolderError, describe, read_config, read_tensors
from .parse import parse_models
from .problems import Problems
from .storage import storage_needed
from .units import GIB, round_up

if TYPE_CHECKING:
    from .inputs import Model

_CONTEXT_TOKENS = 8192
"""Proposed where the model could hold more: every token of context costs KV cache, and few requests need more."""

_TOKENIZER_CONFIG = "tokenizer_config.json"


def read_model_folder(folder: Path) -> tuple[Description, list[str]]:
    """Read a folder.

    Args:
        folder: With config.json and ``*.safetensors``; only headers are read.

    Returns:
        The description, and what the model can be asked (``modes`` of the catalogue): a chat needs a chat template.

    Raises:
        ModelFolderError: The end of a sentence that begins with the folder.

    """
    if not folder.is_dir():
        raise ModelFolderError("is no folder")
    description = describe(read_config(folder), read_tensors(folder))
    return description, ["chat", "completion"] if _has_chat_template(folder) else ["completion"]


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists():
        return True
    try:
        return bool(json.loads((folder / _TOKENIZER_CONFIG).read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def catalogue_entry(description: Description, *, name: str, port: int, modes: list[str], path: Path) -> dict[str, Any]:
    """Write an entry of the catalogue.

    The requested memory is what the plan counts for ``min_num_seqs`` sequences on a CPU, and the disk what the weights
    need, each rounded up to whole GiB.

    Args:
        description: The model.
        name: Of the service.
        port: Of its API.
        modes: What it can be asked.
        path: Folder of the weights on the controller, absolute.

    Returns:
        ``{name: entry}``, which the plan accepts as it is.

    Raises:
        PlanError: With a sentence for every value that the plan refuses, such as a port below 1024.

    """
    context_tokens = min(int(description.architecture["native_context_tokens"] or 0), _CONTEXT_TOKENS)
    entry: dict[str, Any] = {
        "description": f"{name}, to be described in a sentence",
        "specialisation": [],
        "modes": modes,
        "architecture": dict(description.architecture),
        "request": {
            "port": port,
            "memory": "1TiB",
            "cpus": 4,
            "context_tokens": context_tokens,
            "storage": "1TiB",
            "target_latency_milliseconds": 2000,
        },
        "min_num_seqs": 2,
        "max_num_seqs": 16,
        "pin": {},
        "engine": {"max_num_batched_tokens": 2048, "enforce_eager": None, "extra_arguments": []},
        "variants": [
            {
                "name": description.weight_format,
                "weight_format": description.weight_format,
                "weights_bytes": description.weights_bytes,
                "quantization": None,
                "kv_cache_dtype": "auto",
                "source": {"type": "controller_folder", "path": str(path)},
            }
        ],
    }
    model = _parsed(name, entry)
    needed = memory_needed(model, model.variants[0], model.min_num_seqs).total_bytes
    entry["request"]["memory"] = _gib(needed)
    entry["request"]["storage"] = _gib(storage_needed(model.variants[0]))
    return {name: entry}


def _gib(size_bytes: int) -> str:
    return f"{round_up(size_bytes, GIB) // GIB}GiB"


def _parsed(name: str, entry: dict[str, Any]) -> Model:
    """Read the entry as the plan will: what it refuses is refused here, in the same words."""
    problems = Problems(CATALOGUE)
    models = parse_models(merge_catalogue({name: entry}, None, problems), problems)
    problems.raise_if_any()
    return models[0]
