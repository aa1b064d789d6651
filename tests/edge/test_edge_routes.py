"""Who reaches what through the edge while everything behind it is well."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from edge.backends import PARTS
from edge.haproxy import KEY, LOOPBACK, MODELS, MONITOR, SERVER, STRANGER, TRUSTED, Edge, ask, bearer, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT = json.dumps({"messages": [{"role": "user", "content": "a prompt of nobody's business"}]}).encode()
JSON = {"Content-Type": "application/json"}


# --- the models' ports ---


@pytest.mark.parametrize("model", MODELS)
def test_a_models_port_is_its_api_and_its_health(edge: Edge, model: str) -> None:
    port = edge.api_ports[model]
    assert ask(port, "/health").json == {"state": "generating", "of": model}
    assert ask(port, "/v1/models").json["service"] == model
    for path in ("/v1/chat/completions", "/v1/completions"):
        echo = ask(port, path, method="POST", body=CHAT, headers=JSON).json
        assert (echo["service"], echo["target"]) == (model, path)


@pytest.mark.parametrize("model", MODELS)
def test_metrics_are_where_the_specification_has_them(edge: Edge, model: str) -> None:
    echo = ask(edge.metrics_ports[model], "/metrics").json
    assert (echo["service"], echo["target"]) == (model, "/metrics")


def test_a_port_without_a_model_before_it_has_its_own_models_metrics(edge: Edge) -> None:
    assert ask(edge.api_ports[MODELS[0]], "/metrics").json["service"] == MODELS[0]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/metrics"),
        ("GET", "/"),
    ],
)
def test_a_port_without_an_api_has_metrics_only(edge: Edge, method: str, path: str) -> None:
    answer = ask(edge.metrics_ports[MODELS[-1]], path, method=method)
    assert answer.status == 404
    assert answer.error["code"] == "unknown_url"


# --- the gateway's port ---


def test_the_gateway_serves_the_public_paths(edge: Edge) -> None:
    assert ask(edge.gateway_port, "/v1/models").json["target"] == "/v1/models"
    for path in ("/v1/chat/completions", "/v1/completions"):
        echo = ask(edge.gateway_port, path, method="POST", body=CHAT, headers=JSON).json
        assert (echo["service"], echo["method"], echo["target"]) == ("gateway", "POST", path)
    assert edge.gateway.generations()[-1].body == CHAT


def test_a_refusal_for_now_says_when_to_come_back(edge: Edge) -> None:
    for status in (429, 503):
        edge.gateway.generation_status = status
        answer = ask(edge.gateway_port, "/v1/completions", method="POST", body=CHAT, headers=JSON)
        assert (answer.status, answer.headers["retry-after"]) == (status, "5")
    edge.gateway.generation_status = 200
    assert "retry-after" not in ask(edge.gateway_port, "/v1/completions", method="POST", body=CHAT, headers=JSON).headers


@pytest.mark.parametrize("body", [b"{}", b'{"model": "phi-3-mini", "input": [[]]}', b"nonsense"])
def test_embeddings_are_answered_with_that_there_is_no_model_for_them(edge: Edge, body: bytes) -> None:
    before = len(edge.gateway.generations())
    answer = ask(edge.gateway_port, "/v1/embeddings", method="POST", body=body, headers=JSON)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "no model for embeddings" in answer.error["message"]
    assert len(edge.gateway.generations()) == before


def test_the_gateways_metrics_need_no_redirect(edge: Edge) -> None:
    assert ask(edge.gateway_port, "/metrics").json["target"] == "/metrics/"


def test_health_names_every_model_without_asking_the_gateway(edge: Edge) -> None:
    answer = edge.health()
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "status": "healthy",
        "gateway": "healthy",
        "models": dict.fromkeys(MODELS, "healthy"),
        "breakers": dict.fromkeys(MODELS, "closed"),
    }
    assert "/health" not in {request.target for request in edge.gateway.received}


# --- who may ---


def every_request(edge: Edge) -> list[tuple[int, str, str]]:
    """List port, method and path of everything that is served outside, Prometheus included."""
    api, gateway = edge.api_ports[MODELS[1]], edge.gateway_port
    return [
        *((port, "GET", path) for port in (api, gateway) for path in ("/health", "/metrics", "/v1/models")),
        *((port, "POST", path) for port in (api, gateway) for path in ("/v1/chat/completions", "/v1/completions")),
        (edge.prometheus_port, "GET", "/graph"),
        (edge.prometheus_port, "GET", "/api/v1/query?query=up"),
    ]


def test_a_stranger_gets_nothing_without_a_key(edge: Edge) -> None:
    for port, method, path in [
        *every_request(edge),
        (edge.gateway_port, "GET", "/nothing"),
        (edge.metrics_ports[MODELS[-1]], "GET", "/metrics"),
    ]:
        answer = ask(port, path, method=method, source=STRANGER)
        assert (path, answer.status) == (path, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.error["code"] == "invalid_api_key"


def test_nobody_gets_in_by_presenting_the_gateways_own_key(edge: Edge) -> None:
    answer = ask(edge.gateway_port, "/v1/models", source=STRANGER, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status == 401


@pytest.mark.parametrize("source", [SERVER, MONITOR])
def test_the_server_and_its_monitoring_may_read_but_not_generate(edge: Edge, source: str) -> None:
    for port, method, path in every_request(edge):
        reads = method == "GET" and (path in {"/health", "/metrics"} or port == edge.prometheus_port)
        assert (path, ask(port, path, method=method, source=source).status) == (path, 200 if reads else 401)


# --- tricks ---

TRICKS = [
    "//v1/models",
    "/v1//models",
    "/v1/models/",
    "/v1/models/../model/info",
    "/v1/./models",
    "/./v1/models",
    "/v1/%6dodels",
    "/v1%2fmodels",
    "/v1/models%2f..%2f..%2fkey",
    "/v1/models%00",
    "/V1/MODELS",
    "/v1/models;x=1",
    "/v1\\models",
    "/v1/model/info",
    "/model/info",
    "/key/generate",
    "/key/info",
    "/config/yaml",
    "/health/readiness",
    "/health/liveliness",
    "/health/",
    "/metrics/",
    "/ui",
    "/ui/",
    "/docs",
    "/openapi.json",
    "/v1/responses",
    "/engines/x/chat/completions",
    "/chat/completions",
    "/models",
    "/invocations",
    "/tokenize",
    "/v1/load_lora_adapter",
    "/",
]


# Where somebody comes from, what key is brought, and what they get of what does not exist.
CALLERS = {
    "trusted": (TRUSTED, {}, (404, "unknown_url")),
    "trusted, with a key": (TRUSTED, bearer("web-shop"), (404, "unknown_url")),
    "trusted, with a wrong key": (TRUSTED, {"Authorization": "Bearer wrong"}, (401, "invalid_api_key")),
    "stranger": (STRANGER, {}, (401, "invalid_api_key")),
    "stranger, with a key": (STRANGER, bearer("web-shop"), (404, "unknown_url")),
    "stranger, with a wrong key": (STRANGER, {"Authorization": "Bearer wrong"}, (401, "invalid_api_key")),
    "stranger, with the gateway's key": (STRANGER, {"Authorization": f"Bearer {KEY}"}, (401, "invalid_api_key")),
}


@pytest.fixture
def nothing_reaches_a_service(edge: Edge) -> Iterator[None]:
    """See that what a test sends arrives nowhere but at the edge."""
    services = (edge.gateway, *edge.models.values(), edge.prometheus)
    before = [len(service.received) for service in services]
    yield
    reached = [request.target for service, count in zip(services, before, strict=True) for request in service.received[count:]]
    assert set(reached) <= {"/state", "/health/liveliness"}, "only the edge's own checks arrived meanwhile"


@pytest.mark.usefixtures("nothing_reaches_a_service")
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("target", TRICKS)
def test_only_the_exact_paths_exist(edge: Edge, target: str, caller: str) -> None:
    source, headers, expected = CALLERS[caller]
    for port in (edge.gateway_port, edge.api_ports[MODELS[1]]):
        for method in ("GET", "POST"):
            answer = ask(port, target, method=method, source=source, headers=headers)
            assert (answer.status, answer.error["code"]) == expected


def exchange(edge: Edge, request: bytes, source: str) -> list[int]:
    """Send bytes that no client library would; the status of each answer until the edge closes the connection."""
    with socket.create_connection((SERVER, edge.gateway_port), timeout=15, source_address=(source, 0)) as connection:
        connection.sendall(request)
        # The edge may have answered and closed the connection before it has read all.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return [int(line.split()[1]) for line in answer.splitlines() if line.startswith(b"HTTP/1.")]


# Line ends stand for HTTP's. After the first line come Host and the key; what follows an empty line is another request,
# where the edge takes it for one.
CHUNKS = "\n\n0\n\n"
SMUGGLED = {
    "HTTP/1.0": "GET /key/info HTTP/1.0\n\n",
    "another version": "GET /key/info HTTP/3.7\n\n",
    "absolute form": "GET http://127.0.0.1:8000/key/info HTTP/1.1\n\n",
    "absolute form with dots": "GET http://x/v1/models/../../key/info HTTP/1.1\n\n",
    "authority form": "CONNECT 127.0.0.1:8000 HTTP/1.1\n\n",
    "asterisk form": "OPTIONS * HTTP/1.1\n\n",
    "a path in a header": "GET /key/info HTTP/1.1\nX-Original-URL: /v1/models\nX-Rewrite-URL: /v1/models\n\n",
    "a method in a header": "DELETE /v1/models HTTP/1.1\nX-HTTP-Method-Override: GET\n\n",
    "two lengths": "POST /v1/completions HTTP/1.1\nContent-Length: 4\nContent-Length: 40\n\n{}  GET /key/info HTTP/1.1\n\n",
    "a length below zero": "POST /v1/completions HTTP/1.1\nContent-Length: -1\n\n",
    "a length with a sign": "POST /v1/completions HTTP/1.1\nContent-Length: +2\n\n{}",
    "length and chunks": f"POST /v1/completions HTTP/1.1\nContent-Length: 44\nTransfer-Encoding: chunked{CHUNKS}GET /key/info HTTP/1.1\n\n",
    "chunks twice": f"POST /v1/completions HTTP/1.1\nTransfer-Encoding: chunked\nTransfer-Encoding: x{CHUNKS}",
    "chunks misspelt": f"POST /v1/completions HTTP/1.1\nTransfer-Encoding: xchunked{CHUNKS}",
    "a blank before the colon": f"POST /v1/completions HTTP/1.1\nTransfer-Encoding : chunked{CHUNKS}",
    "a line begun with a blank": f"POST /v1/completions HTTP/1.1\nX: x\n Transfer-Encoding: chunked{CHUNKS}",
    "chunks without a number": "POST /v1/completions HTTP/1.1\nTransfer-Encoding: chunked\n\nz\n\n",
    "a zero byte": "GET /v1/models\0 HTTP/1.1\n\n",
    "a tab": "GET\t/key/info HTTP/1.1\n\n",
    "a slash that is too long": "GET /v1/models\xc0\xaf HTTP/1.1\n\n",
    "an upgrade": "GET /key/info HTTP/1.1\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\n\n",
    "two hosts": "GET /v1/models HTTP/1.1\nHost: 127.0.0.1:8000\n\n",
    "too many headers": "GET /v1/models HTTP/1.1\n" + "X-Other: x\n" * 110 + "\n",
    "too long a header": f"GET /v1/models HTTP/1.1\nX-Other: {'x' * 20000}\n\n",
    "too long a path": f"GET /{'x' * 20000} HTTP/1.1\n\n",
}
NO_REQUEST = {"HTTP/0.9": b"GET /v1/models\r\n", "nonsense": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"}


@pytest.mark.usefixtures("nothing_reaches_a_service")
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("trick", SMUGGLED)
def test_nothing_is_smuggled_past_the_rules(edge: Edge, trick: str, caller: str) -> None:
    source, headers, _ = CALLERS[caller]
    first, rest = SMUGGLED[trick].split("\n", 1)
    own = "".join(f"{name}: {value}\n" for name, value in headers.items())
    statuses = exchange(edge, f"{first}\nHost: x\n{own}{rest}".replace("\n", "\r\n").encode("latin-1"), source)
    assert statuses, "an answer in any case"
    assert set(statuses) <= {400, 401, 403, 404, 411, 501}


@pytest.mark.usefixtures("nothing_reaches_a_service")
@pytest.mark.parametrize("sent", NO_REQUEST)
def test_what_is_no_request_is_refused(edge: Edge, sent: str) -> None:
    assert exchange(edge, NO_REQUEST[sent], TRUSTED) == [400]


# --- bodies ---


@pytest.mark.parametrize("port_of", [lambda edge: edge.gateway_port, lambda edge: edge.api_ports[MODELS[1]]], ids=["gateway", "model"])
def test_a_body_that_is_too_long_is_refused_before_it_is_sent_on(edge: Edge, port_of: Callable[[Edge], int]) -> None:
    most = 1_000_000
    assert ask(port_of(edge), "/v1/completions", method="POST", body=b"x" * most).status == 200
    before = len(edge.gateway.generations())
    answer = ask(port_of(edge), "/v1/completions", method="POST", headers={"Content-Length": str(most + 1)}, body=b"x" * 20_000)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert str(most) in answer.error["message"]
    assert len(edge.gateway.generations()) == before


@pytest.mark.parametrize("length", [10, 30_000])
def test_a_body_of_a_length_that_nobody_knows_is_refused(edge: Edge, length: int) -> None:
    connection = http.client.HTTPConnection(SERVER, edge.gateway_port, source_address=(TRUSTED, 0), timeout=10)
    connection.request("POST", "/v1/completions", body=iter([b"x" * length]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    response = connection.getresponse()
    assert response.status == 411
    assert json.loads(response.read())["error"]["code"] == "length_required"
    connection.close()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/health", "/metrics"])
def test_only_the_right_method_exists(edge: Edge, path: str, method: str) -> None:
    for port in (edge.gateway_port, edge.api_ports[MODELS[1]]):
        assert ask(port, path, method=method).status == 404


@pytest.mark.parametrize("port_of", [lambda edge: edge.gateway_port, lambda edge: edge.api_ports[MODELS[1]]], ids=["gateway", "model"])
def test_the_absolute_form_and_a_query_reach_no_service(edge: Edge, port_of: Callable[[Edge], int]) -> None:
    port = port_of(edge)
    assert ask(port, f"http://{SERVER}:{port}/v1/models?team_id=other&x=/key/info").json["target"] == "/v1/models"
    assert ask(port, f"http://{SERVER}:{port}/key/info").status == 404


def test_old_http_follows_the_same_rules(edge: Edge) -> None:
    def first_line(target: str) -> bytes:
        with socket.create_connection((SERVER, edge.gateway_port), timeout=10, source_address=(TRUSTED, 0)) as connection:
            connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            return connection.makefile("rb").readline()

    assert b" 200 " in first_line("/v1/models")
    assert b" 404 " in first_line("/key/info")


def test_two_lengths_are_one_too_many(edge: Edge) -> None:
    before = len(edge.gateway.generations())
    with socket.create_connection((SERVER, edge.gateway_port), timeout=10, source_address=(TRUSTED, 0)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 40\r\n\r\n"
            b"{}  GET /key/info HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        assert b" 400 " in connection.makefile("rb").readline()
    assert len(edge.gateway.generations()) == before


# --- headers ---

KEYS = {
    "Authorization": "Bearer sk-a-clients",
    "API-Key": "sk-a-clients",
    "X-API-Key": "sk-a-clients",
    "X-Goog-API-Key": "sk-a-clients",
    "Ocp-Apim-Subscription-Key": "sk-a-clients",
    "X-LiteLLM-API-Key": "sk-a-clients",
    "x-litellm-timeout": "0",
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Host": "elsewhere",
    "Forwarded": "for=127.0.0.1",
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA",
}
STRIPPED = {name.lower() for name in KEYS} - {"authorization", "x-forwarded-for", "connection"}


def test_only_the_edges_key_reaches_the_gateway(edge: Edge) -> None:
    sent = KEYS | bearer("web-shop") | {"X-Request-Id": "kept"}
    headers = ask(edge.gateway_port, "/v1/completions", method="POST", body=CHAT, headers=sent).json["headers"]
    assert headers["authorization"] == [f"Bearer {KEY}"]
    assert headers["x-forwarded-for"] == [TRUSTED]
    assert headers["x-request-id"] == ["kept"]
    assert STRIPPED.isdisjoint(headers)
    assert "upgrade" not in headers.get("connection", [""])[0].lower()


@pytest.mark.parametrize(
    "port_of", [lambda edge: edge.api_ports[MODELS[1]], lambda edge: edge.prometheus_port], ids=["model", "prometheus"]
)
def test_no_key_reaches_anything_else(edge: Edge, port_of: Callable[[Edge], int]) -> None:
    path = "/v1/completions" if port_of(edge) != edge.prometheus_port else "/api/v1/query"
    headers = ask(port_of(edge), path, method="POST", body=CHAT, headers=KEYS | bearer("web-shop")).json["headers"]
    assert (STRIPPED | {"authorization"}).isdisjoint(headers)


TOLD = {
    "server": "uvicorn",
    "x-litellm-call-id": "7",
    "x-litellm-model-group": "hermes-2",
    "x-litellm-model-api-base": "http://127.0.0.1:31400/v1",
    "x-litellm-response-cost-original": "0.1",
    "x-litellm-key-spend": "3",
    "x-litellm-something-new": "x",
    "llm_provider-server": "uvicorn",
    "x-citadel-reason": "short",
    "openai-processing-ms": "12",
}
KEPT = {"x-litellm-call-id", "x-litellm-model-group", "x-citadel-reason", "openai-processing-ms"}


def test_of_what_services_tell_about_themselves_clients_see_what_is_theirs(edge: Edge) -> None:
    edge.gateway.tells = TOLD
    try:
        answer = ask(edge.gateway_port, "/v1/completions", method="POST", body=CHAT)
    finally:
        edge.gateway.tells = {}
    assert {name: value for name, value in answer.headers.items() if name in TOLD} == {name: TOLD[name] for name in KEPT}


@pytest.mark.parametrize("source", [TRUSTED, STRANGER])
def test_every_answer_has_the_headers_that_make_sense_for_an_api(edge: Edge, source: str) -> None:
    for port, method, path in [*every_request(edge), (edge.gateway_port, "GET", "/nothing")]:
        headers = ask(port, path, method=method, source=source).headers
        assert headers["x-content-type-options"] == "nosniff"
        if port == edge.prometheus_port:
            assert headers["content-security-policy"] == "frame-ancestors 'none'"
        else:
            assert headers["cache-control"] == "no-store"
        assert {"server", "strict-transport-security"}.isdisjoint(headers)


# --- Prometheus ---


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/graph?g0.expr=up",
        "/consoles/model.html?host=a&model=openchat-3.5&hours=6",
        "/api/v1/query?query=up",
        "/api/v1/label/job/values",
        "/static/js/main.js",
        "/-/healthy",
        "/-/ready",
    ],
)
def test_prometheus_can_be_read(edge: Edge, target: str) -> None:
    assert ask(edge.prometheus_port, target).json["target"] == target


@pytest.mark.parametrize(
    "target",
    [
        "/-/quit",
        "/-/reload",
        "/-/",
        "//-/quit",
        "/%2d/quit",
        "/x/../-/quit",
        "/./-/quit",
        "/api/v1/admin/tsdb/delete_series",
        "/api/v1/admin",
        "/api/v1/%61dmin/tsdb/snapshot",
        "/api//v1/admin/tsdb/snapshot",
        "/api/v1/ADMIN/tsdb/snapshot",
        "/api/v1/x/../admin/tsdb/snapshot",
        "/api\\v1/admin",
        "/debug/pprof/heap",
        "/DEBUG/pprof/",
    ],
)
def test_prometheus_cannot_be_administered(edge: Edge, target: str) -> None:
    for method in ("GET", "POST"):
        assert ask(edge.prometheus_port, target, method=method).status == 404


def test_no_script_runs_on_the_consoles(edge: Edge) -> None:
    policy = ask(edge.prometheus_port, "/consoles/index.html").headers["content-security-policy"]
    assert dict(part.split(" ", 1) for part in policy.split("; ")) == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_prometheus_takes_no_other_method(edge: Edge) -> None:
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert ask(edge.prometheus_port, "/api/v1/query", method=method).status == 404


# --- streams, bodies, logs ---


@pytest.mark.parametrize("way", ["gateway", "model", "upstream"])
def test_every_part_of_a_stream_passes_before_the_next_is_made(edge: Edge, way: str) -> None:
    model = MODELS[2]
    backend = edge.gateway if way == "gateway" else edge.models[model]
    connection = edge.connection(way, model)
    connection.request("POST", "/v1/chat/completions", body=b'{"stream": true}')
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream"
    delays = []
    for number in range(PARTS):
        start = time.monotonic()
        backend.chunks.release()
        assert response.read1() == f"data: {number}\n\n".encode()
        delays.append(time.monotonic() - start)
    # The first goes out with the headers and the last with the end.
    assert min(delays[1:-1]) < 0.15, "the kernel waits up to 200 ms for more to send"
    assert response.read() == b""
    connection.close()


def test_a_large_body_announced_by_expect_arrives_whole(edge: Edge) -> None:
    body = b"x" * 900_000
    with socket.create_connection((SERVER, edge.gateway_port), timeout=10, source_address=(TRUSTED, 0)) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        reader = connection.makefile("rb")
        assert b" 100 " in reader.readline()
        reader.readline()
        connection.sendall(body)
        assert b" 200 " in reader.readline()
    assert edge.gateway.generations()[-1].body == body


def test_the_log_has_neither_keys_nor_prompts_nor_queries(edge: Edge) -> None:
    ask(
        edge.gateway_port,
        "/v1/completions?secret=query",
        method="POST",
        body=CHAT,
        headers={"Authorization": "Bearer sk-a-clients"},
        source=STRANGER,
    )
    ask(edge.gateway_port, "/" + "very/" * 1000, source=STRANGER)
    ask(edge.gateway_port, '/a"quote\\and%0acode', source=STRANGER)

    def lines() -> list[dict[str, object]]:
        whole = edge.log().rpartition("\n")[0]  # the last line may not be written to its end
        return [json.loads(line.removeprefix("<6>")) for line in whole.splitlines() if line.startswith("<6>{")]

    until(lambda: any("quote" in str(line["path"]) for line in lines()), what="the request is logged")
    refused = next(line for line in reversed(lines()) if line["client"] == STRANGER and line["path"] == "/v1/completions")
    assert (refused["status"], refused["method"], refused["port"]) == (401, "POST", edge.gateway_port)
    for secret in (KEY, "sk-a-clients", "secret=query", "nobody's business"):
        assert secret not in edge.log()


def test_the_exporter_tells_the_state_of_every_breaker(edge: Edge) -> None:
    metrics = ask(edge.exporter_port, "/metrics", source=LOOPBACK, address=LOOPBACK).body.decode()
    for model in MODELS:
        assert f'haproxy_server_status{{proxy="model_{model}",server="model",state="UP"}} 1' in metrics
    assert ask(edge.exporter_port, "/", source=LOOPBACK, address=LOOPBACK).status == 404
