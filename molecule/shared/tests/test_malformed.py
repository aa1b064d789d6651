"""Malformed requests, through the gateway and on a model's own port: a 4xx in OpenAI's shape with a useful message, at once.

The table of what was answered is shown with `pytest -s`.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from lab_host import ADDRESS

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
WITHIN_SECONDS = 0.1
ATTEMPTS = 3
"""A moment in which the host has other work may pass over one; what is slow is slow three times."""
INSIDE = re.compile(r"Traceback|File \"|/opt/|/usr/|site-packages|127\.0\.0\.1")


@dataclass(frozen=True)
class Case:
    """A request: fields over a good chat or completion, or a body as it is. `gateway_only`: vLLM takes it, and no harm in that."""

    fields: dict[str, Any] = field(default_factory=dict)
    path: str = CHAT
    body: bytes | None = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)
    gateway_only: bool = False

    def payload(self, model: str) -> bytes:
        if self.body is not None:
            return self.body.replace(b"MODEL", model.encode())
        good: dict[str, Any] = {"messages": HELLO} if self.path == CHAT else {"prompt": "Hello"}
        sent = {"model": model, "max_tokens": 4} | good | self.fields
        return json.dumps({name: value for name, value in sent.items() if value is not ...}).encode()


def text(**fields: Any) -> Case:  # what clients send is of any type
    return Case(fields, path=TEXT)


def message(content: Any, role: str = "user") -> Case:
    return Case({"messages": [{"role": role, "content": content}]})


def tool(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]


def schema(content: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": content}}}


CASES = {
    "half of a body": Case(body=b'{"messages": ['),
    "no body": Case(body=b""),
    "null": Case(body=b"null"),
    "a list": Case(body=b'[{"model": "MODEL"}]'),
    "a text": Case(body=b'"hello"'),
    "not UTF-8": Case(body=b'{"model": "MODEL", "messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    "NaN": Case(body=b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}'),
    "more than a number": Case(body=b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}'),
    "more than a number that only a model knows": Case(
        body=b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "min_p": 1e999}'
    ),
    "half of a character": Case(body=b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "stop": ["\\ud83d"]}'),
    "a key twice": Case(body=b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "messages": "x"}'),
    "nested deeply": Case(body=b'{"model": "MODEL", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "plain text": Case(headers={"Content-Type": "text/plain"}),
    "a form": Case(body=b"model=MODEL&prompt=x", path=TEXT, headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "files": Case(body=b"--x--\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"}),
    "GET": Case(body=b"", method="GET"),
    "PUT": Case(method="PUT"),
    "DELETE": Case(body=b"", method="DELETE"),
    "in pieces": Case(body=b"2\r\n{}\r\n0\r\n\r\n", headers={"Transfer-Encoding": "chunked"}),
    "expected and broken": Case(body=b"{", headers={"Expect": "100-continue"}),
    "an unknown model": Case({"model": "gpt-4o"}),
    "a model that is a number": Case({"model": 5}),
    "no messages": Case({"messages": ...}),
    "messages: null": Case({"messages": None}),
    "messages: none": Case({"messages": []}),
    "messages: a text": Case({"messages": "hello"}),
    "messages: texts": Case({"messages": ["hello"]}),
    "a message without a role": Case({"messages": [{"content": "x"}]}),
    "an unknown role": Case({"messages": [{"role": "wizard", "content": "x"}]}, gateway_only=True),
    "content: a number": message(5),
    "content: an unknown part": message([{"type": "smell", "smell": "x"}]),
    "an image to a model of texts": message([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]),
    "max_tokens: -1": Case({"max_tokens": -1}),
    "max_tokens: a text": Case({"max_tokens": "four"}),
    "max_tokens: beyond the context": Case({"max_tokens": 10_000_000}),
    "temperature: 5": Case({"temperature": 5}),
    "temperature: a text": Case({"temperature": "hot"}),
    "top_p: 2": Case({"top_p": 2}),
    "n: 0": Case({"n": 0}),
    "n: 1000": Case({"n": 1000}),
    "stop: a number": Case({"stop": 5}),
    "stop: 5000": Case({"stop": [*(f"x{number}" for number in range(5000)), 5]}),
    "stop: empty": Case({"stop": [""]}),
    "stream: a text": Case({"stream": "perhaps"}),
    "logit_bias: a text": Case({"logit_bias": "x"}),
    "logit_bias: no tokens": Case({"logit_bias": {"x": 1}}),
    "top_logprobs: 100": Case({"logprobs": True, "top_logprobs": 100}),
    "tools: a text": Case({"tools": "x"}),
    "tools: no function": Case({"tools": [{"type": "function"}]}),
    "tool_choice: unknown": Case({"tools": tool({"type": "object"}), "tool_choice": {"type": "function", "function": {"name": "g"}}}),
    "a tool of no schema": Case({"tools": tool({"type": "nonsense"}), "tool_choice": "required"}),
    "response_format: a text": Case({"response_format": "json"}),
    "response_format: unknown": Case({"response_format": {"type": "xml"}}),
    "a schema of nonsense": Case(schema({"type": "nonsense"})),
    "a schema that points nowhere": Case(schema({"$ref": "#/nowhere"})),
    "structured_outputs: a text": Case({"structured_outputs": "x"}),
    "no regular expression": Case({"structured_outputs": {"regex": "("}}),
    "presence_penalty: 9": Case({"presence_penalty": 9}),
    "seed: a text": Case({"seed": "x"}),
    "an unknown parameter": Case({"wizardry": 1}, gateway_only=True),
    "a switch of LiteLLM's": Case({"api_base": "http://127.0.0.1:9"}, gateway_only=True),
    "a stream with a fault": Case({"stream": True, "temperature": 5}),
    "too long": message("x y " * 60_000),
    "no prompt": text(prompt=...),
    "prompts: 1000": text(prompt=["x"] * 1000),
    "prompt: an object": text(prompt={"text": "x"}),
    "prompt: mixed": text(prompt=["x", 5]),
    "prompt: no tokens of this model": text(prompt=[99_999_999]),
    "a prompt too long": text(prompt="x y " * 60_000),
    "a completion with a fault": text(temperature=5),
    "a stream of a completion with a fault": text(stream=True, frequency_penalty=9),
}


@dataclass(frozen=True)
class Seen:
    status: int
    text: str
    seconds: float


def ask(port: int, case: Case, model: str) -> Seen:
    """Send a request as it is; the connection is there already, as a client keeps it."""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=30)
    connection.connect()
    try:
        payload = case.payload(model)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(payload))} | case.headers
        if "Transfer-Encoding" in headers:
            del headers["Content-Length"]
        began = time.monotonic()
        connection.putrequest(case.method, case.path)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(payload)
        answer = connection.getresponse()
        body = answer.read().decode()
        return Seen(answer.status, body, time.monotonic() - began)
    finally:
        connection.close()


WAYS = ("gateway", "model")
REQUESTS = [(way, name) for way in WAYS for name, case in CASES.items() if way == "gateway" or not case.gateway_only]


@pytest.fixture(scope="module")
def ports(plan: dict[str, Any]) -> dict[str, int]:
    """The port of each way, warm, as a server is that has answered before."""
    service = plan["services"][1]
    ports = {"gateway": plan["gateway"]["port"], "model": service["api_port"]}
    for number in ports.values():
        for case in (Case(), text(), Case({"response_format": {"type": "json_object"}})):
            assert ask(number, case, service["name"]).status == 200
    return ports


@pytest.mark.parametrize(("way", "name"), REQUESTS)
def test_it_is_refused_at_once_and_in_words(ports: dict[str, int], plan: dict[str, Any], way: str, name: str) -> None:
    for _ in range(ATTEMPTS):
        seen = ask(ports[way], CASES[name], plan["services"][1]["name"])
        print(f"| {way} | {name} | {seen.status} | {seen.seconds * 1000:.0f} ms | {seen.text[:160]!r} |")
        if seen.seconds < WITHIN_SECONDS:
            break
    assert 400 <= seen.status < 500, seen.text
    error = json.loads(seen.text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 15
    assert INSIDE.search(seen.text) is None
    assert seen.seconds < WITHIN_SECONDS
