"""Which requests vLLM is kept from, and that all others reach it as they came."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from citadel_refused_requests import PromptLogprobsRefused, UnreadableRefused, asks_for_prompt_logprobs, fault_of

TEXT: dict[str, Any] = {"model": "hermes-2", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "hermes-2", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    "body",
    [
        TEXT | {"prompt_logprobs": 1},
        TEXT | {"prompt_logprobs": 0},
        TEXT | {"prompt_logprobs": "1"},
        TEXT | {"prompt_logprob_token_ids": [[1]]},
        TEXT | {"echo": True, "logprobs": 1},
        TEXT | {"echo": True, "logprobs": 0},
        TEXT | {"echo": "true", "logprobs": 1},
        TEXT | {"echo": 1, "logprobs": 1},
        CHAT | {"prompt_logprobs": 5},
        CHAT | {"echo": True},
        {"token_ids": [1], "sampling_params": {"prompt_logprobs": 1}},
    ],
    ids=json.dumps,
)
def test_it_asks_for_them(body: dict[str, Any]) -> None:
    assert asks_for_prompt_logprobs(json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        TEXT,
        CHAT,
        TEXT | {"logprobs": 5},
        TEXT | {"echo": True},
        TEXT | {"echo": False, "logprobs": 5},
        TEXT | {"prompt_logprobs": None},
        CHAT | {"logprobs": True, "top_logprobs": 5},
        CHAT | {"echo": False},
        {"token_ids": [1], "sampling_params": {"logprobs": 1}},
        {"sampling_params": "prompt_logprobs"},
        [TEXT],
        "prompt_logprobs",
    ],
    ids=json.dumps,
)
def test_it_does_not(body: object) -> None:
    assert not asks_for_prompt_logprobs(json.dumps(body).encode())


def test_what_is_no_json_is_the_applications() -> None:
    assert not asks_for_prompt_logprobs(b'{"prompt_logprobs": 1')
    assert not asks_for_prompt_logprobs(b"")


FAULTS = {
    "not UTF-8": (b'{"prompt": "\xff"}', None),
    "UTF-16": (json.dumps(TEXT).encode("utf-16"), None),
    "nested too deeply": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "half of a character": (b'{"prompt": "x", "stop": ["\\ud83d"]}', None),
    "structured outputs that are no object": (json.dumps(TEXT | {"structured_outputs": "x"}).encode(), "structured_outputs"),
}


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"prompt": ["x"] * 9}, "prompt"),
        ({"prompt": ["x"] * 3, "n": 3}, "prompt"),
        ({"prompt": [[1, 2]] * 9}, "prompt"),
        ({"n": 9}, "n"),
        ({"n": 9, "use_beam_search": True}, "n"),
    ],
    ids=str,
)
def test_more_answers_at_once_than_there_are_places_are_refused(fields: dict[str, Any], parameter: str) -> None:
    message, named = fault_of(json.dumps(TEXT | fields).encode(), places=8) or ("", None)
    assert "9 answers are asked for at once, but this model works on 8 at a time" in message
    assert named == parameter


@pytest.mark.parametrize(
    "fields",
    [{"prompt": ["x"] * 8}, {"prompt": ["x"] * 4, "n": 2}, {"prompt": list(range(100))}, {"prompt": []}, {"n": "9"}, {"n": None}],
    ids=str,
)
def test_as_many_answers_as_there_are_places_are_not(fields: dict[str, Any]) -> None:
    assert fault_of(json.dumps(TEXT | fields).encode(), places=8) is None


def test_how_deeply_it_is_nested_is_nobodys_fault_at_any_depth() -> None:
    """Reading and writing JSON may have different limits; between them nothing is raised."""
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit() + 50):
        fault_of(b'{"prompt": "\\u00e9", "x": ' + b"[" * depth + b"]" * depth + b"}", places=8)


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("middleware", [UnreadableRefused, PromptLogprobsRefused])
def test_what_vllm_cannot_read_is_refused(middleware: type[UnreadableRefused], case: str) -> None:
    body, parameter = FAULTS[case]
    read, sent = served("POST", [body], middleware)
    error = json.loads(sent[1]["body"])["error"]
    assert (read, sent[0]["status"], error["param"]) == ([], 400, parameter)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"prompt": "\\ud83d\\ude00"}', b"[]", b'{"structured_outputs": null}', b'{"structured_outputs": {"regex": "("}}']
)
def test_what_vllm_has_an_answer_for_is_its_own(body: bytes) -> None:
    assert fault_of(body) is None


def served(
    method: str, chunks: list[bytes], middleware: type[UnreadableRefused] = PromptLogprobsRefused
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the application behind the middleware read, and what the client was sent."""
    last = {"type": "http.disconnect"}
    arriving = [{"type": "http.request", "body": chunk, "more_body": number < len(chunks)} for number, chunk in enumerate(chunks, 1)]
    read: list[dict[str, Any]] = []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return arriving.pop(0) if arriving else last

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def application(_scope: dict[str, Any], receive: Any, _send: object) -> None:  # noqa: ANN401 - as ASGI has it
        while not read or read[-1] is not last:
            read.append(await receive())

    asyncio.run(middleware(application)({"type": "http", "method": method}, receive, send))
    return read, sent


def test_log_probabilities_of_prompts_can_be_had_where_the_plan_says_so() -> None:
    read, sent = served("POST", [b'{"prompt": "x", "prompt_logprobs": 1}'], UnreadableRefused)
    assert (len(read), sent) == (2, [])


def test_a_refusal_has_the_shape_of_an_error_and_the_application_sees_nothing() -> None:
    read, sent = served("POST", [b'{"prompt": "x", "prompt', b'_logprobs": 1}'])
    assert read == []
    assert sent[0]["status"] == 400
    assert json.loads(sent[1]["body"])["error"]["param"] == "prompt_logprobs"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_all_others_arrive_as_they_came_and_a_disconnect_does_too(method: str) -> None:
    read, sent = served(method, [b'{"prompt":', b' "x"}'])
    assert [message.get("body") for message in read] == [b'{"prompt":', b' "x"}', None]
    assert sent == []
