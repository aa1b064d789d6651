"""A catalogue entry from a folder of weights: what the files say, and a request that fits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .api import plan
from .model_folder import Description, ModelFolderError, describe, read_config, read_tensors
from .problems import PlanError
from .units import GIB, TIB, round_up

if TYPE_CHECKING:
    from .result import ServicePlan

_CONTEXT_TOKENS: Final = 8192
"""Proposed where the model could hold more: every token of context costs KV cache, and few requests need more."""

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"

_LEAST_MEMORY: Final = "64MiB"
"""A request that no model fits: the plan then grants exactly what the model needs."""

_ROOMY: Final = "a host with room for it"
_ROOMY_CORES: Final = 64
_ROOMY_HOST: Final[dict[str, Any]] = {
    "memory_bytes": 16 * TIB,
    "cpus": list(range(_ROOMY_CORES)),
    "numa_nodes": [{"id": 0, "cpus": f"0-{_ROOMY_CORES - 1}", "memory_bytes": 16 * TIB}],
    "isa": "amx",
    "gpus": [],
    "storage_free_bytes": 64 * TIB,
    "listening_ports": [],
}
_ROOMY_GPUS: Final = [{"id": number, "memory_bytes": 4 * TIB} for number in range(8)]
"""For what runs on no CPU: there the request is memory of the host beside the GPUs."""

_SETTINGS: Final[dict[str, Any]] = {
    "policy": "rebalance",
    "memory_reserve": "0GiB",
    "storage_reserve": "0GiB",
    "prometheus_port": 1025,
    "ephemeral_ports": "1-1",
    "gateway": {"name": "gateway", "port": 1024, "memory": "2GiB", "cpus": 1, "storage": "1GiB"},
}
"""Nothing that could be in the way: whether the model fits beside others is asked of the real inventory later."""


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
        return False  # a folder without a tokenizer's configuration, or with a broken one: vLLM would refuse every chat


def catalogue_entry(description: Description, *, name: str, port: int, modes: list[str], path: Path) -> dict[str, Any]:
    """Write an entry of the catalogue.

    The requested memory is what the plan counts for ``min_num_seqs`` sequences, and the disk what the weights need, each
    rounded up to whole GiB.

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
            "memory": _LEAST_MEMORY,
            "cpus": 4,
            "context_tokens": context_tokens,
            "storage": "1TiB",
            "target_latency_milliseconds": 2000,
        },
        "min_num_seqs": 2,
        "max_num_seqs": 16,
        "pin": {},
        "engine": {"max_num_batched_tokens": 2048, "prompt_logprobs": False, "enforce_eager": None, "extra_arguments": []},
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
    service = _planned(name, entry)
    entry["request"]["memory"] = _gib(service.memory_max_bytes)
    entry["request"]["storage"] = _gib(service.storage_needed_bytes)
    return {name: entry}


def _gib(size_bytes: int) -> str:
    return f"{round_up(size_bytes, GIB) // GIB}GiB"


def _planned(name: str, entry: dict[str, Any]) -> ServicePlan:
    """Plan the model alone on a host with room for it; what the plan refuses is refused in its own words."""
    try:
        result = plan({name: entry}, overrides=None, host=_ROOMY, host_facts=_ROOMY_HOST, settings=_SETTINGS)
    except PlanError as error:
        try:
            result = plan({name: entry}, overrides=None, host=_ROOMY, host_facts={**_ROOMY_HOST, "gpus": _ROOMY_GPUS}, settings=_SETTINGS)
        except PlanError:
            raise error from None
    (service,) = result.services
    return service
