"""A module of `library`, run as the program that it is, without Ansible's start, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from rendering import PROJECT

START = """
import runpy, sys
import ansible.module_utils
from ansible.module_utils import basic
ansible.module_utils.__path__.append(sys.argv[2])
basic._ANSIBLE_PROFILE = "legacy"
basic._ANSIBLE_ARGS = sys.stdin.buffer.read()
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def run_module(
    module: str,
    /,
    *,
    check: bool = False,
    environment: Mapping[str, str] | None = None,
    **arguments: Any,  # noqa: ANN401  # what a module takes is of any type
) -> dict[str, Any]:
    """Hand the arguments to the module as Ansible does; what it returned, a failure included. `environment` is added to this process's."""
    finished = subprocess.run(
        [sys.executable, "-c", START, str(PROJECT / "library" / f"{module}.py"), str(PROJECT / "module_utils")],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments | {"_ansible_check_mode": check}}).encode(),
        env=os.environ | (environment or {}),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert finished.stdout, finished.stderr.decode()
    return dict(json.loads(finished.stdout))
