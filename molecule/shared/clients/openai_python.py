"""OpenAI's own package for Python against the gateway. Arguments: its URL with /v1, the names of all models."""

from __future__ import annotations

import json

from checks import ANSWER_TOKENS, BASE_URL, FORMAT, HELLO, KEY, LIMITED_KEY, MODELS, SCHEMA, TOO_LONG, TOOL, WRONG_KEY, check, raised
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, RateLimitError
from pydantic import BaseModel, Field

client = OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


def lists_models() -> str:
    listed = client.models.list().data
    assert sorted(model.id for model in listed) == sorted(MODELS), listed
    return ", ".join(f"{model.id} {model.model_dump()['max_input_tokens']}" for model in listed)


def chats(model: str | None) -> str:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=4)
    assert answer.model in MODELS
    assert model not in MODELS or answer.model == model
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 4
    return answer.model


def streams_a_chat() -> str:
    pieces = list(client.chat.completions.create(
        model=MODELS[0], messages=HELLO, max_tokens=6, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    text = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    usages = [piece.usage for piece in pieces if piece.usage]
    assert text
    assert [usage.total_tokens - usage.prompt_tokens for usage in usages] == [6]
    assert [choice.finish_reason for piece in pieces for choice in piece.choices if choice.finish_reason] == ["length"]
    return f"{len(pieces)} pieces, usage {usages[-1].completion_tokens}, choices with it {len(pieces[-1].choices)}"


def streams_a_chat_without_usage() -> str:
    pieces = list(client.chat.completions.create(model="auto", messages=HELLO, max_tokens=6, stream=True))
    assert all(piece.usage is None for piece in pieces)
    return f"{len(pieces)} pieces"


class Place(BaseModel):
    """A city and whether it is warm."""

    city: str = Field(max_length=8)
    warm: bool


def streams_with_the_helper() -> str:
    options = {"model": MODELS[0], "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(messages=HELLO, response_format=Place, **options) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Place)
    assert answer.usage is not None
    return f"{answer.choices[0].message.parsed}, usage {answer.usage.completion_tokens}"


def completes(model: str) -> str:
    answer = client.completions.create(model=model, prompt="once upon a time", max_tokens=4)
    assert answer.choices[0].text
    return answer.model


def streams_a_completion() -> str:
    pieces = list(client.completions.create(
        model=MODELS[0], prompt="once", max_tokens=6, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    usages = [piece.usage for piece in pieces if piece.usage]
    assert "".join(choice.text for piece in pieces for choice in piece.choices)
    assert [usage.completion_tokens for usage in usages] == [6]
    return f"{len(pieces)} pieces"


def matches(document: object) -> bool:
    return isinstance(document, dict) and document.keys() == SCHEMA["properties"].keys() and isinstance(document["warm"], bool)


def structures() -> str:
    answer = client.chat.completions.create(
        model=MODELS[0], messages=HELLO, max_tokens=ANSWER_TOKENS, response_format=FORMAT, temperature=0
    )
    text = answer.choices[0].message.content or ""
    assert matches(json.loads(text)), text
    return text


def says_that_it_knows_no_tools() -> str:
    error = raised(BadRequestError, lambda: client.chat.completions.create(model=MODELS[0], messages=HELLO, tools=[TOOL]))
    assert "tool" in error.message
    return str(error.message)


def says_what_it_does_not_know() -> str:
    error = raised(NotFoundError, lambda: client.chat.completions.create(model="gpt-4o", messages=HELLO))
    assert (error.code, error.param) == ("model_not_found", "model"), error.body
    return str(error.message)


def says_that_a_key_is_wrong() -> str:
    other = client.with_options(api_key=WRONG_KEY)
    error = raised(AuthenticationError, lambda: other.chat.completions.create(model="auto", messages=HELLO))
    assert error.code == "invalid_api_key", error.body
    return str(error.message)


def says_what_is_wrong() -> str:
    error = raised(BadRequestError, lambda: client.chat.completions.create(model="auto", messages=HELLO, temperature=5))
    assert error.param == "temperature", error.body
    return str(error.message)


def says_what_is_too_long() -> str:
    error = raised(
        BadRequestError, lambda: client.chat.completions.create(model=MODELS[-1], messages=[{"role": "user", "content": TOO_LONG}])
    )
    assert error.code == "context_length_exceeded", error.body
    return str(error.message)


def says_that_nobody_embeds() -> str:
    error = raised(NotFoundError, lambda: client.embeddings.create(model="text-embedding-3-small", input="Hello"))
    assert "embeddings" in error.message
    return str(error.message)


def says_that_it_is_too_much() -> str:
    limited = client.with_options(api_key=LIMITED_KEY)
    limited.chat.completions.create(model="auto", messages=HELLO, max_tokens=1)
    error = raised(RateLimitError, lambda: limited.chat.completions.create(model="auto", messages=HELLO, max_tokens=1))
    assert int(error.response.headers["retry-after"]) > 0
    assert error.code == "rate_limit_exceeded", error.body
    return f"{error.message} Retry-After: {error.response.headers['retry-after']}"


check("models", lists_models)
check("chat", lambda: chats(MODELS[0]))
check("chat, auto", lambda: chats("auto"))
check("chat, no model", lambda: chats(None))
check("stream", streams_a_chat)
check("stream without usage", streams_a_chat_without_usage)
check("stream with the helper", streams_with_the_helper)
check("completion", lambda: completes(MODELS[0]))
check("completion, auto", lambda: completes("auto"))
check("completion, stream", streams_a_completion)
check("structured output", structures)
check("tools", says_that_it_knows_no_tools)
check("404", says_what_it_does_not_know)
check("401", says_that_a_key_is_wrong)
check("400", says_what_is_wrong)
check("too long", says_what_is_too_long)
check("embeddings", says_that_nobody_embeds)
if LIMITED_KEY:
    check("429", says_that_it_is_too_much)
