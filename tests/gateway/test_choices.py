"""The table of choices through the real LiteLLM, and what only it can get wrong: headers, metrics, keys, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.choices import CASES, DOWN, HERMES, INVENTORY, MIXTRAL, NO_MODEL, OPENCHAT, PARAGRAPH, PHI, chat, state_document
from gateway.edge_state import EdgeState
from gateway.harness import MODELS, Gateway, Response, upstream
from gateway.metrics import total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.backend import Backend

    Eventually = Callable[[Callable[[], object], object], None]

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
DECISIONS = "citadel_gateway_decisions_total"
TOO_LONG = "This model's maximum context length is {} tokens. However, your prompt contains 9000 input tokens, which exceeds this limit."

# Those with the same state stand together: the gateway takes a second to learn another.
LIVE = sorted((name for name in CASES if not CASES[name].longer_models), key=lambda name: repr(CASES[name].state))


@pytest.fixture(scope="module")
def edge() -> Iterator[EdgeState]:
    with EdgeState(state_document({})) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(backends: dict[str, Backend], edge: EdgeState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    variables = INVENTORY | {
        "gateway_edge_state_url": edge.url,
        "gateway_longer_models": {OPENCHAT: [HERMES, MIXTRAL]},
        "gateway_fallbacks": INVENTORY["gateway_fallbacks"] | {MIXTRAL: [PHI]},
    }
    with Gateway(tmp_path_factory.mktemp("choices"), [upstream(backend) for backend in backends.values()], variables) as running:
        running.post(CHAT, chat("Start asking how the models are."))
        yield running


@pytest.fixture(autouse=True)
def _as_new(backends: dict[str, Backend]) -> None:
    for backend in backends.values():
        backend.forget()


def post(gateway: Gateway, body: object, *, chat: bool = True, permitted: str | None = None) -> Response:
    headers = {} if permitted is None else {"X-Citadel-Models": permitted}
    return gateway.request("POST", CHAT if chat else TEXT, body, headers=headers)


def route(answer: Response) -> tuple[str | None, str | None]:
    return answer.headers.get("x-citadel-route"), answer.headers.get("x-citadel-model")


def asked(backends: dict[str, Backend]) -> list[str]:
    return [name for name, backend in backends.items() if backend.received]


@pytest.mark.parametrize("case", LIVE)
def test_the_table(gateway: Gateway, edge: EdgeState, backends: dict[str, Backend], case: str) -> None:
    wanted = CASES[case]
    edge.tell(state_document(wanted.state))
    answer = post(gateway, wanted.body, chat=wanted.chat, permitted=wanted.permitted)
    if wanted.answer[0].isdecimal():
        assert (str(answer.status), answer.json()["error"]["code"]) == wanted.answer
        assert ("x-citadel-route" in answer.headers) == (wanted.answer != NO_MODEL), "where a rule has chosen"
        assert asked(backends) == []
        return
    assert answer.status == 200, answer.text
    assert route(answer) == wanted.answer
    assert answer.headers["x-litellm-model-group"] == wanted.answer[1]
    assert asked(backends) == [wanted.answer[1]]
    (received,) = backends[wanted.answer[1]].received
    given_by_the_gateway = {"model"} | ({"stream_options"} if wanted.body.get("stream") else set())
    for field in ("max_tokens", "max_completion_tokens", "n", "messages", "prompt", "stream", "tools"):
        assert received.body.get(field) == wanted.body.get(field)
    assert set(received.body) - set(wanted.body) <= given_by_the_gateway


def test_another_answers_for_the_chosen_one(gateway: Gateway, edge: EdgeState, backends: dict[str, Backend]) -> None:
    edge.tell(state_document({}))
    backends[PHI].refusal = (503, "no server is up")
    assert route(post(gateway, chat("Hi"))) == ("fallback:short", OPENCHAT)
    assert route(post(gateway, chat("Hi", model=PHI, stream=True))) == ("fallback:named", OPENCHAT)
    assert route(post(gateway, chat("Hi", model=PHI), permitted=f"{PHI},{MIXTRAL}")) == ("fallback:named", MIXTRAL)


def test_a_model_that_is_too_short_after_all_hands_on_to_a_longer_one(gateway: Gateway, backends: dict[str, Backend]) -> None:
    for name in (PHI, OPENCHAT, HERMES):
        backends[name].refusal = (400, TOO_LONG.format(MODELS[name]["context_tokens"]))
    assert route(post(gateway, chat("Hi"))) == ("longer:short", MIXTRAL)
    assert route(post(gateway, chat("Hi", model=OPENCHAT))) == ("longer:named", MIXTRAL), "allowed for this one"
    backends[MIXTRAL].received.clear()
    answer = post(gateway, chat("Hi", model=HERMES))
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (400, "context_length_exceeded", "invalid_request_error")
    assert "hermes-2 holds 8192 tokens" in error["message"]
    assert "9000 (counted by the model)" in error["message"]
    assert "mixtral-8x7b would take it" in error["message"]
    assert backends[MIXTRAL].received == []


def test_another_refusal_of_the_chosen_one_is_the_answer(gateway: Gateway, backends: dict[str, Backend]) -> None:
    backends[PHI].refusal = (400, "temperature must be non-negative")
    answer = post(gateway, chat("Hi"))
    assert answer.status == 400
    assert "temperature must be non-negative" in answer.json()["error"]["message"]
    assert asked(backends) == [PHI]


@pytest.mark.parametrize("named", [{}, {"model": PHI}])
@pytest.mark.parametrize("stream", [False, True])
def test_nobody_can_answer(gateway: Gateway, backends: dict[str, Backend], named: dict[str, str], stream: bool) -> None:
    for backend in backends.values():
        backend.refusal = (503, "no server is up")
    answer = post(gateway, chat("Hi", stream=stream, **named))
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, "model_unavailable")
    assert set(error) == {"message", "type", "param", "code"}
    assert {name: len(backend.received) for name, backend in backends.items()} == dict.fromkeys(MODELS, 1)


def test_a_fallback_that_surely_does_not_fit_is_not_asked(gateway: Gateway, backends: dict[str, Backend]) -> None:
    backends[MIXTRAL].refusal = (503, "no server is up")
    assert route(post(gateway, chat("Hi", model=MIXTRAL))) == ("fallback:named", PHI)
    backends[PHI].forget()
    assert post(gateway, chat(PARAGRAPH * 1000, model=MIXTRAL)).status == 503
    assert backends[PHI].received == []


@pytest.mark.parametrize("switch", ["fallbacks", "context_window_fallbacks", "api_base", "mock_response"])
def test_a_client_cannot_send_its_request_elsewhere(gateway: Gateway, backends: dict[str, Backend], switch: str) -> None:
    answer = post(gateway, chat("Hi", model=PHI, **{switch: [MIXTRAL]}))
    assert (answer.status, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (400, "unknown_parameter", switch)
    assert asked(backends) == []


def test_a_key_sees_its_own_models(gateway: Gateway) -> None:
    def listed(**headers: str) -> list[str]:
        return [model["id"] for model in gateway.request("GET", "/v1/models", headers=headers).json()["data"]]

    assert listed(**{"X-Citadel-Models": f"{HERMES}, {PHI}"}) == [HERMES, PHI]
    assert listed() == list(MODELS)
    assert listed(**{"X-Citadel-Models": "gone"}) == []
    assert gateway.request("GET", f"/v1/models/{MIXTRAL}", headers={"X-Citadel-Models": PHI}).status == 404


def test_decisions_are_counted_by_rule_and_model(gateway: Gateway, eventually: Eventually) -> None:
    def counted(**labels: str) -> float:
        return total(gateway.get("/metrics/").text, DECISIONS, **labels)

    everything, short, long = counted(), counted(rule="short", model=PHI), counted(rule="too-long", model=PHI)
    for _ in range(3):
        assert post(gateway, chat("Hi")).status == 200
    assert post(gateway, chat("Hi", model=PHI, max_tokens=2048)).status == 400
    assert post(gateway, chat("Hi", model="marked-model")).status == 404
    eventually(lambda: (counted(rule="short", model=PHI), counted(rule="too-long", model=PHI)), (short + 3, long + 1))
    assert counted() == everything + 4
    assert "marked-model" not in gateway.get("/metrics/").text


def test_what_is_known_of_the_models_grows_old(gateway: Gateway, edge: EdgeState, eventually: Eventually) -> None:
    edge.tell(state_document({PHI: DOWN}))
    assert route(post(gateway, chat("Hi"))) == ("short", OPENCHAT)
    edge.tell({"nonsense": []})
    eventually(lambda: route(post(gateway, chat("Hi"))), ("short", PHI))
    edge.tell(state_document({}))
