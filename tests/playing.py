"""Playbooks as an operator runs them, on this machine and nothing beyond it, and mocks of the programs that a host would bring."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rendering import PROJECT


def run_playbook(
    playbook: Path | Mapping[str, Any],
    *arguments: str,
    folder: Path,
    inventory: Path | str | Sequence[Path] = "localhost,",
    variables: Mapping[str, Any] | None = None,
    as_root: bool = False,
    path: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a playbook, or a single play, from the project's root.

    What Ansible keeps, and the play and the variables that are given, are written to ``folder``: in a file, because what is given on a
    command line is shown there. ``as_root`` runs it as root of a namespace of its own. Programs in ``path`` come before the machine's.
    The output is without colours; whether it failed is left to the caller.
    """
    if isinstance(playbook, Mapping):
        play, playbook = playbook, folder / "playbook.json"
        playbook.write_text(json.dumps([play]), encoding="utf-8")
    (folder / "variables.json").write_text(
        json.dumps({"ansible_python_interpreter": sys.executable, **(variables or {})}), encoding="utf-8"
    )
    environment = os.environ | {
        "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
        "ANSIBLE_LOCAL_TEMP": str(folder),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"],
    }
    command = ["unshare", "--map-root-user"] if as_root else []
    command += [sys.executable, "-m", "ansible", "playbook", "--extra-vars", f"@{folder / 'variables.json'}"]
    for each in [inventory] if isinstance(inventory, Path | str) else inventory:
        command += ["--inventory", str(each)]
    return subprocess.run(
        [*command, *arguments, str(playbook)],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


def local_play(*tasks: Mapping[str, Any], **keywords: Any) -> dict[str, Any]:  # noqa: ANN401  # a play has keywords of many types
    """A play with these tasks on this machine."""
    return {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": list(tasks), **keywords}


def changed_tasks(finished: subprocess.CompletedProcess[str]) -> int:
    """How many tasks changed something on the last host of the recap; -1 where the run failed."""
    return int(re.findall(r"changed=(\d+)", finished.stdout)[-1]) if finished.returncode == 0 else -1


def place_program(file: Path, text: str) -> None:
    """Write a program, a mock of one that a host would have."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)
