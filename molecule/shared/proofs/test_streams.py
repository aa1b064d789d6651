"""Streams and long answers through restarts, disconnects, full queues and large bodies: none is cut, none goes on for nobody.

The rows go to build/streams.json and build/streams.md.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cgroups
import pytest
from lab_host import ADDRESS, ask, health, until
from rows import keep_row
from steady_load import SteadyLoad
from testinfra.host import Host

GATEWAY = "citadel-llm@unified-api-gateway.service"
CHAT = "/v1/chat/completions"
WAIT_SECONDS = 300
STREAMS = 50
# In an order in which fifty streams are no more for any of them than it has places.
STREAMING_MODELS = ("openchat-3.5", "phi-3-mini", "hermes-2")
# Fifty streams begin one after the other on slow cores: the first must still be going when the last has begun.
LONG_TOKENS = 1200
# These must be going when the gateway is told to stop, and end within gateway_stop_timeout_seconds on slow cores too.
TOKENS = 500


@dataclass
class Stream:
    """One stream, read to its end; `began` is set with its first word."""

    port: int
    model: str
    tokens: int
    began: threading.Event = field(default_factory=threading.Event)
    words: int = 0
    status: int = 0
    usage: int | None = None
    done: bool = False

    def read(self) -> Stream:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": f"stream {id(self)}"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.tokens,
            "ignore_eos": True,
        }
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=WAIT_SECONDS)
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        self.status = answer.status
        for line in answer:
            data = line.decode().removeprefix("data: ").strip()
            if data == "[DONE]":
                self.done = True
            elif data:
                event = json.loads(data)
                self.words += len(event["choices"])
                self.usage = (event.get("usage") or {}).get("completion_tokens", self.usage)
                self.began.set()
        connection.close()
        return self

    @property
    def whole(self) -> bool:
        return (self.status, self.done, self.usage) == (200, True, self.tokens)


@contextmanager
def streaming(port: int, count: int, tokens: int) -> Iterator[tuple[list[Stream], list[Future[Stream]]]]:
    """That many streams at once, all of which have begun."""
    streams = [Stream(port, STREAMING_MODELS[number % len(STREAMING_MODELS)], tokens) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        reading = [pool.submit(stream.read) for stream in streams]
        assert until(lambda: all(stream.began.is_set() for stream in streams), WAIT_SECONDS) is not None
        yield streams, reading


@pytest.fixture(autouse=True)
def well(plan: dict[str, Any]) -> None:
    port = plan["gateway"]["port"]
    assert until(lambda: set(health(port).values()) == {"healthy"} and ask(port, "/health").status == 200, WAIT_SECONDS) is not None


# --- reload and restart ---


def test_reload_of_the_edge_under_fifty_streams(server: Host, plan: dict[str, Any]) -> None:
    port = plan["gateway"]["port"]
    with SteadyLoad([(port, None)], every_seconds=1, seconds=WAIT_SECONDS) as load:
        with streaming(port, STREAMS, LONG_TOKENS) as (streams, reading):
            cut_at = [stream.words for stream in streams]
            began = time.monotonic()
            server.check_output("systemctl reload haproxy")
            going = sum(not future.done() for future in reading)
            counts = [len(client.outcomes) + 2 for client in load.clients]
            until(lambda: all(len(client.outcomes) >= count for client, count in zip(load.clients, counts, strict=True)), WAIT_SECONDS)
        seconds = time.monotonic() - began
    row = {
        "what": f"reload of the edge under {STREAMS} streams",
        "streams going at it": going,
        "streams cut": sum(not stream.whole for stream in streams),
        "requests meanwhile": len(load.outcomes()),
        "of them failed": sum(outcome.statuses != (200,) for outcome in load.outcomes()),
        "longest wait s": f"{max(outcome.seconds for outcome in load.outcomes()):.1f}",
    }
    keep_row("streams", row)
    assert going == STREAMS, f"they had {cut_at} words, and ended within {seconds:.0f} s"
    assert row["streams cut"] == 0, [(stream.status, stream.done, stream.usage) for stream in streams if not stream.whole]
    assert row["of them failed"] == 0


def test_restart_of_the_gateway_under_a_steady_load(server: Host, plan: dict[str, Any]) -> None:
    port = plan["gateway"]["port"]
    models: list[str | None] = [*STREAMING_MODELS, None]
    run = server.check_output("systemctl show --property=InvocationID --value %s", GATEWAY)
    ways = [(port, model) for model in models]
    with SteadyLoad(ways, every_seconds=1, seconds=WAIT_SECONDS) as load, streaming(port, 12, TOKENS) as (streams, reading):
        going = sum(not future.done() for future in reading)
        server.check_output("systemctl restart %s", GATEWAY)
        counts = [len(client.outcomes) + 2 for client in load.clients]
        until(lambda: all(len(client.outcomes) >= count for client, count in zip(load.clients, counts, strict=True)), WAIT_SECONDS)
    assert server.check_output("systemctl show --property=InvocationID --value %s", GATEWAY) != run
    row = {
        "what": "restart of the gateway under a steady load",
        "streams going at it": going,
        "streams cut": sum(not stream.whole for stream in streams),
        "requests meanwhile": len(load.outcomes()),
        "of them failed": sum(outcome.statuses != (200,) for outcome in load.outcomes()),
        "longest wait s": f"{max(outcome.seconds for outcome in load.outcomes()):.1f}",
    }
    keep_row("streams", row)
    assert going == len(streams)
    assert row["streams cut"] == 0, [(stream.status, stream.done, stream.usage) for stream in streams if not stream.whole]
    assert [outcome for outcome in load.outcomes() if outcome.statuses != (200,)] == []


# --- a client that goes away ---


def running(server: Host, service: dict[str, Any]) -> float:
    page = server.check_output("curl --silent --fail http://127.0.0.1:%s/metrics", str(service["api_port"]))
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:num_requests_running{"))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole answer"])
@pytest.mark.parametrize("way", ["gateway", "model"])
def test_a_client_that_goes_away_ends_its_generation(server: Host, plan: dict[str, Any], way: str, stream: bool) -> None:
    service = next(service for service in plan["services"] if service["name"] == "mixtral-8x7b")
    port = plan["gateway"]["port"] if way == "gateway" else service["api_port"]
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 30_000, "ignore_eos": True, "stream": stream}
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=WAIT_SECONDS)
    connection.request("POST", CHAT, json.dumps(body | {"model": service["name"]}), {"Content-Type": "application/json"})
    if stream:
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.readline()
    assert until(lambda: running(server, service) == 1, WAIT_SECONDS) is not None
    assert connection.sock is not None or stream
    if stream:
        answer.close()
    connection.close()
    ended = until(lambda: running(server, service) == 0, 30)
    row = {"what": f"a client leaves {'a stream' if stream else 'while it waits'} at the {way}", "generation ends after s": ended}
    keep_row("disconnects", row)
    assert ended is not None


# --- more than can be taken ---


def at_once(count: int, ask_one: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask_one, range(count)))


def test_more_than_the_model_and_its_queue_hold_are_told_at_once(plan: dict[str, Any]) -> None:
    service = next(service for service in plan["services"] if service["name"] == "mixtral-8x7b")
    most = service["max_num_seqs"] + service["max_waiting"]
    body = {"model": service["name"], "max_tokens": 60, "ignore_eos": True}

    def one(number: int) -> tuple[float, Any]:
        began = time.monotonic()
        messages = [{"role": "user", "content": f"number {number}"}]
        answer = ask(service["api_port"], CHAT, body | {"messages": messages}, timeout=WAIT_SECONDS)
        return time.monotonic() - began, answer

    answers = at_once(most + 10, one)
    refused = [(seconds, answer) for seconds, answer in answers if answer.status != 200]
    print(f"\nqueue: {len(answers)} at once, {len(refused)} refused within {max(seconds for seconds, _ in refused):.2f} s")
    # What is answered while the others still arrive makes room.
    assert 5 <= len(refused) <= 10
    for seconds, answer in refused:
        assert (answer.status, answer.json()["error"]["code"]) == (429, "model_overloaded")
        assert int({name.lower(): value for name, value in answer.headers.items()}["retry-after"]) > 0
        assert seconds < 2


@pytest.mark.parametrize("way", ["gateway", "model"])
def test_large_bodies_at_once_end_nobody(server: Host, plan: dict[str, Any], way: str) -> None:
    service = next(service for service in plan["services"] if service["name"] == "phi-3-mini")
    port = plan["gateway"]["port"] if way == "gateway" else service["api_port"]
    units = [service["unit"], GATEWAY, "haproxy.service"]
    show = "systemctl show --property=InvocationID --value %s"
    runs = [server.check_output(show, unit) for unit in units]
    body = json.dumps({"model": service["name"], "max_tokens": 1, "prompt": ""}).encode()
    text = body[:-2] + b"lorem ipsum " * ((1_000_000 - len(body)) // 12) + body[-2:]

    def one(_: int) -> int:
        connection = http.client.HTTPConnection(ADDRESS, port, timeout=WAIT_SECONDS)
        try:
            connection.request("POST", "/v1/completions", text, {"Content-Type": "application/json"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    most = 0

    def look() -> None:
        nonlocal most
        while not end.wait(0.2):
            most = max(most, cgroups.held_bytes(server, units[way == "gateway"]))

    end = threading.Event()
    looking = threading.Thread(target=look)
    looking.start()
    statuses = at_once(16, one)
    end.set()
    looking.join()
    limit = cgroups.memory_limit_bytes(server, units[way == "gateway"])
    print(f"\nlarge bodies: {way}: statuses {statuses}, held at most {most >> 20} of {limit >> 20} MiB")
    assert [server.check_output(show, unit) for unit in units] == runs
    assert set(statuses) <= {400, 413, 429}
