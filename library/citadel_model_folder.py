#!/usr/bin/python
"""Ansible module: reads a folder of model weights, on the controller or on the host. Changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_model_folder
short_description: Reads a folder of model weights
description:
  - Says whether a folder holds a model that vLLM can load, how it differs from what the plan counted with, and a fingerprint of its files.
  - Only config.json and the headers of the weight files are read, never the weights.
  - How a folder is read is written once, in src/citadel_plan/model_folder.py, from which the catalogue's entries are derived too.
options:
  path:
    description: The folder.
    type: path
    required: true
  expected_weights_bytes:
    description: Bytes of all tensors that the plan counted with; left out, they are not compared.
    type: int
  expected_architecture:
    description: The model's figures that the plan counted with, as in the catalogue; only keys that are given are compared.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Reads only.
"""

EXAMPLES = r"""
- name: Read the folder
  citadel_model_folder:
    path: /opt/models/hermes-2
    expected_weights_bytes: 14483496960
    expected_architecture: {class: MistralForCausalLM, layers: 32}
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
mismatches:
  description: What differs from what was expected, each with both figures; empty where there is a defect.
  returned: always
  type: list
  elements: str
  sample: [layers is 31 in the files and 32 in the catalogue]
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
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel_model_folder import (
    ModelFolderError,
    UnknownArchitectureError,
    describe,
    mismatches,
    read_config,
    read_tensors,
    weights_bytes,
)

RECORD = ".citadel-origin"
SMALL_FILE_BYTES = 32 << 20


def read(folder):
    """(defect, figures) of a model folder: the keys of a catalogue entry's architecture, and weights_bytes."""
    try:
        config = read_config(folder)
        tensors = read_tensors(folder)
        try:
            architecture = describe(config, tensors).architecture
        except UnknownArchitectureError:
            # vLLM may well serve it, and its operator has counted: what is left to compare is the class and the bytes.
            architecture = {"class": config["architectures"][0]}
    except ModelFolderError as error:
        return str(error), {"weights_bytes": 0}
    return "", {**architecture, "weights_bytes": weights_bytes(tensors)}


def expected(params):
    figures = dict(params["expected_architecture"])
    if params["expected_weights_bytes"] is not None:
        figures["weights_bytes"] = params["expected_weights_bytes"]
    return figures


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
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "expected_weights_bytes": {"type": "int"},
            "expected_architecture": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    folder = Path(module.params["path"])
    if not folder.is_dir():
        module.exit_json(changed=False, exists=False, defect="does not exist", weights_bytes=0, mismatches=[], fingerprint="", origin="")
    defect, figures = read(folder)
    record = folder / RECORD
    module.exit_json(
        changed=False,
        exists=True,
        defect=defect,
        weights_bytes=figures["weights_bytes"],
        mismatches=[] if defect else mismatches(figures, expected(module.params)),
        fingerprint=fingerprint(folder),
        origin=record.read_text().strip() if record.exists() else "",
    )


if __name__ == "__main__":
    main()
