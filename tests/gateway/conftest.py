"""What the tests of the gateway share."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from gateway.backend import Backend
from gateway.harness import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    """One model server per model, by name."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Backend(name)) for name in MODELS}


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], object], object], None]:
    """Assert that a function comes to return a value within ten seconds: LiteLLM counts and logs after it has answered."""

    def check(look: Callable[[], object], expected: object) -> None:
        deadline = time.monotonic() + 10
        while (seen := look()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        assert seen == expected

    return check
