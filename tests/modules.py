"""A module of `library`, run as the program that it is, without Ansible's start, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rendering import PROJECT

START = """
import runpy, sys
from ansible.module_utils import basic
basic._ANSIBLE_PROFILE = "legacy"
basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def run_module(module: str, /, *, check: bool = False, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401  # what a module takes is of any type
    """Hand the arguments to the module as Ansible does; what it returned, a failure included."""
    finished = subprocess.run(
        [sys.executable, "-c", START, str(PROJECT / "library" / f"{module}.py")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments | {"_ansible_check_mode": check}}).encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert finished.stdout, finished.stderr.decode()
    return dict(json.loads(finished.stdout))
