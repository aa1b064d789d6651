"""Who comes in with a key, how much each may ask for and which models, and what the services behind are told of them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from edge.haproxy import CLIENT_KEYS, KEY, MODELS, MONITOR, STRANGER, TRUSTED, Answer, Edge, ask, bearer, make_edge, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CHAT = b'{"messages": []}'
LIMITS = {
    "hasty": {"requests_per_minute": 3},
    "greedy": {"concurrent_requests": 2},
    "picky": {"models": [MODELS[1], MODELS[3]]},
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Run an edge whose clients without a key may do little, and some with one less than others."""
    running = make_edge(
        tmp_path_factory.mktemp("edge"),
        edge_client_limits=LIMITS,
        edge_keyless_requests_per_minute=6,
        edge_keyless_concurrent_requests=0,
    )
    try:
        running.start()
        yield running
    finally:
        running.stop()


def generate(edge: Edge, headers: Mapping[str, str], *, source: str = STRANGER, port: int | None = None) -> Answer:
    return ask(port or edge.gateway_port, "/v1/completions", method="POST", body=CHAT, source=source, headers=headers)


PORTS: list[tuple[str, Callable[[Edge], int]]] = [
    ("gateway", lambda edge: edge.gateway_port),
    ("model", lambda edge: edge.api_ports[MODELS[1]]),
    ("prometheus", lambda edge: edge.prometheus_port),
]
port_of = pytest.mark.parametrize("port_of", [function for _, function in PORTS], ids=[name for name, _ in PORTS])


# --- who ---


def test_a_stranger_with_a_key_may_use_the_models_and_see_whether_they_are_well(edge: Edge) -> None:
    for port in (edge.gateway_port, edge.api_ports[MODELS[1]]):
        assert generate(edge, bearer("web-shop"), port=port).status == 200
        for path in ("/v1/models", "/health"):
            assert ask(port, path, source=STRANGER, headers=bearer("web-shop")).status == 200


@port_of
def test_a_key_does_not_open_what_is_measured(edge: Edge, port_of: Callable[[Edge], int]) -> None:
    answer = ask(port_of(edge), "/metrics", source=STRANGER, headers=bearer("web-shop"))
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    for source in (TRUSTED, MONITOR):
        assert ask(port_of(edge), "/metrics", source=source, headers=bearer("web-shop")).status == 200


WRONG = {
    "unknown": "Bearer sk-test-key-of-nobody",
    "the gateway's own": f"Bearer {KEY}",
    "another scheme": f"Basic {CLIENT_KEYS['web-shop']}",
    "no scheme": CLIENT_KEYS["web-shop"],
    "a name": "Bearer web-shop",
    "nearly nothing": "Bearer EMPTY1",
    "other letters": f"Bearer {CLIENT_KEYS['web-shop'].upper()}",
    "more": f"Bearer {CLIENT_KEYS['web-shop']}x",
}


@port_of
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("source", [STRANGER, TRUSTED, MONITOR])
def test_a_key_that_is_not_known_is_refused_from_everywhere(edge: Edge, port_of: Callable[[Edge], int], wrong: str, source: str) -> None:
    for path in ("/health", "/metrics", "/v1/models", "/nothing"):
        answer = ask(port_of(edge), path, source=source, headers={"Authorization": WRONG[wrong]})
        assert (answer.status, answer.error["code"], answer.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert CLIENT_KEYS["web-shop"] not in edge.log()


@pytest.mark.parametrize("nothing", ["", "Bearer", "bearer ", "Bearer EMPTY", "bearer empty"])
def test_an_empty_key_is_none(edge: Edge, nothing: str) -> None:
    headers = {"Authorization": nothing}
    assert ask(edge.gateway_port, "/health", source=TRUSTED, headers=headers).status == 200
    answer = ask(edge.gateway_port, "/health", source=STRANGER, headers=headers)
    assert answer.error["message"] == "This address may not use the server without a key."


def test_the_scheme_may_be_written_small(edge: Edge) -> None:
    headers = {"Authorization": f"bearer {CLIENT_KEYS['web-shop']}"}
    assert ask(edge.gateway_port, "/v1/models", source=STRANGER, headers=headers).status == 200


def test_no_name_and_no_sum_of_a_key_is_a_key(edge: Edge) -> None:
    for line in (edge.directory / "client-keys.map").read_text().splitlines():
        for word in line.split():
            assert ask(edge.gateway_port, "/health", source=STRANGER, headers={"Authorization": f"Bearer {word}"}).status == 401


# --- what the services are told ---

FORGED = {
    "X-Citadel-Client": "root",
    "x-citadel-models": "mixtral-8x7b",
    "X-CITADEL-Anything": "x",
    "Connection": "X-Citadel-Client, X-Citadel-Models",
}


def test_the_gateway_is_told_who_asks_and_for_what(edge: Edge) -> None:
    headers = generate(edge, bearer("picky") | FORGED).json["headers"]
    assert headers["x-citadel-client"] == ["picky"]
    assert headers["x-citadel-models"] == [",".join(LIMITS["picky"]["models"])]
    assert headers["authorization"] == [f"Bearer {KEY}"]
    assert "x-citadel-anything" not in headers
    assert "citadel" not in " ".join(headers.get("connection", [])).lower()


def test_a_client_that_may_use_all_models_has_no_list(edge: Edge) -> None:
    headers = generate(edge, bearer("web-shop") | FORGED).json["headers"]
    assert (headers["x-citadel-client"], "x-citadel-models" in headers) == (["web-shop"], False)


@pytest.mark.parametrize("way", ["without a key", "a model's port"])
def test_nobody_else_is_told_anything(edge: Edge, way: str) -> None:
    source, port, key = (
        (TRUSTED, edge.gateway_port, {}) if way == "without a key" else (STRANGER, edge.api_ports[MODELS[1]], bearer("picky"))
    )
    headers = generate(edge, key | FORGED, source=source, port=port).json["headers"]
    assert [name for name in headers if name.startswith("x-citadel")] == []


# --- which models ---


def test_a_list_of_models_holds_on_the_models_own_ports(edge: Edge) -> None:
    for model in MODELS:
        port, before = edge.api_ports[model], len(edge.models[model].generations())
        listed = ask(port, "/v1/models", source=STRANGER, headers=bearer("picky"))
        answer = generate(edge, bearer("picky"), port=port)
        assert ask(port, "/health", source=STRANGER, headers=bearer("picky")).status == 200
        if model in LIMITS["picky"]["models"]:
            assert (listed.status, answer.status) == (200, 200)
        else:
            assert (listed.status, listed.error["code"]) == (404, "model_not_found")
            assert (answer.status, answer.error["code"]) == (404, "model_not_found")
            assert model in answer.error["message"]
            assert len(edge.models[model].generations()) == before
        assert generate(edge, bearer("web-shop"), port=port).status == 200


# --- how much ---


def test_a_client_over_its_rate_is_told_so_and_no_other_is_touched(edge: Edge) -> None:
    before = len(edge.gateway.generations())
    statuses = [generate(edge, bearer("hasty"), source=source).status for source in (STRANGER, TRUSTED, STRANGER, TRUSTED, STRANGER)]
    assert statuses == [200, 200, 200, 429, 429], "by the name, whatever the address"
    assert len(edge.gateway.generations()) == before + 3
    answer = generate(edge, bearer("hasty"), port=edge.api_ports[MODELS[0]])
    assert (answer.status, answer.error["code"], answer.error["message"]) == (
        429,
        "rate_limit_exceeded",
        "3 requests a minute are allowed.",
    )
    assert int(answer.headers["retry-after"]) == 60, "OpenAI's clients wait for no longer"
    assert ask(edge.gateway_port, "/health", source=STRANGER, headers=bearer("hasty")).status == 200, "a look is not a request"
    assert generate(edge, bearer("web-shop")).status == 200


def test_who_comes_without_a_key_is_counted_by_the_address(edge: Edge) -> None:
    sources = ["127.0.20.18", "127.0.20.19"]
    statuses = [[generate(edge, {}, source=source).status for _ in range(8)] for source in sources]
    assert statuses == [[200] * 6 + [429] * 2] * 2
    assert generate(edge, bearer("web-shop"), source=sources[0]).status == 200, "with a key it is somebody else"


def test_a_client_has_so_many_places_and_each_is_free_when_its_request_ends(edge: Edge) -> None:
    edge.gateway.generation_gate.clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(generate, edge, bearer("greedy")) for _ in range(2)]
            until(lambda: len(edge.gateway.waiting) == 2, what="both requests have arrived")
            start = time.monotonic()
            answer = generate(edge, bearer("greedy"))
            assert time.monotonic() - start < 0.5, "at once"
            assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
            assert answer.error["message"] == "2 requests at a time are allowed."
            assert int(answer.headers["retry-after"]) > 0
            others = pool.submit(generate, edge, bearer("web-shop"))
            until(lambda: len(edge.gateway.waiting) == 3, what="another client's request has arrived")
            edge.gateway.generation_gate.set()
            assert [future.result(10).status for future in (*running, others)] == [200] * 3
    finally:
        edge.gateway.generation_gate.set()
    until(lambda: generate(edge, bearer("greedy")).status == 200, what="a place is free again")


def test_the_log_names_the_client_and_never_its_key(edge: Edge) -> None:
    generate(edge, bearer("web-shop"))
    generate(edge, {}, source="127.0.20.20")

    def names() -> dict[str, str]:
        lines = [json.loads(line.removeprefix("<6>")) for line in edge.log().splitlines() if line.startswith("<6>{")]
        return {line["client"]: line["client_name"] for line in lines if line["path"] == "/v1/completions" and line["status"] == 200}

    until(lambda: "127.0.20.20" in names(), what="both are logged")
    assert (names()[STRANGER], names()["127.0.20.20"]) == ("web-shop", "-")
    for key in CLIENT_KEYS.values():
        assert key not in edge.log()
