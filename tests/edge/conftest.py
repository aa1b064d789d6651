"""One HAProxy for each module, in which no test may leave a service in another state than it found it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge.haproxy import Edge, make_edge

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Run an edge, everything behind it healthy."""
    running = make_edge(tmp_path_factory.mktemp("edge"))
    try:
        running.start()
        yield running
    finally:
        running.stop()
