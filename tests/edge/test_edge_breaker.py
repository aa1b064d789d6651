"""What clients and the gateway see while something behind the edge is unwell, restarts or is full."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from edge.backends import PARTS
from edge.haproxy import KEY, LOOPBACK, MODELS, SERVER, TRUSTED, Answer, Edge, ask, make_edge, until, write_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge.backends import Backend

MODEL = MODELS[1]
CHAT = b'{"messages": []}'


def upstream(edge: Edge, *, timeout: float = 20) -> Answer:
    """Send a request as the gateway sends it to a model, through its breaker."""
    return ask(
        edge.upstream_ports[MODEL], "/v1/chat/completions", method="POST", body=CHAT, source=LOOPBACK, address=LOOPBACK, timeout=timeout
    )


def is_open(edge: Edge) -> bool:
    """Tell whether the breaker of the model is open, as /health tells."""
    return edge.health().json["models"][MODEL] == "unhealthy"


@pytest.fixture(autouse=True)
def _well_again(edge: Edge) -> Iterator[None]:
    """Each test begins with everything well, whatever the one before it has broken."""
    yield
    backend = edge.models[MODEL]
    backend.gate.set()
    backend.generation_gate.set()
    backend.health_status = backend.generation_status = 200
    backend.start_again()
    edge.gateway.gate.set()
    edge.gateway.health_status = 200
    edge.gateway.start_again()
    # An answer closes a breaker that failures have opened, and ends what has been counted.
    until(lambda: upstream(edge).status == 200 and edge.health().status == 200, what="everything is healthy again")


def test_a_model_that_refuses_is_found_and_taken_back(edge: Edge) -> None:
    edge.models[MODEL].stop()
    until(lambda: is_open(edge), what="the breaker opens")

    health = edge.health()
    assert health.status == 503
    assert health.json == {
        "status": "unhealthy",
        "gateway": "healthy",
        "models": dict.fromkeys(MODELS, "healthy") | {MODEL: "unhealthy"},
        "breakers": dict.fromkeys(MODELS, "closed") | {MODEL: "open"},
    }
    assert int(health.headers["retry-after"]) > 0

    for port, source, address in ((edge.upstream_ports[MODEL], LOOPBACK, LOOPBACK), (edge.api_ports[MODEL], TRUSTED, SERVER)):
        start = time.monotonic()
        answer = ask(port, "/v1/chat/completions", method="POST", body=CHAT, source=source, address=address)
        assert time.monotonic() - start < 0.5, "at once"
        assert (answer.status, answer.error["code"]) == (503, "model_unavailable")
        assert MODEL in answer.error["message"]
        assert int(answer.headers["retry-after"]) > 0
    assert ask(edge.api_ports[MODEL], "/health").status == 503
    assert ask(edge.metrics_ports[MODEL], "/metrics").status == 503
    assert ask(edge.api_ports[MODELS[2]], "/health").status == 200, "the others go on"

    edge.models[MODEL].start()
    until(lambda: not is_open(edge), what="the breaker closes")
    assert upstream(edge).json["service"] == MODEL


def test_the_first_request_to_a_model_that_has_just_died_fails_at_once(edge: Edge) -> None:
    edge.models[MODEL].stop()
    start = time.monotonic()
    answer = upstream(edge)
    assert time.monotonic() - start < 0.5, "at once"
    assert (answer.status, answer.error["code"]) == (503, "model_unavailable")


@pytest.mark.parametrize("illness", ["hangs", "says so"])
def test_a_model_that_is_there_but_unwell_is_found_and_taken_back(edge: Edge, illness: str) -> None:
    backend = edge.models[MODEL]
    if illness == "hangs":
        backend.gate.clear()
    else:
        backend.health_status = 503
    until(lambda: is_open(edge), what="the breaker opens")
    assert upstream(edge).status == 503
    if illness == "says so":
        assert ask(edge.api_ports[MODEL], "/health").status == 503

    backend.gate.set()
    backend.health_status = 200
    until(lambda: not is_open(edge), what="the breaker closes")
    assert ask(edge.api_ports[MODEL], "/health").status == 200


def breaker(edge: Edge) -> str:
    """Tell how the breaker of the model is; all who can be asked must say the same."""
    metrics = ask(edge.state_port, "/metrics", source=LOOPBACK, address=LOOPBACK)
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4"
    prefix = f'citadel_edge_breaker_state{{model="{MODEL}",state="'
    told = [line.removeprefix(prefix) for line in metrics.body.decode().splitlines() if line.startswith(prefix)]
    assert sorted(line.partition('"')[0] for line in told) == ["closed", "half-open", "open"]
    (measured,) = [line.partition('"')[0] for line in told if line.endswith(" 1")]
    health = edge.health().json
    assert health["models"][MODEL] == ("healthy" if health["breakers"][MODEL] == "closed" else "unhealthy")
    said = {measured, health["breakers"][MODEL], str(state(edge)["breaker"])}
    # Between two questions a pause may have ended.
    return said.pop() if len(said) == 1 else breaker(edge)


def trips(edge: Edge) -> int:
    """Count the openings for failed answers."""
    prefix = f'citadel_edge_breaker_trips_total{{model="{MODEL}"}} '
    page = ask(edge.state_port, "/metrics", source=LOOPBACK, address=LOOPBACK).body.decode()
    return next(int(line.removeprefix(prefix)) for line in page.splitlines() if line.startswith(prefix))


def fail_until_open(edge: Edge, backend: Backend, status: int = 500) -> None:
    """Have the model fail as often as the breaker puts up with."""
    backend.generation_status = status
    for _ in range(5):
        assert breaker(edge) == "closed"
        assert upstream(edge).status == status
    assert breaker(edge) == "open"


@pytest.mark.parametrize("status", [500, 503])
def test_a_model_that_fails_while_it_says_it_is_well_is_left_alone_and_taken_back(edge: Edge, status: int) -> None:
    backend = edge.models[MODEL]
    before, down, opened = len(backend.generations()), edge.log().count(f"model_{MODEL}/model is DOWN"), trips(edge)
    fail_until_open(edge, backend, status)
    assert trips(edge) == opened + 1
    refused = upstream(edge)
    assert (refused.status, refused.error["code"]) == (503, "model_unavailable")
    assert int(refused.headers["retry-after"]) > 0
    assert len(backend.generations()) == before + 5, "nobody is sent to it"

    until(lambda: breaker(edge) == "half-open", what="the pause ends")
    assert upstream(edge).status == status, "one is let through to see"
    assert [upstream(edge).error["code"] for _ in range(10)] == ["model_unavailable"] * 10, "and no other"
    assert breaker(edge) == "open"
    assert len(backend.generations()) == before + 6

    backend.generation_status = 200
    until(lambda: breaker(edge) == "half-open", what="the pause ends")
    assert [upstream(edge).status for _ in range(10)] == [200] * 10
    assert breaker(edge) == "closed"
    assert trips(edge) == opened + 1, "still the same opening"
    assert edge.log().count(f"model_{MODEL}/model is DOWN") == down


def test_a_breaker_that_opens_again_soon_stays_open_for_longer(hasty: Edge) -> None:
    backend = hasty.models[MODEL]
    looked_at: list[list[float]] = []

    def is_over() -> bool:
        looked_at[-1].append(time.monotonic())
        return breaker(hasty) == "half-open"

    at_least, at_most = [], []
    for _ in range(3):
        fail_until_open(hasty, backend)
        looked_at.append([time.monotonic()])
        at_most.append(until(is_over, what="the pause ends"))
        # The last look but one still found it open, however long the processors kept the next from being taken.
        at_least.append(looked_at[-1][-2] - looked_at[-1][0])
        backend.generation_status = 200
        assert upstream(hasty).status == 200
    # 2, 4 and 4 seconds, the longest that is allowed; the clock that counts them knows whole seconds only.
    assert at_least[0] < 2.5 < min(at_most[1:])
    assert max(at_least) < 4.5


def test_answers_that_are_no_failures_do_not_open_the_breaker(edge: Edge) -> None:
    backend = edge.models[MODEL]
    for status in (500, 500, 500, 500, 200) * 2 + (400,) * 10:
        backend.generation_status = status
        assert upstream(edge).status == status
        assert breaker(edge) == "closed"


def test_a_refusal_of_the_request_does_not_close_the_breaker(edge: Edge) -> None:
    backend = edge.models[MODEL]
    fail_until_open(edge, backend)
    until(lambda: breaker(edge) == "half-open", what="the pause ends")
    backend.generation_status = 400
    assert upstream(edge).status == 400
    assert breaker(edge) == "open"
    backend.generation_status = 200
    until(lambda: upstream(edge).status == 200, what="another one is let through")


@pytest.mark.parametrize("how", ["breaks off", "refuses"])
def test_connections_that_fail_count(edge: Edge, how: str) -> None:
    """The supervisor says that the model is well, but nothing comes of it."""
    backend = edge.models[MODEL]
    body = b'{"break off": true}' if how == "breaks off" else CHAT
    looks = len(backend.received)
    if how == "refuses":
        backend.stop_serving()
    statuses = [
        ask(edge.upstream_ports[MODEL], "/v1/completions", method="POST", body=body, source=LOOPBACK, address=LOOPBACK).status
        for _ in range(6)
    ]
    assert statuses == ([502] * 5 if how == "breaks off" else [503] * 5) + [503]
    assert breaker(edge) == "open"
    if how == "refuses":
        until(lambda: len(backend.received) >= looks + 15, what="the edge has been told fifteen times that the model is able")
        assert breaker(edge) == "open"
    backend.stop()
    backend.start()
    until(lambda: upstream(edge).status == 200, what="the model is taken back")
    assert breaker(edge) == "closed"


def test_a_model_that_comes_and_goes_stays_away(edge: Edge) -> None:
    backend = edge.models[MODEL]
    backend.health_status = 503
    until(lambda: is_open(edge), what="the breaker opens")
    up = edge.log().count(f"model_{MODEL}/model is UP")
    for _ in range(4):
        for status in (200, 503):
            backend.health_status = status
            looks = len(backend.received)
            until(lambda looks=looks: len(backend.received) >= looks + 4, what="the edge has looked four times")
    assert edge.log().count(f"model_{MODEL}/model is UP") == up


def test_what_is_running_when_the_breaker_opens_is_not_cut(edge: Edge) -> None:
    backend = edge.models[MODEL]
    backend.generation_gate.clear()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(upstream, edge)
        until(lambda: len(backend.waiting) == 1, what="the request arrives")
        backend.health_status = 503
        until(lambda: is_open(edge), what="the breaker opens")
        backend.generation_gate.set()
        assert running.result(10).json["service"] == MODEL


def test_no_more_than_the_models_places_are_taken_and_a_look_needs_none(edge: Edge) -> None:
    backend = edge.models[MODEL]
    backend.generation_gate.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(upstream, edge) for _ in range(5)]
        until(lambda: queued(edge) == 3, what="three requests wait in the edge")
        assert len(backend.waiting) == 2, "max_num_seqs"
        until(lambda: "scur=2/" in told_supervisor(backend), what="the supervisor hears of two requests")
        assert ask(edge.api_ports[MODEL], "/health", timeout=5).status == 200
        assert ask(edge.api_ports[MODEL], "/v1/models", timeout=5).status == 200
        assert ask(edge.metrics_ports[MODEL], "/metrics", timeout=5).status == 200
        backend.generation_gate.set()
        assert [answer.result(10).status for answer in answers] == [200] * 5


def told_supervisor(backend: Backend) -> str:
    """Give what the edge last told the supervisor when it asked for the state."""
    checks = [request for request in backend.received if request.target == "/state"]
    return checks[-1].headers["x-haproxy-server-state"][0]


def state(edge: Edge) -> dict[str, object]:
    """Ask how the model is, as the gateway asks."""
    answer = ask(edge.state_port, "/state", source=LOOPBACK, address=LOOPBACK)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json["models"]) == list(MODELS)
    return dict(answer.json["models"][MODEL])


def test_one_query_says_how_every_model_is(edge: Edge) -> None:
    idle = {"breaker": "closed", "failures": 0, "running": 0, "queued": 0, "places": 2}
    assert state(edge) == idle
    backend = edge.models[MODEL]
    backend.generation_gate.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(upstream, edge) for _ in range(5)]
        until(lambda: state(edge) == idle | {"running": 2, "queued": 3}, what="the state says who works and who waits")
        backend.generation_gate.set()
        assert [answer.result(10).status for answer in answers] == [200] * 5
    until(lambda: state(edge) == idle, what="the state says that nobody waits")
    backend.health_status = 503
    until(lambda: state(edge)["breaker"] == "open", what="the breaker opens")
    assert ask(edge.state_port, "/", source=LOOPBACK, address=LOOPBACK).status == 404
    assert 'frontend":"state' not in edge.log(), "a look each second is not worth a line"


def test_more_than_may_wait_are_told_at_once_and_the_others_answered(edge: Edge) -> None:
    backend = edge.models[MODEL]
    backend.generation_gate.clear()
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(upstream, edge) for _ in range(10)]
        until(lambda: queued(edge) == 8, what="as many wait as may")
        for port, source, address in ((edge.upstream_ports[MODEL], LOOPBACK, LOOPBACK), (edge.api_ports[MODEL], TRUSTED, SERVER)):
            start = time.monotonic()
            answer = ask(port, "/v1/completions", method="POST", body=CHAT, source=source, address=address)
            assert time.monotonic() - start < 0.5, "at once"
            assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "model_overloaded", "server_error")
            assert answer.error["message"] == f"The model {MODEL} works on 2 requests and 8 wait for it."
            assert int(answer.headers["retry-after"]) > 0
        backend.generation_gate.set()
        assert [answer.result(20).status for answer in answers] == [200] * 10
    assert breaker(edge) == "closed"


def queued(edge: Edge) -> int:
    """Count the requests that wait for a place in the model."""
    metrics = ask(edge.exporter_port, "/metrics", source=LOOPBACK, address=LOOPBACK).body.decode()
    prefix = f'haproxy_server_current_queue{{proxy="model_{MODEL}",server="model"}} '
    return next(int(line.removeprefix(prefix)) for line in metrics.splitlines() if line.startswith(prefix))


@pytest.mark.parametrize("way", ["gateway", "model", "upstream"])
def test_who_leaves_while_it_waits_gives_its_place_back_and_is_no_failure(edge: Edge, way: str) -> None:
    """A generation that nobody waits for ends when its connection does: vLLM and LiteLLM watch theirs."""
    backend, name = (edge.gateway, "gateway") if way == "gateway" else (edge.models[MODEL], f"model_{MODEL}")
    backend.generation_gate.clear()
    try:
        clients = [edge.connection(way, MODEL) for _ in range(3)]
        for client in clients:
            client.request("POST", "/v1/chat/completions", body=CHAT)
        until(
            lambda: connected(edge, name) == 3 and len(backend.waiting) >= 2, what="all are there, two at work where there is room for two"
        )
        for client in clients:
            client.close()
        until(lambda: connected(edge, name) == 0, what="nothing is kept for them")
    finally:
        backend.generation_gate.set()
    assert state(edge) == {"breaker": "closed", "failures": 0, "running": 0, "queued": 0, "places": 2}


def test_those_who_wait_are_told_when_the_breaker_opens(edge: Edge) -> None:
    backend = edge.models[MODEL]
    backend.generation_gate.clear()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(upstream, edge) for _ in range(4)]
        until(lambda: queued(edge) == 2, what="two requests wait in the edge")
        backend.health_status = 503
        until(lambda: sum(answer.done() for answer in answers) == 2, what="the two that waited are answered")
        assert [answer.result().error["code"] for answer in answers if answer.done()] == ["model_unavailable"] * 2
        backend.generation_gate.set()
        assert sorted(answer.result(10).status for answer in answers) == [200, 200, 503, 503]


def test_a_request_is_held_while_the_gateway_restarts_and_sent_once(edge: Edge) -> None:
    edge.gateway.stop()
    before = len(edge.gateway.generations())
    with ThreadPoolExecutor() as pool:
        start = time.monotonic()
        answer = pool.submit(ask, edge.gateway_port, "/v1/chat/completions", method="POST", body=CHAT)
        models = pool.submit(ask, edge.gateway_port, "/v1/models")
        until(lambda: edge.health().json["gateway"] == "unhealthy", what="/health tells that the gateway is gone")
        assert edge.health().status == 503
        threading.Timer(max(0.0, 3 - (time.monotonic() - start)), edge.gateway.start).start()
        assert answer.result(20).json["headers"]["authorization"] == [f"Bearer {KEY}"]
        assert time.monotonic() - start >= 3
        assert models.result(20).status == 200
    assert len(edge.gateway.generations()) == before + 1


def test_a_request_is_held_while_the_gateway_stops_as_well(edge: Edge) -> None:
    """What still listens then accepts nothing any more, and would break off what it has not accepted."""
    down = edge.log().count("gateway/gateway is DOWN")
    edge.gateway.health_status = 503
    until(lambda: edge.log().count("gateway/gateway is DOWN") > down, what="the edge knows that the gateway stops")
    edge.gateway.gate.clear()
    before = len(edge.gateway.received)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(ask, edge.gateway_port, "/v1/completions", method="POST", body=CHAT) for _ in range(4)]
        until(lambda: connected(edge, "gateway") >= 4, what="the requests are held")
        assert [request for request in edge.gateway.received[before:] if request.method == "POST"] == []
        edge.gateway.stop()
        edge.gateway.health_status = 200
        edge.gateway.gate.set()
        edge.gateway.start()
        assert [answer.result(20).status for answer in answers] == [200] * 4


def connected(edge: Edge, backend: str) -> int:
    """Count the requests that are with a backend, those that wait or are tried again included."""
    metrics = ask(edge.exporter_port, "/metrics", source=LOOPBACK, address=LOOPBACK).body.decode()
    prefix = f'haproxy_backend_current_sessions{{proxy="{backend}"}} '
    return next(int(line.removeprefix(prefix)) for line in metrics.splitlines() if line.startswith(prefix))


def test_a_new_key_is_read_by_a_reload_and_nobody_notices(edge: Edge) -> None:
    """As playbooks/rotate-keys.yml does it: the edge first, the gateway a moment later. Until then it refuses what the edge sends."""
    edge.gateway.key = KEY
    before = len(edge.gateway.generations())
    write_key(edge.directory, "sk-another-key")
    try:
        edge.reload()
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(ask, edge.gateway_port, "/v1/completions", method="POST", body=CHAT) for _ in range(4)]
            until(lambda: len(edge.gateway.generations()) > before + 4, what="a refused request is tried again")
            edge.gateway.key = "sk-another-key"
            results = [answer.result(20) for answer in answers]
            assert [result.status for result in results] == [200] * 4, edge.log()[-3000:]
            assert [result.json["headers"]["authorization"] for result in results] == [["Bearer sk-another-key"]] * 4
    finally:
        edge.gateway.key = None
        write_key(edge.directory)
        edge.reload()


def test_a_gateway_with_another_key_is_not_the_clients_fault(edge: Edge) -> None:
    edge.gateway.key = "sk-another-key"
    try:
        answer = ask(edge.gateway_port, "/v1/completions", method="POST", body=CHAT)
    finally:
        edge.gateway.key = None
    assert (answer.status, answer.error["code"]) == (503, "gateway_key")
    assert int(answer.headers["retry-after"]) > 0


def test_a_generation_that_breaks_off_is_not_run_again(edge: Edge) -> None:
    for backend, port, source, address in (
        (edge.models[MODEL], edge.upstream_ports[MODEL], LOOPBACK, LOOPBACK),
        (edge.gateway, edge.gateway_port, TRUSTED, SERVER),
    ):
        before = len(backend.generations())
        answer = ask(port, "/v1/completions", method="POST", body=b'{"break off": true}', source=source, address=address)
        assert answer.status == 502
        assert answer.error["type"] == "server_error"
        assert len(backend.generations()) == before + 1


def test_a_reload_cuts_no_stream_and_keeps_the_key(edge: Edge) -> None:
    model = MODELS[2]
    connection = http.client.HTTPConnection(SERVER, edge.api_ports[model], source_address=(TRUSTED, 0), timeout=10)
    connection.request("POST", "/v1/chat/completions", body=b'{"stream": true}')
    response = connection.getresponse()
    edge.models[model].chunks.release()
    assert response.read1() == b"data: 0\n\n"
    edge.reload()
    assert ask(edge.gateway_port, "/v1/completions", method="POST", body=CHAT).json["headers"]["authorization"] == [f"Bearer {KEY}"]
    edge.models[model].chunks.release(PARTS - 1)
    assert response.read() == b"".join(b"data: %d\n\n" % number for number in range(1, PARTS))
    connection.close()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Run an edge of short patience: one second for clients, for the queue and for looks."""
    running = make_edge(
        tmp_path_factory.mktemp("hasty"),
        edge_client_timeout_seconds=1,
        edge_request_timeout_seconds=1,
        edge_queue_timeout_seconds=1,
        edge_probe_timeout_seconds=1,
        edge_generation_timeout_seconds=3,
        edge_gateway_hold_seconds=1,
    )
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_client_may_wait_longer_for_an_answer_than_it_may_be_silent(hasty: Edge) -> None:
    hasty.models[MODEL].generation_gate.clear()
    threading.Timer(2, hasty.models[MODEL].generation_gate.set).start()
    assert ask(hasty.api_ports[MODEL], "/v1/completions", method="POST", body=CHAT).json["service"] == MODEL


@pytest.mark.parametrize(
    "sent", [b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{", b"GET /v1/models HTTP/1.1\r\nHo"]
)
def test_a_slow_client_takes_no_place(hasty: Edge, sent: bytes) -> None:
    before = len(hasty.gateway.generations())
    connection = http.client.HTTPConnection(SERVER, hasty.gateway_port, source_address=(TRUSTED, 0), timeout=10)
    connection.connect()
    connection.sock.sendall(sent)
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    assert response.status == 408
    assert len(hasty.gateway.generations()) == before
    connection.close()


@pytest.mark.parametrize("drips", [False, True], ids=["falls silent", "drips"])
@pytest.mark.parametrize("way", ["gateway", "model"])
def test_a_client_that_is_slow_in_a_long_body_takes_no_place_and_is_ended(hasty: Edge, way: str, drips: bool) -> None:
    port = hasty.gateway_port if way == "gateway" else hasty.api_ports[MODEL]
    before = len(hasty.gateway.generations()), len(hasty.models[MODEL].generations()), state(hasty)["failures"]
    with socket.create_connection((SERVER, port), timeout=0.2, source_address=(TRUSTED, 0)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"x" * 800_000)
        answer = b""
        start = time.monotonic()
        while not answer and time.monotonic() - start < 10:
            try:
                answer = connection.recv(100)
            except TimeoutError:
                assert state(hasty)["running"] == 0
                if drips:
                    connection.sendall(b"x")
    assert b" 408 " in answer
    assert (len(hasty.gateway.generations()), len(hasty.models[MODEL].generations()), state(hasty)["failures"]) == before


def test_waiting_for_a_place_and_for_an_answer_ends(hasty: Edge) -> None:
    backend = hasty.models[MODEL]
    failures = state(hasty)["failures"]
    assert isinstance(failures, int)
    backend.generation_gate.clear()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(upstream, hasty) for _ in range(3)]
        codes = sorted((answer.result(10).status, answer.result().error["code"]) for answer in answers)
        assert codes == [(503, "model_unavailable"), (504, "model_timeout"), (504, "model_timeout")]
    assert state(hasty)["failures"] == failures + 2, "who waited in vain for a place says nothing of the model"
    backend.generation_gate.set()
    assert upstream(hasty).status == 200


def test_a_model_that_hangs_is_not_healthy(hasty: Edge) -> None:
    hasty.models[MODEL].gate.clear()
    answer = ask(hasty.api_ports[MODEL], "/health", timeout=5)
    assert (answer.status, answer.error["code"]) == (503, "model_timeout")
    hasty.models[MODEL].gate.set()


def test_a_gateway_that_stays_away_is_told_in_the_end(hasty: Edge) -> None:
    hasty.gateway.stop()
    answer = ask(hasty.gateway_port, "/v1/models", timeout=10)
    assert (answer.status, answer.error["code"]) == (503, "service_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    hasty.gateway.start_again()


def test_outside_development_trusted_networks_need_a_key_and_monitoring_does_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    production = make_edge(tmp_path_factory.mktemp("production"), edge_environment="production")
    try:
        production.start(source=SERVER)
        assert ask(production.gateway_port, "/v1/models").status == 401
        assert ask(production.api_ports[MODEL], "/health").status == 401
        assert ask(production.prometheus_port, "/graph").status == 401
        assert ask(production.gateway_port, "/health", source=SERVER).status == 200
        assert ask(production.metrics_ports[MODEL], "/metrics", source=SERVER).json["service"] == MODEL
    finally:
        production.stop()
