"""Workers behind one port, and those that take their place: what only they can get wrong."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from gateway.backend import ANSWER, Backend
from gateway.harness import MASTER_KEY, Gateway, upstream
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
        late = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
        late.connect()
        gateway.process.terminate()
        eventually(lambda: gateway.log().count("Shutting down"), 2)
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection("127.0.0.1", gateway.port).connect()
        late.request("POST", CHAT, json.dumps(REQUEST), {"Content-Type": "application/json", "Authorization": f"Bearer {MASTER_KEY}"})
        assert late.getresponse().status == 200, "it was connected before the stop"
        backend.gate.set()
        for stream in streams:
            assert "".join(event["choices"][0]["delta"].get("content") or "" for event in stream.result().events()) == ANSWER
    assert gateway.process.wait(timeout=30) == 0


def test_a_worker_that_has_grown_is_replaced_without_a_lost_request_or_a_lost_count(tmp_path: Path, eventually: Eventually) -> None:
    """With a bound that every worker is beyond: each is replaced as soon as its own replacement is ready."""
    kinds: list[tuple[dict[str, Any], int]] = [
        (REQUEST | {"model": "hermes-2"}, 200),
        (REQUEST | {"model": "hermes-2", "stream": True}, 200),
        (REQUEST, 200),
        (REQUEST | {"model": "openchat-3.5"}, 200),  # by fallback
        (REQUEST | {"model": "phi-3-mini"}, 400),
        (REQUEST | {"model": "unknown"}, 404),
        ({"messages": "Hello"}, 400),
    ]
    answers: list[tuple[int, int]] = []
    with Backend("hermes-2") as able, Backend("openchat-3.5", (500, "broken")) as broken, Backend("phi-3-mini", (400, "no")) as refusing:
        places = [upstream(place) for place in (able, broken, refusing)]
        variables = {"gateway_fallbacks": {"openchat-3.5": ["hermes-2"]}}
        with Gateway(tmp_path, places, variables, worker_memory_max_bytes=1) as gateway:

            def page() -> str:
                return gateway.get("/metrics/").text

            def counted(**labels: str) -> float:
                return total(page(), "litellm_proxy_total_requests_metric_total", route=CHAT, **labels)

            def malformed() -> float:
                return total(page(), "citadel_gateway_malformed_requests_total")

            def ask(number: int) -> None:
                for position in itertools.count(number):
                    body, expected = kinds[position % len(kinds)]
                    answers.append((expected, gateway.post(CHAT, body).status))
                    if len(answers) >= 10 * len(kinds) and gateway.log().count("takes its place") >= 2:
                        return

            assert (counted(), malformed(), able.received) == (0, 0, []), "the warm-up neither counts nor asks a model"
            with ThreadPoolExecutor(max_workers=4) as pool:
                list(pool.map(ask, range(4)))
            assert [(expected, status) for expected, status in answers if status != expected] == []
            eventually(lambda: counted() + malformed(), len(answers))
            assert counted(status_code="200") == answers.count((200, 200))
            assert counted(status_code="400") + malformed() == answers.count((400, 400))
            assert counted(status_code="404") == answers.count((404, 404))
            by_fallback = total(page(), "litellm_deployment_successful_fallbacks_total", requested_model="openchat-3.5")
            assert by_fallback == len(broken.received)
            chosen = total(page(), "citadel_gateway_decisions_total")
            assert chosen == len(able.received) + len(refusing.received), "whoever was told of an unknown model had none chosen"
            assert "pid=" not in page(), "or each replacement would leave series behind"
