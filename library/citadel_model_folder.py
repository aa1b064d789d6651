#!/usr/bin/python
"""Ansible module: reads a folder of model weights, on the controller or on the host. Changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_model_folder
short_description: Reads a folder of model weights
description:
  - Says whether a folder holds a model that vLLM can load, how many bytes its tensors take, and a fingerprint of its files.
  - Only the headers of the weight files are read, never the weights.
options:
  path:
    description: The folder.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: Reads only.
"""

EXAMPLES = r"""
- name: Read the folder
  citadel_model_folder:
    path: /opt/models/hermes-2
"""

RETURN = r"""
exists:
  description: Whether the folder exists.
  returned: always
  type: bool
defect:
  description: Why it cannot be served, as the end of a sentence; empty where it can.
  returned: always
  type: str
weights_bytes:
  description: Bytes of all tensors, from the headers of the safetensors files.
  returned: always
  type: int
fingerprint:
  description: Changes with the name, size or content (small files), or size and modification time (weights), of any file.
  returned: always
  type: str
origin:
  description: What the folder's own record says it was made from; empty without a record.
  returned: always
  type: str
"""

import hashlib
import json
import struct
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

RECORD = ".citadel-origin"
SMALL_FILE_BYTES = 32 << 20


def tensor_bytes(path):
    """Bytes of the tensors in a safetensors file. Format: 8 bytes little-endian header size, JSON header, data
    (https://huggingface.co/docs/safetensors#format). Raises ValueError where the file is shorter than its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{path.name} is cut off: {size} bytes")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > size:
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(header_bytes))
    ends = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    end = max((offsets[1] for offsets in ends), default=0)
    if size < 8 + header_bytes + end:
        raise ValueError(f"{path.name} is cut off: {size} bytes of {8 + header_bytes + end}")
    return sum(offsets[1] - offsets[0] for offsets in ends)


def config_defect(folder):
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return "has no config.json"
    except ValueError as error:
        return f"has a config.json that is not JSON ({error})"
    return "" if isinstance(config, dict) and config.get("architectures") else "has a config.json without 'architectures'"


def read(folder):
    """(defect, weights_bytes) of a model folder."""
    if defect := config_defect(folder):
        return defect, 0
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return "has no weights (*.safetensors)", 0
    try:
        index = folder / "model.safetensors.index.json"
        named = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
        if missing := sorted(named - {path.name for path in weights}):
            return f"lacks {', '.join(missing)}, which its index names", 0
        return "", sum(tensor_bytes(path) for path in weights)
    except (ValueError, KeyError) as error:
        return f"has damaged weights: {error}", 0


def fingerprint(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != RECORD:
            status = path.stat()
            small = status.st_size <= SMALL_FILE_BYTES
            content = hashlib.sha256(path.read_bytes()).hexdigest() if small else str(int(status.st_mtime))
            digest.update(f"{path.relative_to(folder)} {status.st_size} {content}\n".encode())
    return digest.hexdigest()


def main():
    module = AnsibleModule(argument_spec={"path": {"type": "path", "required": True}}, supports_check_mode=True)
    folder = Path(module.params["path"])
    if not folder.is_dir():
        module.exit_json(changed=False, exists=False, defect="does not exist", weights_bytes=0, fingerprint="", origin="")
    defect, weights_bytes = read(folder)
    record = folder / RECORD
    module.exit_json(
        changed=False,
        exists=True,
        defect=defect,
        weights_bytes=weights_bytes,
        fingerprint=fingerprint(folder),
        origin=record.read_text().strip() if record.exists() else "",
    )


if __name__ == "__main__":
    main()
