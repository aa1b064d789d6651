"""Several workers behind one port: what only they can get wrong."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from gateway.backend import ANSWER, Backend
from gateway.harness import Gateway, upstream
from gateway.metrics import total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Eventually = Callable[[Callable[[], object], object], None]

CHAT = "/v1/chat/completions"
REQUEST = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend("hermes-2") as running:
        yield running


@pytest.fixture
def gateway(backend: Backend, tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path, [upstream(backend)], workers=2) as running:
        yield running


def test_workers_count_together_and_drain_together(gateway: Gateway, backend: Backend, eventually: Eventually) -> None:
    """One start for both: two workers take a while."""

    def requests() -> float:
        return total(gateway.get("/metrics/").text, "litellm_proxy_total_requests_metric_total", status_code="200", route=CHAT)

    with ThreadPoolExecutor(max_workers=8) as pool:
        statuses = list(pool.map(lambda _: gateway.post(CHAT, REQUEST).status, range(120)))
    assert statuses == [200] * 120
    eventually(requests, 120)
    # Whoever answers, the page is everybody's.
    assert {requests() for _ in range(10)} == {120}
    assert total(gateway.get("/metrics/").text, "citadel_gateway_decisions_total", rule="otherwise", model="hermes-2") == 120
    workers = set(re.findall(r"Started server process \[(\d+)\]", gateway.log()))
    counted_by = {worker for worker in workers if list((gateway.folder / "run" / "metrics").glob(f"*_{worker}.db"))}
    assert len(workers) == 2
    assert counted_by == workers, "both workers have served"

    backend.gate = threading.Event()
    with ThreadPoolExecutor(max_workers=6) as pool:
        streams = [pool.submit(gateway.post, CHAT, REQUEST | {"stream": True}) for _ in range(6)]
        eventually(lambda: len(backend.received), 126)
        gateway.process.terminate()
        eventually(lambda: gateway.log().count("Shutting down"), 2)
        backend.gate.set()
        for stream in streams:
            assert "".join(event["choices"][0]["delta"].get("content") or "" for event in stream.result().events()) == ANSWER
    assert gateway.process.wait(timeout=30) == 0
