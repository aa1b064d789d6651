"""The gateway as its clients and its operator see it: the real LiteLLM with the rendered configuration, small model servers behind it."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.backend import ANSWER, USAGE, Backend
from gateway.harness import MASTER_KEY, MODELS, Gateway, upstream
from gateway.metrics import total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.harness import Response

    Eventually = Callable[[Callable[[], object], object], None]

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
DEFAULT = "hermes-2"
FALLBACKS = {"openchat-3.5": ["hermes-2", "mixtral-8x7b"], "hermes-2": ["mixtral-8x7b"]}
NO_MODEL: list[dict[str, Any]] = [{}, {"model": None}, {"model": ""}, {"model": "auto"}]

pytestmark = pytest.mark.usefixtures("_as_new")


@pytest.fixture(scope="module")
def gateway(backends: dict[str, Backend], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(
        tmp_path_factory.mktemp("gateway"), [upstream(backend) for backend in backends.values()], {"gateway_fallbacks": FALLBACKS}
    ) as running:
        yield running


@pytest.fixture
def _as_new(backends: dict[str, Backend]) -> None:
    for backend in backends.values():
        backend.forget()


def request(path: str, **fields: object) -> dict[str, Any]:
    content: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]} if path == CHAT else {"prompt": "Hello"}
    return content | fields


def text_of(path: str, answer: Response, *, stream: bool) -> str:
    if not stream:
        choice = answer.json()["choices"][0]
        return str(choice["message"]["content"] if path == CHAT else choice["text"])
    choices = [choice for event in answer.events() for choice in event["choices"]]
    return "".join((choice["delta"].get("content") if path == CHAT else choice.get("text")) or "" for choice in choices)


def asked(backends: dict[str, Backend]) -> dict[str, int]:
    return {name: len(backend.received) for name, backend in backends.items() if backend.received}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_lists_exactly_the_models_with_their_capabilities(gateway: Gateway, encoding: str) -> None:
    answer = gateway.request("GET", "/v1/models", headers={"Accept-Encoding": encoding})
    assert answer.status == 200
    told = ("mode", "modes", "max_input_tokens", "max_output_tokens", "specialisation", "description")
    listed = {model["id"]: tuple(model[name] for name in told) for model in answer.json()["data"]}
    assert listed == {
        name: (
            "chat",
            ["chat", "completion"],
            model["context_tokens"],
            model["context_tokens"],
            model["specialisation"],
            model["description"],
        )
        for name, model in MODELS.items()
    }
    assert len(answer.json()["data"]) == len(MODELS)


def test_operators_see_what_each_model_is_good_at(gateway: Gateway) -> None:
    described = {
        entry["model_info"]["id"]: (entry["model_info"]["specialisation"], entry["model_info"]["description"])
        for entry in gateway.get("/model/info").json()["data"]
    }
    expected = {f"{name}@hx-llm-server-01": (model["specialisation"], model["description"]) for name, model in MODELS.items()}
    assert described == expected


@pytest.mark.parametrize(("path", "named", "stream"), list(itertools.product([CHAT, TEXT], NO_MODEL, [False, True])))
def test_a_request_without_a_model_gets_one(
    gateway: Gateway, backends: dict[str, Backend], path: str, named: dict[str, Any], stream: bool
) -> None:
    answer = gateway.post(path, request(path, stream=stream, max_tokens=17, **named))
    assert answer.status == 200, answer.text
    assert text_of(path, answer, stream=stream) == ANSWER
    assert stream or answer.json()["model"] == DEFAULT
    assert answer.headers["x-litellm-model-group"] == DEFAULT
    assert asked(backends) == {DEFAULT: 1}
    received = backends[DEFAULT].received[0]
    assert (received.path, received.body["model"], received.body["max_tokens"]) == (path, DEFAULT, 17)


@pytest.mark.parametrize(
    ("path", "model", "stream"), list(itertools.product([CHAT, TEXT], ["mixtral-8x7b", "openchat-3.5"], [False, True]))
)
def test_a_named_model_answers_itself(gateway: Gateway, backends: dict[str, Backend], path: str, model: str, stream: bool) -> None:
    answer = gateway.post(path, request(path, model=model, stream=stream))
    assert text_of(path, answer, stream=stream) == ANSWER
    assert answer.headers["x-litellm-model-group"] == model
    assert asked(backends) == {model: 1}
    assert backends[model].received[0].body["model"] == model
    assert "max_tokens" not in backends[model].received[0].body


def test_what_a_client_sends_reaches_the_model_unchanged(gateway: Gateway, backends: dict[str, Backend]) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
    sent = {
        "max_completion_tokens": 11,
        "temperature": 0.3,
        "top_p": 0.9,
        "n": 1,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": 1},
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 4,
        "parallel_tool_calls": False,
        "tools": [{"type": "function", "function": {"name": "weather", "strict": True, "parameters": schema}}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}},
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 3,
        "stop_token_ids": [1],
        "structured_outputs": {"choice": ["yes", "no"]},
        "chat_template_kwargs": {"thinking": False},
    }
    assert gateway.post(CHAT, request(CHAT, model="mixtral-8x7b", **sent)).status == 200
    body = backends["mixtral-8x7b"].received[0].body
    assert {name: body.get(name) for name in sent} == sent


MALFORMED: dict[str, tuple[object, dict[str, str], tuple[int, str]]] = {
    "no JSON": (b'{"messages": [', {}, (400, "invalid_json")),
    "nothing": (b"", {}, (400, "invalid_json")),
    "no object": ([1], {}, (400, "invalid_type")),
    "no text": (b'{"messages": "\xff"}', {}, (400, "invalid_json")),
    "another type": (request(CHAT), {"Content-Type": "text/plain"}, (415, "unsupported_content_type")),
    "no messages": ({"model": DEFAULT}, {}, (400, "missing_required_parameter")),
    "a wrong value": (request(CHAT, response_format="json"), {}, (400, "invalid_type")),
    "a switch of LiteLLM's": (request(CHAT, timeout="x"), {}, (400, "unknown_parameter")),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_refused_before_anybody_looks_at_it(gateway: Gateway, backends: dict[str, Backend], case: str) -> None:
    body, headers, expected = MALFORMED[case]
    answer = gateway.request("POST", CHAT, body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == expected
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert asked(backends) == {}


def test_a_long_body_arrives_in_parts_and_whole(gateway: Gateway, backends: dict[str, Backend]) -> None:
    content = "x " * 400_000
    answer = gateway.post(CHAT, {"model": "mixtral-8x7b", "messages": [{"role": "user", "content": content}], "truncate_prompt_tokens": 9})
    assert answer.status == 200
    assert backends["mixtral-8x7b"].received[0].body["messages"][0]["content"] == content


def test_what_a_benchmark_relies_on_reaches_the_model(gateway: Gateway, backends: dict[str, Backend]) -> None:
    """As vLLM's `bench serve` sends it: without `ignore_eos` its answers would be of any length, and its figures of nothing."""
    options = {"max_tokens": 32, "ignore_eos": True, "temperature": 0.0, "repetition_penalty": 1.0}
    body = {"model": "hermes-2", "prompt": "Hello", "logprobs": None, "stream": True, "stream_options": {"include_usage": True}, **options}
    assert gateway.post(TEXT, body).status == 200
    (received,) = backends["hermes-2"].received
    assert received.body | options == received.body


def test_a_model_that_has_recovered_is_asked_again_at_once(gateway: Gateway, backends: dict[str, Backend]) -> None:
    backends["phi-3-mini"].refusal = (429, "the queue is full")
    assert {gateway.post(CHAT, request(CHAT, model="phi-3-mini")).status for _ in range(4)} == {429}
    backends["phi-3-mini"].forget()
    assert [gateway.post(CHAT, request(CHAT, model="phi-3-mini")).status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize(("path", "stream"), [(CHAT, False), (CHAT, True), (TEXT, False)])
def test_another_model_answers_for_one_that_cannot(gateway: Gateway, backends: dict[str, Backend], path: str, stream: bool) -> None:
    backends["openchat-3.5"].refusal = (503, "no server is up")
    backends["hermes-2"].refusal = (500, "engine is dead")
    answer = gateway.post(path, request(path, model="openchat-3.5", stream=stream))
    assert answer.status == 200, answer.text
    assert text_of(path, answer, stream=stream) == ANSWER
    assert answer.headers["x-litellm-model-group"] == "mixtral-8x7b"
    # One attempt each: a second one may run a generation twice.
    assert asked(backends) == {"openchat-3.5": 1, "hermes-2": 1, "mixtral-8x7b": 1}


def test_a_text_stream_says_that_its_model_cannot_answer(gateway: Gateway, backends: dict[str, Backend]) -> None:
    """LiteLLM 1.106.2 opens a text stream after its router is done, so nothing falls back; a release that mends it makes this red.

    Where the edge knows that a model is down, the gateway asks another one to begin with: test_choices.py.
    """
    backends["openchat-3.5"].refusal = (503, "no server is up")
    answer = gateway.post(TEXT, request(TEXT, model="openchat-3.5", stream=True))
    assert answer.status == 503
    message = "The model openchat-3.5 cannot take the request at the moment."
    assert answer.json()["error"] == {"message": message, "type": "server_error", "param": None, "code": "503"}
    assert asked(backends) == {"openchat-3.5": 1}


def test_another_model_answers_for_one_that_does_not_listen(gateway: Gateway, backends: dict[str, Backend]) -> None:
    with backends["openchat-3.5"].away():
        answer = gateway.post(CHAT, request(CHAT, model="openchat-3.5"))
    assert (answer.status, answer.headers["x-litellm-model-group"]) == (200, "hermes-2")
    answer = gateway.post(CHAT, request(CHAT, model="openchat-3.5"))
    assert (answer.status, answer.headers["x-litellm-model-group"]) == (200, "openchat-3.5")


@pytest.mark.parametrize(("path", "stream", "status"), list(itertools.product([CHAT, TEXT], [False, True], [400, 422])))
def test_no_other_model_overrules_the_one_that_was_named(
    gateway: Gateway, backends: dict[str, Backend], path: str, stream: bool, status: int
) -> None:
    backends["openchat-3.5"].refusal = (status, "the prompt is longer than 4096 tokens")
    answer = gateway.post(path, request(path, model="openchat-3.5", stream=stream))
    assert answer.status == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["type"]) == ("the prompt is longer than 4096 tokens", "invalid_request_error")
    if path == CHAT and not stream:
        # Elsewhere LiteLLM 1.106.2 makes an answer of its own from the words, with the status for a code.
        assert error["code"] == "invalid_value"
    assert asked(backends) == {"openchat-3.5": 1}


def test_an_error_tells_a_client_nothing_of_the_inside(gateway: Gateway, backends: dict[str, Backend]) -> None:
    for backend in backends.values():
        backend.refusal = (500, "engine is dead")
    answer = gateway.post(CHAT, request(CHAT, model="openchat-3.5"))
    assert answer.status == 503
    assert not [word for word in ("Traceback", "127.0.0.1", "hermes-2", "allback") if word in answer.text]


def test_a_stream_takes_no_longer_than_an_answer_may(backends: dict[str, Backend], tmp_path: Path) -> None:
    """However steadily its words come."""
    backends["phi-3-mini"].pause_seconds = 2
    with Gateway(tmp_path, [upstream(backends["phi-3-mini"])], {"gateway_request_timeout_seconds": 3}) as gateway:
        began = time.monotonic()
        text = gateway.post(CHAT, request(CHAT, model="phi-3-mini", stream=True)).text
    assert "Four " in text
    assert "gateway." not in text
    assert '"error"' in text
    assert time.monotonic() - began < len(ANSWER.split(" ")) * backends["phi-3-mini"].pause_seconds + 2


@pytest.mark.parametrize(("path", "named"), list(itertools.product([CHAT, TEXT], [{}, {"model": "mixtral-8x7b"}])))
def test_a_stream_reports_its_usage_to_whoever_asks(gateway: Gateway, path: str, named: dict[str, Any]) -> None:
    answer = gateway.post(path, request(path, stream=True, stream_options={"include_usage": True}, **named))
    *events, last = answer.events()
    assert {name: last["usage"][name] for name in USAGE} == USAGE
    assert last["choices"] == [], "as OpenAI's"
    assert [event for event in events if event.get("usage") or not event["choices"]] == []


@pytest.mark.parametrize(("path", "named"), list(itertools.product([CHAT, TEXT], [{}, {"model": "auto"}, {"model": "mixtral-8x7b"}])))
def test_pieces_of_a_stream_have_the_form_of_openai_s(gateway: Gateway, path: str, named: dict[str, Any]) -> None:
    events = gateway.post(path, request(path, stream=True, **named)).events()
    assert {event["model"] for event in events} == {"mixtral-8x7b" if named.get("model") == "mixtral-8x7b" else DEFAULT}
    assert [event for event in events if event.get("usage")] == [], "the client has not asked for it"
    choices = [choice for event in events for choice in event["choices"]]
    assert len(choices) == len(events)
    assert [choice.get("finish_reason") for choice in choices][-2:] == [None, "stop"]
    assert [choice for choice in choices if path == TEXT and not isinstance(choice.get("text"), str)] == []


@pytest.mark.parametrize("named", [{}, {"model": "mixtral-8x7b"}])
def test_the_tokens_of_a_stream_are_counted_by_the_model(gateway: Gateway, eventually: Eventually, named: dict[str, Any]) -> None:
    model = named.get("model", DEFAULT)

    def tokens() -> float:
        return total(gateway.get("/metrics/").text, "litellm_output_tokens_metric_total", requested_model=model)

    before = tokens()
    answer = gateway.post(CHAT, request(CHAT, stream=True, **named))
    assert not [event for event in answer.events() if event.get("usage")], "the client has not asked for the usage"
    eventually(tokens, before + USAGE["completion_tokens"])


def test_metrics_count_every_request(gateway: Gateway, eventually: Eventually) -> None:
    def requests() -> float:
        page = gateway.get("/metrics/").text
        return total(page, "litellm_proxy_total_requests_metric_total", requested_model="mixtral-8x7b", status_code="200")

    before = requests()
    for path, stream in itertools.product([CHAT, TEXT], [False, True]):
        assert gateway.post(path, request(path, model="mixtral-8x7b", stream=stream)).status == 200
    eventually(requests, before + 4)


def test_metrics_hold_nothing_that_a_client_can_fill(gateway: Gateway, eventually: Eventually) -> None:
    def refused() -> float:
        return total(gateway.get("/metrics/").text, "litellm_proxy_failed_requests_metric_total", route=CHAT)

    before = refused()
    filled = request(CHAT, user="marked-user", service_tier="marked-tier", metadata={"tags": ["marked-tag"]})
    gateway.request("POST", CHAT, filled, headers={"User-Agent": "marked-agent"})
    gateway.post(CHAT, filled | {"model": "marked-model"})
    gateway.request("POST", CHAT, filled, key="sk-marked-key")
    gateway.request("POST", CHAT, filled, key="marked-key")
    eventually(refused, before + 3)
    assert "marked" not in gateway.get("/metrics/").text


@pytest.mark.parametrize("key", [None, "", "sk-wrong", "wrong", MASTER_KEY[:-1], MASTER_KEY + "0"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("GET", "/model/info"), ("POST", CHAT), ("POST", TEXT)])
def test_nobody_comes_in_without_the_key(gateway: Gateway, backends: dict[str, Backend], method: str, path: str, key: str | None) -> None:
    began = time.monotonic()
    answer = gateway.request(method, path, request(path) if method == "POST" else None, key=key)
    assert answer.status == 401
    assert time.monotonic() - began >= 0.5, "or the edge has tried too often before a gateway with another key has stopped"
    assert answer.json()["error"]["type"] == "auth_error"
    assert asked(backends) == {}


def test_readiness_and_metrics_need_no_key(gateway: Gateway) -> None:
    assert gateway.request("GET", "/health/readiness", key=None).status == 200
    assert gateway.request("GET", "/metrics/", key=None).status == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/openapi.json"])
def test_serves_no_api_browser(gateway: Gateway, path: str) -> None:
    page = gateway.get(path).text.lower()
    assert not [word for word in ("swagger", "redoc", '"paths"') if word in page]


def test_logs_hold_neither_prompts_nor_keys(gateway: Gateway, backends: dict[str, Backend], eventually: Eventually) -> None:
    secret = "my-secret-prompt"
    marked = {"messages": [{"role": "user", "content": secret}], "prompt": secret}
    for path in (CHAT, TEXT):
        field = "messages" if path == CHAT else "prompt"
        for status, stream in itertools.product([None, 400, 500], [False, True]):
            for backend in backends.values():
                backend.refusal = None if status is None else (status, f"invalid value: {{'input': '{secret}\n{secret}'}}")
            gateway.post(path, {"model": "openchat-3.5", "stream": stream, field: marked[field]})
        gateway.post(path, {"model": "openchat-3.5", field: {"text": secret}})
        gateway.post(path, {"model": "unknown", field: marked[field]})
        gateway.post(path, f'{{"{field}": "{secret}'.encode())
        gateway.post(path, [secret])
    gateway.request("POST", CHAT, request(CHAT), key="sk-some-other-key")
    assert gateway.get("/v1/models?last=line").status == 200
    eventually(lambda: "/v1/models?last=line" in gateway.log(), True)
    journal = "\n".join(entry.text for entry in gateway.journal())
    assert "Exception occured" in gateway.log(), "the errors themselves are logged"
    assert "Exception occured" in journal
    for written in (gateway.output(), gateway.log(), journal):
        assert secret not in written
        assert MASTER_KEY not in written
        assert "sk-some-other-key" not in written


def test_a_refused_request_writes_a_line_and_no_traceback(gateway: Gateway, backends: dict[str, Backend], eventually: Eventually) -> None:
    backends["openchat-3.5"].refusal = (400, "no")
    before = len(gateway.log())
    assert gateway.post(CHAT, request(CHAT, model="openchat-3.5")).status == 400
    eventually(lambda: f'"POST {CHAT} HTTP/1.1" 400' in gateway.log()[before:], True)
    assert "Traceback" not in gateway.log()[before:]
    assert gateway.log()[before:].count("\n") == 2


def test_ordinary_requests_write_no_errors(gateway: Gateway, eventually: Eventually) -> None:
    before, entries_before = len(gateway.output()), len(gateway.journal())
    for path, stream in itertools.product([CHAT, TEXT], [False, True]):
        for _ in range(5):
            assert gateway.post(path, request(path, stream=stream)).status == 200
    gateway.get("/v1/models?ordinary")
    eventually(lambda: "/v1/models?ordinary" in gateway.log(), True)
    assert gateway.output()[before:] == ""
    assert gateway.journal()[entries_before:] == []


def test_the_journal_knows_how_bad_it_is(gateway: Gateway, eventually: Eventually) -> None:
    """`journalctl --priority=err` finds the errors, whole: the lines of a traceback belong to one entry."""
    assert {entry.identifier for entry in gateway.journal()} == {"citadel-llm@unified-api-gateway"}
    assert [entry.priority for entry in gateway.journal() if "Application startup complete" in entry.text] == [6]
    gateway.post("/v1/moderations", ["not an object"])
    eventually(lambda: any("Exception in ASGI application" in entry.text for entry in gateway.journal()), True)
    (entry,) = [entry for entry in gateway.journal() if "Exception in ASGI application" in entry.text][-1:]
    assert entry.priority == 3
    assert entry.text.startswith("ERROR uvicorn.error: Exception in ASGI application\nTraceback (most recent call last):\n")
    assert "\nAttributeError: " in entry.text
    assert "Traceback" not in gateway.output()


def test_the_log_file_may_be_rotated_away(gateway: Gateway, eventually: Eventually) -> None:
    gateway.log_file.rename(gateway.log_file.with_suffix(".log.1"))
    assert gateway.get("/v1/models?after=rotation").status == 200
    eventually(lambda: gateway.log_file.exists() and "/v1/models?after=rotation" in gateway.log(), True)


def test_probes_stay_out_of_the_log(gateway: Gateway, eventually: Eventually) -> None:
    gateway.get("/health/readiness?probe")
    gateway.get("/health/liveliness?probe")
    gateway.get("/metrics/?probe")
    gateway.get("/v1/models?afterwards")
    eventually(lambda: "/v1/models?afterwards" in gateway.log(), True)
    assert "?probe" not in gateway.log()
