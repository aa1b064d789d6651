"""What the tests of the gateway share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gateway.backend import Backend
from gateway.harness import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    """One model server per model, by name."""
    servers = {name: Backend(name) for name in MODELS}
    for server in servers.values():
        server.__enter__()
    yield servers
    for server in servers.values():
        server.__exit__()
