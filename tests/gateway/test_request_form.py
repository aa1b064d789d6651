"""Which requests are refused before LiteLLM sees them, and that nothing is refused which a model reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from citadel_answers import Refusal
from citadel_request_form import CHAT_PARAMETERS, LEFT_OUT, TEXT_PARAMETERS, read
from gateway.test_request import in_vllm

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = "application/json"
HELLO = [{"role": "user", "content": "Hello"}]

_VLLM_PARAMETERS = """
    import json
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    print(json.dumps([sorted(request.model_fields) for request in (ChatCompletionRequest, CompletionRequest)]))
"""

# Left to the models' own ports: embeddings of a prompt are a tensor that vLLM unpickles, and LiteLLM has no way for the other.
_NOT_THROUGH_THE_GATEWAY = {"prompt_embeds", "response_format"}


def refused(path: str, body: object, content_type: str = JSON) -> tuple[int, str, str | None]:
    refusal = read(path, content_type, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(refusal, Refusal)
    assert refusal.kind == "invalid_request_error"
    assert len(refusal.message) > 20
    return refusal.status, refusal.code, refusal.param


def test_what_may_be_sent_is_what_vllm_and_openai_know() -> None:
    chat, text = map(set, in_vllm(_VLLM_PARAMETERS))
    assert chat - CHAT_PARAMETERS.keys() == set()
    assert text - TEXT_PARAMETERS.keys() == _NOT_THROUGH_THE_GATEWAY
    assert CHAT_PARAMETERS.keys() - chat == LEFT_OUT.keys()
    assert TEXT_PARAMETERS.keys() - text == {"best_of"}


@pytest.mark.parametrize("content_type", [JSON, "application/json; charset=utf-8", "Application/JSON"])
def test_a_good_request_goes_on_as_it_came(content_type: str) -> None:
    for path, content in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "Hello"})):
        payload = json.dumps(content | {"model": "hermes-2", "temperature": 1, "stop": ["x"], "n": 1.0}, indent=3).encode()
        assert read(path, content_type, payload) is payload


@pytest.mark.parametrize("model", [None, "", "auto"])
def test_a_choice_that_is_left_open_is_left_out(model: str | None) -> None:
    payload = json.dumps({"model": model, "messages": HELLO, "stream": True}).encode()
    assert json.loads(bytes(read(CHAT, JSON, payload))) == {"messages": HELLO, "stream": True}


CONTENTS: list[Any] = [
    [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}, {"role": "tool", "content": "x"}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "developer", "content": ""}],
]


@pytest.mark.parametrize("messages", CONTENTS)
def test_messages_of_every_kind_go_on(messages: list[Any]) -> None:
    assert isinstance(read(CHAT, JSON, json.dumps({"messages": messages}).encode()), bytes)


@pytest.mark.parametrize("prompt", ["", "x", ["x", "y"], [1, 2], [[1], [2, 3]]])
def test_prompts_of_every_kind_go_on(prompt: object) -> None:
    assert isinstance(read(TEXT, JSON, json.dumps({"prompt": prompt}).encode()), bytes)


def test_what_means_nothing_here_goes_no_further() -> None:
    sent = {"messages": HELLO, "metadata": {"tags": "x", "api_base": "x"}, "store": True, "service_tier": "flex", "temperature": 0.5}
    assert json.loads(bytes(read(CHAT, JSON, json.dumps(sent).encode()))) == {"messages": HELLO, "temperature": 0.5}


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"])
def test_another_type_is_refused(content_type: str) -> None:
    assert refused(CHAT, {"messages": HELLO}, content_type) == (415, "unsupported_content_type", None)


NO_JSON = {
    "nothing": b"",
    "half of it": b'{"messages": [',
    "two": b"{}{}",
    "not UTF-8": b'{"messages": "\xff"}',
    "UTF-16": json.dumps({"messages": HELLO}).encode("utf-16"),
    "with a byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "a number that no float holds": b'{"min_p": 1e999}',
    "half of a character": b'{"stop": ["\\ud83d"]}',
    "nested too deeply": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number too long to read": b'{"seed": ' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("payload", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_refused_and_not_quoted(payload: bytes) -> None:
    assert refused(CHAT, payload) == (400, "invalid_json", None)
    refusal = read(CHAT, JSON, b'{"my secret": prompt}')
    assert isinstance(refusal, Refusal)
    assert refusal.message == "The body is not JSON: Expecting value at character 14."


@pytest.mark.parametrize("body", [None, [], [{"messages": HELLO}], "x", 7, True])
def test_what_is_no_object_is_refused(body: object) -> None:
    assert refused(TEXT, body) == (400, "invalid_type", None)


@pytest.mark.parametrize("body", [{}, {"messages": None}, {"prompt": "x"}])
def test_a_request_says_something(body: dict[str, Any]) -> None:
    assert refused(CHAT, body) == (400, "missing_required_parameter", "messages")
    assert refused(TEXT, {"messages": HELLO}) == (400, "missing_required_parameter", "prompt")


# With each of these LiteLLM 1.106.2 does something that is none of a client's business, or falls over.
LITELLMS_OWN = [
    "allowed_openai_params", "api_base", "api_key", "base_url", "cache", "client", "context_window_fallbacks", "custom_llm_provider",
    "deployment_id", "drop_params", "extra_body", "extra_headers", "fallbacks", "guardrails", "headers", "input_cost_per_token",
    "litellm_metadata", "mock_response", "mock_timeout", "model_list", "num_retries", "proxy_server_request", "self", "ssl_verify", "tags",
    "timeout", "user_config", "vector_store_ids", "web_search_options",
]  # fmt: skip


@pytest.mark.parametrize("name", LITELLMS_OWN)
def test_no_client_reaches_a_switch_of_litellm(name: str) -> None:
    assert refused(CHAT, {"messages": HELLO, name: None}) == (400, "unknown_parameter", name)
    assert refused(TEXT, {"prompt": "x", name: 5}) == (400, "unknown_parameter", name)


def test_a_long_name_is_cut() -> None:
    assert refused(CHAT, {"messages": HELLO, "x" * 1000: 1}) == (400, "unknown_parameter", "x" * 64)


WRONG: dict[str, list[Any]] = {
    "messages": [
        [{"role": "wizard", "content": "x"}],
        "hi", {}, [], ["hi"], [None], [{}], [{"content": "x"}], [{"role": 5, "content": "x"}], [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"type": "text"}}], [{"role": "user", "content": ["x"]}], [{"role": "user", "content": [{}]}],
        [{"role": "user", "content": [{"type": "smell"}]}], [{"role": "user", "content": [{"type": ["text"]}]}],
        [{"role": "assistant", "tool_calls": "x"}], [{"role": "assistant", "tool_calls": ["x"]}],
    ],
    "model": [5, True, ["x"], {}],
    "max_tokens": ["4", 1.5, [4], True, 1e30, 0, -1],
    "max_completion_tokens": ["4"],
    "temperature": ["hot", [1], True, {}, 5, -0.1],
    "top_p": ["x", 2],
    "n": ["two", 1.5, 0],
    "seed": ["x", 2**63],
    "presence_penalty": [9],
    "top_logprobs": [-5],
    "structured_outputs": ["x"],
    "stop": [5, [5], {}],
    "stream": ["yes", 1],
    "stream_options": ["x", True, {"include_usage": "x"}],
    "logit_bias": ["x", [1], {"x": 1}, {"-1": 1}, {"5": "x"}, {"5": 1000}],
    "logprobs": ["yes", 5],
    "tools": [
        "x", {}, [1], [{}], [{"type": "function"}], [{"type": "function", "function": 5}],
        [{"type": "mcp", "function": {"name": "f"}}],
    ],
    "tool_choice": [5, ["auto"]],
    "response_format": ["json", 5, {}, {"type": 5}],
    "metadata": ["x", [1]],
    "user": [5, {}],
    "store": ["x"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_another_form_is_refused_by_its_name(name: str, value: object) -> None:
    assert refused(CHAT, {"messages": HELLO} | {name: value}) == (400, "invalid_type", name)


@pytest.mark.parametrize("prompt", [5, {}, [], [[]], ["x", 5], [[1], "x"], [["x"]], [True], [1.5], [2**63], [None]])
def test_a_prompt_of_another_form_is_refused(prompt: object) -> None:
    assert refused(TEXT, {"prompt": prompt}) == (400, "invalid_type", "prompt")
