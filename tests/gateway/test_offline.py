"""The gateway needs no network: neither for its start nor for its first requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_of_it_leaves_the_host(tmp_path: Path) -> None:
    run = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-m", "gateway.offline", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, f"{run.stderr}\nThis test makes a network namespace: it needs root or unprivileged user namespaces."
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["instrument"] > 0, "an attempt to leave would not have been seen"
    assert seen["answers"] == [200] * 5
    assert seen["attempts"] == 0
