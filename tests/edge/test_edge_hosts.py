"""Two hosts with one model: the edge beside the gateway shares requests among the instances, each behind the edge of its host."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from edge.haproxy import (
    CLIENT_KEYS,
    LOOPBACK,
    MODELS,
    MONITOR,
    SERVER,
    STRANGER,
    TRUSTED,
    Answer,
    Edge,
    ask,
    bearer,
    make_edge,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.backends import Backend

MODEL = MODELS[3]
ELSEWHERE = MODELS[0]
"""A model that only the other host has; the gateway's own host has one of the same name that it is not told of."""
CHAT = b'{"messages": []}'
OTHER = "127.0.20.2"
KEY = "sk-node-" + 64 * "a"
ROTATED = "sk-node-" + 64 * "b"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


NODES = [{"name": "hx-1", "address": SERVER, "key_sha256s": [digest(KEY), digest(ROTATED)]}]


class Hosts:
    """One host with the gateway, and another with models alone."""

    def __init__(self, gateway: Edge, other: Edge) -> None:
        self.gateway, self.other = gateway, other
        (gateway.directory / "node.key").write_text(f"CITADEL_NODE_KEY {KEY}\n")
        places = {"hx-1": 2, "hx-2": 1}
        instances = [
            {"host": name, "address": address, "port": edge.api_ports[MODEL], "places": places[name], "weight": places[name]}
            for name, address, edge in (("hx-1", SERVER, gateway), ("hx-2", OTHER, other))
        ]
        alone = {"host": "hx-2", "address": OTHER, "port": other.api_ports[ELSEWHERE], "places": 2, "weight": 2}
        gateway.options = {
            "edge_node_key_file": str(gateway.directory / "node.key"),
            "edge_nodes": NODES,
            "edge_shared_models": [
                {"name": MODEL, "upstream_port": gateway.upstream_ports[MODEL], "max_waiting": 2, "instances": instances},
                {"name": ELSEWHERE, "upstream_port": gateway.upstream_ports[ELSEWHERE], "max_waiting": 8, "instances": [alone]},
            ],
        }
        other.options = {
            "edge_server_addresses": [OTHER],
            "edge_gateway": False,
            "edge_prometheus": False,
            "edge_nodes": NODES,
            "edge_monitoring_hosts": [MONITOR],
            "edge_keyless_requests_per_minute": 3,
        }

    def start(self) -> None:
        for backend in (*self.other.models.values(), *self.gateway.models.values(), self.gateway.gateway, self.gateway.prometheus):
            backend.start()
        self.other.start_haproxy()
        self.gateway.start_haproxy()
        until(lambda: self.gateway.health().status == 200, what="everything is healthy")
        until(lambda: self.places() == 3, what="both instances are there")

    def ask(self, body: bytes = CHAT, *, model: str = MODEL, timeout: float = 20) -> Answer:
        """Send a request as the gateway sends it to a model."""
        port = self.gateway.upstream_ports[model]
        return ask(port, "/v1/chat/completions", method="POST", body=body, source=LOOPBACK, address=LOOPBACK, timeout=timeout)

    def state(self, model: str = MODEL) -> dict[str, Any]:
        return dict(ask(self.gateway.state_port, "/state", source=LOOPBACK, address=LOOPBACK).json["models"][model])

    def places(self) -> int:
        return int(self.state()["places"])

    @property
    def instances(self) -> tuple[Backend, Backend]:
        return self.gateway.models[MODEL], self.other.models[MODEL]

    def generations(self) -> list[int]:
        return [len(instance.generations()) for instance in self.instances]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    both = Hosts(make_edge(tmp_path_factory.mktemp("gateway")), make_edge(tmp_path_factory.mktemp("other")))
    try:
        both.start()
        yield both
    finally:
        both.gateway.stop()
        both.other.stop()


@pytest.fixture(autouse=True)
def _well_again(hosts: Hosts) -> Iterator[None]:
    for instance in hosts.instances:
        instance.received.clear()
    yield
    for instance in hosts.instances:
        instance.generation_gate.set()
        instance.health_status = instance.generation_status = 200
        instance.start_again()
    until(lambda: hosts.places() == 3, what="both instances are there again")


def test_an_idle_pair_takes_turns(hosts: Hosts) -> None:
    assert [hosts.ask().status for _ in range(10)] == [200] * 10
    assert min(hosts.generations()) >= 3


def test_a_busy_pair_shares_by_its_places_and_who_waits_gets_the_first_that_is_free(hosts: Hosts) -> None:
    here, there = hosts.instances
    here.generation_gate.clear()
    there.generation_gate.clear()
    with ThreadPoolExecutor(max_workers=4) as pool:
        requests = [pool.submit(hosts.ask) for _ in range(4)]
        until(lambda: (len(here.waiting), len(there.waiting)) == (2, 1), what="two here and one there")
        until(lambda: hosts.state()["queued"] == 1, what="the fourth waits at the gateway")
        assert hosts.state() == {"breaker": "closed", "failures": 0, "running": 3, "queued": 1, "places": 3}
        there.generation_gate.set()
        until(lambda: hosts.generations() == [2, 2], what="the fourth is taken there")
        here.generation_gate.set()
        assert [request.result(10).status for request in requests] == [200] * 4


def test_no_model_sees_the_key(hosts: Hosts) -> None:
    for _ in range(4):
        hosts.ask()
    for instance in hosts.instances:
        assert instance.generations()
        assert [request.headers for request in instance.received if "authorization" in request.headers] == []


@pytest.mark.parametrize("which", [0, 1], ids=["here", "there"])
def test_an_instance_that_dies_costs_no_request_and_is_taken_back(hosts: Hosts, which: int) -> None:
    hosts.instances[which].stop()
    answers = [hosts.ask() for _ in range(20)]
    assert [answer.status for answer in answers] == [200] * 20
    until(lambda: hosts.places() == (1, 2)[which], what="it is left alone")
    assert hosts.gateway.health().status == 200, "the model is there"
    before = hosts.generations()
    hosts.instances[which].start()
    until(lambda: hosts.places() == 3, what="it is taken back")
    assert [hosts.ask().status for _ in range(6)] == [200] * 6
    assert hosts.generations()[which] > before[which]


def test_an_instance_that_says_it_is_unwell_is_left_alone_before_it_refuses(hosts: Hosts) -> None:
    hosts.instances[1].health_status = 503
    until(lambda: hosts.places() == 2, what="it is left alone")
    assert [hosts.ask().status for _ in range(6)] == [200] * 6


def test_an_edge_that_is_killed_costs_no_request(hosts: Hosts) -> None:
    assert hosts.other.process is not None
    hosts.other.process.kill()
    hosts.other.process.wait(10)
    # The worker follows its master.
    until(lambda: not listens(hosts.other.api_ports[MODEL]), what="nobody listens")
    try:
        assert [hosts.ask().status for _ in range(20)] == [200] * 20
        until(lambda: hosts.places() == 2, what="the host is left alone")
        assert hosts.state(ELSEWHERE)["breaker"] == "open"
        assert hosts.gateway.health().json["models"][ELSEWHERE] == "unhealthy"
        assert (hosts.ask(model=ELSEWHERE).status, hosts.ask(model=ELSEWHERE).error["code"]) == (503, "model_unavailable")
    finally:
        hosts.other.start_haproxy()
    until(lambda: hosts.gateway.health().status == 200, what="the host is taken back")


def listens(port: int) -> bool:
    try:
        ask(port, "/health", address=OTHER)
    except OSError:
        return False
    return True


def test_what_was_taken_is_never_sent_twice(hosts: Hosts) -> None:
    answers = [hosts.ask(b'{"break off": true}') for _ in range(6)]
    assert {answer.status for answer in answers} == {502}
    assert sum(hosts.generations()) == 6
    for status in (500, 503):
        for instance in hosts.instances:
            instance.received.clear()
            instance.generation_status = status
        assert [hosts.ask().status for _ in range(2)] == [status] * 2
        assert sum(hosts.generations()) == 2


def test_where_no_instance_is_left_the_answer_comes_at_once(hosts: Hosts) -> None:
    for instance in hosts.instances:
        instance.stop()
    until(lambda: hosts.state()["breaker"] == "open", what="both are left alone")
    answer = hosts.ask(timeout=1)
    assert (answer.status, answer.error["code"]) == (503, "model_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    health = hosts.gateway.health()
    assert (health.status, health.json["models"][MODEL]) == (503, "unhealthy")


def test_the_ports_of_a_host_stay_its_own(hosts: Hosts) -> None:
    hosts.instances[0].stop()
    until(lambda: hosts.places() == 1, what="it is left alone")
    answer = ask(hosts.gateway.api_ports[MODEL], "/v1/chat/completions", method="POST", body=CHAT)
    assert (answer.status, answer.error["code"]) == (503, "model_unavailable"), "a status of clients, too"


def node(key: str, path: str, *, source: str = SERVER, port: int, address: str = OTHER, body: bytes | None = None) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return ask(port, path, method="GET" if body is None else "POST", source=source, address=address, headers=headers, body=body).status


def test_a_node_may_ask_for_inference_and_state_of_models_and_nothing_else(hosts: Hosts) -> None:
    port = hosts.other.api_ports[MODEL]
    for key in (KEY, ROTATED):
        assert node(key, "/health", port=port) == 200
        assert node(key, "/v1/models", port=port) == 200
        assert node(key, "/v1/chat/completions", body=CHAT, port=port) == 200
    assert node(KEY, "/metrics", port=hosts.other.metrics_ports[MODEL]) == 403
    for path in ("/tokenize", "/invocations", "/v1/embeddings", "/metrics/", "/docs", "/state"):
        assert node(KEY, path, body=b"{}", port=port) == 404, path
    for source in (TRUSTED, STRANGER, LOOPBACK):
        assert node(KEY, "/v1/models", source=source, port=port) == 401, "from its host alone"
    assert node(KEY + "0", "/v1/models", port=port) == 401
    assert node(digest(KEY), "/v1/models", port=port) == 401
    # Where the gateway is, the key does not open it, and Prometheus neither.
    for port in (hosts.gateway.gateway_port, hosts.gateway.prometheus_port):
        assert node(KEY, "/v1/models", port=port, address=SERVER) == 401


def test_no_client_counts_as_a_node(hosts: Hosts) -> None:
    port = hosts.other.api_ports[MODEL]
    assert node(CLIENT_KEYS["web-shop"], "/metrics", source=STRANGER, port=port) == 403
    hosts.instances[1].stop()
    until(lambda: hosts.places() == 2, what="it is left alone")
    answer = ask(port, "/v1/chat/completions", method="POST", body=CHAT, source=SERVER, address=OTHER, headers=bearer("web-shop"))
    assert answer.status == 503


def test_what_a_gateway_sends_on_is_not_counted_again(hosts: Hosts) -> None:
    """The other host lets three keyless requests a minute in."""
    assert [hosts.ask().status for _ in range(20)] == [200] * 20
    assert hosts.generations()[1] > 5
    port = hosts.other.api_ports[MODEL]
    assert [ask(port, "/v1/models", source=TRUSTED, address=OTHER).status for _ in range(4)] == [200, 200, 200, 429]


def test_the_log_says_which_node_asked_and_no_looks(hosts: Hosts) -> None:
    hosts.ask()
    hosts.ask()
    until(lambda: '"client_name":"node:hx-1","frontend":"edge_models"' in hosts.other.log(), what="the log says who")
    looks = [line for line in hosts.other.log().splitlines() if '"path":"/health"' in line and "node:hx-1" in line]
    assert looks == []
    assert KEY not in hosts.other.log() + hosts.gateway.log()


@pytest.mark.parametrize(("name", "metric"), [("exporter_port", b"haproxy_server_status"), ("state_port", b"citadel_edge_breaker_state")])
def test_the_edges_own_metrics_are_read_by_the_host_of_prometheus(hosts: Hosts, name: str, metric: bytes) -> None:
    port = getattr(hosts.other, name)
    answer = ask(port, "/metrics", source=MONITOR, address=OTHER)
    assert answer.status == 200
    assert metric in answer.body
    assert ask(port, "/metrics", source=TRUSTED, address=OTHER).status == 403
    assert ask(port, "/state", source=MONITOR, address=OTHER).status == 403
    assert ask(hosts.other.metrics_ports[MODEL], "/metrics", source=MONITOR, address=OTHER).status == 200
    with pytest.raises(ConnectionRefusedError):
        ask(getattr(hosts.gateway, name), "/metrics", source=MONITOR, address=SERVER)


def test_a_host_without_gateway_and_prometheus_opens_no_port_for_them(hosts: Hosts) -> None:
    for port in (hosts.other.gateway_port, hosts.other.prometheus_port):
        with pytest.raises(ConnectionRefusedError):
            ask(port, "/health", address=OTHER)
