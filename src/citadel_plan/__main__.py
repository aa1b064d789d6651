"""Derives a catalogue entry from a folder of weights: ``make model FOLDER=/path NAME=name PORT=11410``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from .derive import catalogue_entry, read_model_folder
from .model_folder import ModelFolderError
from .problems import PlanError

_HEADING = """\
# For citadel_model_overrides, or citadel_models. From the files: architecture, weights_bytes and weight_format.
# To decide: description, specialisation, and request. Its memory is what {num_seqs} sequences of {context_tokens} tokens need;
# the model itself can hold {native} tokens.
"""


def main(arguments: list[str] | None = None) -> int:
    """Print the entry as YAML.

    Returns:
        0, or 1 after a sentence on standard error where there is no entry to print.

    """
    parser = argparse.ArgumentParser(prog="make model", description="Derive a catalogue entry from a folder of weights.")
    parser.add_argument("folder", help="config.json and *.safetensors")
    parser.add_argument("--name", required=True, help="name of the service")
    parser.add_argument("--port", required=True, help="port of its API")
    given = parser.parse_args(arguments)
    for variable, value in (("FOLDER", given.folder), ("NAME", given.name), ("PORT", given.port)):
        if not value:
            print(f"{variable} is empty: write make model FOLDER=/path/to/weights NAME=name PORT=11410.", file=sys.stderr)
            return 1
    if not given.port.isdecimal():
        print(f'PORT is "{given.port}", which is not a number: write PORT=11410, or another that no model has.', file=sys.stderr)
        return 1
    folder = Path(given.folder).absolute()
    try:
        description, modes = read_model_folder(folder)
        entry = catalogue_entry(description, name=given.name, port=int(given.port), modes=modes, path=folder)
    except ModelFolderError as error:
        print(f"{folder} {error}.", file=sys.stderr)
        return 1
    except PlanError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{folder} cannot be read ({error.strerror}).", file=sys.stderr)
        return 1
    (model,) = entry.values()
    native = model["architecture"]["native_context_tokens"]
    print(_HEADING.format(num_seqs=model["min_num_seqs"], context_tokens=model["request"]["context_tokens"], native=native), end="")
    print(yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=140), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
