"""LangChain's class for OpenAI's interface against the gateway. Arguments: its URL with /v1, the names of all models."""

from __future__ import annotations

import json
from typing import Any

import openai
from checks import ANSWER_TOKENS, BASE_URL, HELLO, KEY, LIMITED_KEY, MODELS, SCHEMA, TOO_LONG, WRONG_KEY, check, raised
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

PLACE = {"title": "place", "description": "A city and whether it is warm", **SCHEMA}


def chat(**options: Any) -> ChatOpenAI:  # what ChatOpenAI takes
    return ChatOpenAI(**{"base_url": BASE_URL, "api_key": KEY, "max_retries": 0, "model": MODELS[0], "max_tokens": 6} | options)


def chats(model: str) -> str:
    answer = chat(model=model).invoke(HELLO)
    assert answer.content
    assert answer.usage_metadata is not None
    assert 0 < answer.usage_metadata["output_tokens"] <= 6
    assert model == "auto" or answer.response_metadata["model_name"] == model
    return str(answer.response_metadata["model_name"])


def streams() -> str:
    pieces = list(chat(stream_usage=True).stream(HELLO))
    usages = [piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata]
    assert "".join(str(piece.content) for piece in pieces)
    assert usages == [6], usages
    return f"{len(pieces)} pieces"


def completes() -> str:
    text = OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, model=MODELS[0], max_tokens=4).invoke("once upon a time")
    assert text
    return text


def structures() -> str:
    answer = chat(max_tokens=ANSWER_TOKENS, temperature=0).with_structured_output(PLACE, method="json_schema").invoke(HELLO)
    assert isinstance(answer, dict)
    assert answer.keys() == SCHEMA["properties"].keys()
    return json.dumps(answer)


def says_that_it_knows_no_tools() -> str:
    error = raised(openai.BadRequestError, lambda: chat().bind_tools([PLACE]).invoke(HELLO))
    assert "tool" in error.message
    return str(error.message)


def says_what_it_does_not_know() -> str:
    error = raised(openai.NotFoundError, lambda: chat(model="gpt-4o").invoke(HELLO))
    return str(error.message)


def says_that_a_key_is_wrong() -> str:
    return str(raised(openai.AuthenticationError, lambda: chat(api_key=WRONG_KEY).invoke(HELLO)).message)


def says_what_is_wrong() -> str:
    return str(raised(openai.BadRequestError, lambda: chat(temperature=5).invoke(HELLO)).message)


def says_what_is_too_long() -> str:
    error = raised(openai.BadRequestError, lambda: chat(model=MODELS[-1]).invoke(TOO_LONG))
    assert error.code == "context_length_exceeded", error.body
    return str(error.message)


def says_that_nobody_embeds() -> str:
    embeddings = OpenAIEmbeddings(base_url=BASE_URL, api_key=KEY, max_retries=0, check_embedding_ctx_length=False)
    return str(raised(openai.NotFoundError, lambda: embeddings.embed_query("Hello")).message)


def says_that_it_is_too_much() -> str:
    limited = chat(api_key=LIMITED_KEY)
    limited.invoke(HELLO)
    error = raised(openai.RateLimitError, lambda: limited.invoke(HELLO))
    return f"{error.message} Retry-After: {error.response.headers['retry-after']}"


check("chat", lambda: chats(MODELS[0]))
check("chat, auto", lambda: chats("auto"))
check("stream", streams)
check("completion", completes)
check("structured output", structures)
check("tools", says_that_it_knows_no_tools)
check("404", says_what_it_does_not_know)
check("401", says_that_a_key_is_wrong)
check("400", says_what_is_wrong)
check("too long", says_what_is_too_long)
check("embeddings", says_that_nobody_embeds)
if LIMITED_KEY:
    check("429", says_that_it_is_too_much)
