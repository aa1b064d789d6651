"""LlamaIndex's classes for OpenAI's interface against the gateway. Arguments: its URL with /v1, the names of all models."""

from __future__ import annotations

from typing import Any

import openai
from checks import ANSWER_TOKENS, BASE_URL, HELLO, KEY, LIMITED_KEY, MODELS, TOO_LONG, WRONG_KEY, check, raised
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

MESSAGES = [ChatMessage(role=HELLO[0]["role"], content=HELLO[0]["content"])]


class Place(BaseModel):
    """A city and whether it is warm."""

    city: str = Field(max_length=8)
    warm: bool


def like(**options: Any) -> OpenAILike:  # what OpenAILike takes
    """Give the class that is made for other servers than OpenAI's."""
    known = {"api_base": BASE_URL, "api_key": KEY, "max_retries": 0, "model": MODELS[0], "max_tokens": 6, "is_chat_model": True}
    return OpenAILike(**known | {"context_window": 2048} | options)


def chats(model: str) -> str:
    answer = like(model=model).chat(MESSAGES)
    assert answer.message.content
    assert answer.raw.usage.completion_tokens <= 6
    return str(answer.raw.model)


def streams() -> str:
    pieces = list(like(additional_kwargs={"stream_options": {"include_usage": True}}).stream_chat(MESSAGES))
    assert pieces[-1].message.content
    usages = [piece.raw.usage.completion_tokens for piece in pieces if piece.raw is not None and piece.raw.usage]
    assert usages == [6], usages
    return f"{len(pieces)} pieces"


def completes() -> str:
    answer = like(is_chat_model=False).complete("once upon a time")
    assert answer.text
    return str(answer.text)


def streams_a_completion() -> str:
    pieces = list(like(is_chat_model=False).stream_complete("once upon a time"))
    assert pieces[-1].text
    return f"{len(pieces)} pieces"


def structures() -> str:
    structured = like(max_tokens=ANSWER_TOKENS, temperature=0, should_use_structured_outputs=True).as_structured_llm(Place)
    return str(structured.chat(MESSAGES).raw)


def says_that_it_knows_no_tools() -> str:
    llm = like(max_tokens=ANSWER_TOKENS, is_function_calling_model=True)
    error = raised(openai.BadRequestError, lambda: llm.as_structured_llm(Place).chat(MESSAGES))
    assert "tool" in error.message
    return str(error.message)


def says_what_it_does_not_know() -> str:
    return str(raised(openai.NotFoundError, lambda: like(model="gpt-4o").chat(MESSAGES)).message)


def says_that_a_key_is_wrong() -> str:
    return str(raised(openai.AuthenticationError, lambda: like(api_key=WRONG_KEY).chat(MESSAGES)).message)


def says_what_is_wrong() -> str:
    return str(raised(openai.BadRequestError, lambda: like(additional_kwargs={"top_p": 5}).chat(MESSAGES)).message)


def says_what_is_too_long() -> str:
    error = raised(openai.BadRequestError, lambda: like(model=MODELS[-1]).chat([ChatMessage(role="user", content=TOO_LONG)]))
    assert error.code == "context_length_exceeded"
    return str(error.message)


def says_that_it_is_too_much() -> str:
    limited = like(api_key=LIMITED_KEY)
    limited.chat(MESSAGES)
    error = raised(openai.RateLimitError, lambda: limited.chat(MESSAGES))
    return f"{error.message} Retry-After: {error.response.headers['retry-after']}"


check("chat", lambda: chats(MODELS[0]))
check("chat, auto", lambda: chats("auto"))
check("stream", streams)
check("completion", completes)
check("completion, stream", streams_a_completion)
check("structured output", structures)
check("tools", says_that_it_knows_no_tools)
check("404", says_what_it_does_not_know)
check("401", says_that_a_key_is_wrong)
check("400", says_what_is_wrong)
check("too long", says_what_is_too_long)
if LIMITED_KEY:
    check("429", says_that_it_is_too_much)
