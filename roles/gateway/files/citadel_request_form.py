"""Which requests have a form that a model reads, and the ASGI middleware that refuses all others before LiteLLM sees them.

LiteLLM takes the parameters of a request for its own: what has another type than it expects is a 500, or a 503 after every model has been
tried, and some two hundred names (`api_base`, `extra_headers`, `mock_response`, `fallbacks`, `self`, …) change what it does. So what may
be named is listed here, OpenAI's interface and what vLLM has beyond it, and OpenAI's have their form. Whether the rest makes sense (a
schema, a prompt's length) only the model knows; it says so in its own words.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard

from citadel_answers import Refusal
from citadel_routing import leaves_choice_open

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

_JSON: Final = "application/json"
_UNSUPPORTED_MEDIA_TYPE: Final = 415

# A name is a client's text and may be of any length.
_LONGEST_NAME: Final = 64

_BEYOND_64_BITS: Final = 2**63
_ROLES: Final = ("developer", "system", "user", "assistant", "tool", "function")
_PARTS: Final = ("text", "image_url", "input_audio", "audio_url", "video_url", "file")


@dataclass(frozen=True, slots=True)
class Form:
    """What a value must be, in words and as a check. null is everywhere as good as nothing."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> TypeGuard[float]:
    # A bool is an int to Python alone. What no 64 bits hold, infinity included, no model reads.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _BEYOND_64_BITS


def _is_whole(value: object) -> TypeGuard[float]:
    return _is_number(value) and value == int(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: object, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(holds, value))


def _is_message(message: object) -> bool:
    if not (_is_object(message) and message.get("role") in _ROLES):
        return False
    content, calls = message.get("content"), message.get("tool_calls")
    return (content is None or _is_text(content) or _is_list(content, _is_part)) and (calls is None or _is_list(calls, _is_object))


def _is_part(part: object) -> bool:
    return _is_object(part) and part.get("type") in _PARTS


def _is_prompt(value: object) -> bool:
    """Whether all of it is of one kind: a text, texts, tokens, or lists of tokens."""
    return _is_text(value) or (value != [] and (_is_list(value, _is_text) or _is_list(value, _is_token) or _is_list(value, _is_tokens)))


def _is_tokens(value: object) -> bool:
    return value != [] and _is_list(value, _is_token)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and _is_number(value)


def _is_tool(tool: object) -> bool:
    function: Any = tool.get("function") if _is_object(tool) and tool.get("type") == "function" else None
    return _is_object(function) and _is_text(function.get("name"))


def _number(least: float, most: float) -> Form:
    return Form(f"a number from {least} to {most}", lambda value: _is_number(value) and least <= value <= most)


def _whole(least: int) -> Form:
    return Form(f"a whole number of at least {least}", lambda value: _is_whole(value) and value >= least)


def _is_bias(value: object) -> bool:
    return _is_object(value) and all(key.isdecimal() for key in value) and all(map(_number(-100, 100).holds, value.values()))


_WHOLE: Final = Form("a whole number", _is_whole)
_BOOLEAN: Final = Form("true or false", lambda value: isinstance(value, bool))
_TEXT: Final = Form("a text", _is_text)
_OBJECT: Final = Form("an object", _is_object)
_TEXTS: Final = Form("a list of texts", lambda value: _is_list(value, _is_text))
_SWITCHES: Final = Form(
    "an object of switches that are true or false",
    lambda value: _is_object(value) and all(isinstance(switch, bool) for switch in value.values()),
)
_BIAS: Final = Form("an object of tokens, each a number, with a number from -100 to 100 for each", _is_bias)
_STOP: Final = Form("a text or a list of texts", lambda value: _is_text(value) or _is_list(value, _is_text))
_FORMAT: Final = Form("an object with a type", lambda value: _is_object(value) and _is_text(value.get("type")))
_MESSAGES: Final = Form(
    f"a list of at least one object, each with a role ({', '.join(_ROLES)}) and a content, which is a text or a list of parts"
    f" ({', '.join(_PARTS)})",
    lambda value: value != [] and _is_list(value, _is_message),
)
_PROMPT: Final = Form("a text, a list of texts, a list of tokens or a list of those", _is_prompt)
_TOOLS: Final = Form(
    'a list of objects, each with the type "function" and a function that has a name',
    lambda value: _is_list(value, _is_tool),
)
_TOOL_CHOICE: Final = Form("a text or an object", lambda value: _is_text(value) or _is_object(value))
_JUDGED_BY_THE_MODEL: Final = Form("", lambda _: True)

_BOTH: Final[dict[str, Form]] = {
    "model": _TEXT,
    "stream": _BOOLEAN,
    "stream_options": _SWITCHES,
    "max_tokens": _whole(1),
    "n": _whole(1),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "logit_bias": _BIAS,
    "seed": _WHOLE,
    "stop": _STOP,
    "structured_outputs": _OBJECT,
    "user": _TEXT,
    "truncate_prompt_tokens": _whole(-1),
} | dict.fromkeys(
    (
        "add_special_tokens", "allowed_token_ids", "bad_words", "cache_salt", "ec_transfer_params", "echo", "ignore_eos",
        "include_stop_str_in_output", "kv_transfer_params", "length_penalty", "logprob_token_ids", "min_p", "min_tokens", "mm_payload",
        "priority", "prompt_logprobs", "repetition_detection", "repetition_penalty", "request_id", "return_mm_kwargs",
        "return_token_ids", "return_token_offsets", "return_tokens_as_token_ids", "routed_experts_prompt_start", "session_id",
        "skip_special_tokens", "spaces_between_special_tokens", "stop_token_ids", "stream_interval",
        "thinking_token_budget", "top_k", "truncation_side", "use_beam_search", "vllm_xargs", "watermarking",
    ),
    _JUDGED_BY_THE_MODEL,
)  # fmt: skip

# What OpenAI's own service does with these no model here does. They are taken, as vLLM takes them, and go no further: to LiteLLM `metadata`
# is where its own switches are.
LEFT_OUT: Final[dict[str, Form]] = {
    "metadata": _OBJECT,
    "modalities": _TEXTS,
    "prediction": _OBJECT,
    "prompt_cache_key": _TEXT,
    "safety_identifier": _TEXT,
    "service_tier": _TEXT,
    "store": _BOOLEAN,
    "verbosity": _TEXT,
}

CHAT_PARAMETERS: Final[dict[str, Form]] = (
    {"messages": _MESSAGES}
    | _BOTH
    | {
        "max_completion_tokens": _whole(1),
        "logprobs": _BOOLEAN,
        "top_logprobs": _whole(-1),
        "response_format": _FORMAT,
        "tools": _TOOLS,
        "tool_choice": _TOOL_CHOICE,
        "parallel_tool_calls": _BOOLEAN,
        "reasoning_effort": _TEXT,
    }
    | LEFT_OUT
    | dict.fromkeys(
        (
            "add_generation_prompt", "chat_template", "chat_template_kwargs", "continue_final_message", "documents", "include_reasoning",
            "media_io_kwargs", "mm_processor_kwargs", "return_prompt_text",
        ),
        _JUDGED_BY_THE_MODEL,
    )
)  # fmt: skip

TEXT_PARAMETERS: Final[dict[str, Form]] = (
    {"prompt": _PROMPT} | _BOTH | {"best_of": _whole(1), "echo": _BOOLEAN, "logprobs": _whole(-1), "suffix": _TEXT}
)

_PARAMETERS: Final[dict[str, dict[str, Form]]] = {"/v1/chat/completions": CHAT_PARAMETERS, "/v1/completions": TEXT_PARAMETERS}


def read(path: str, content_type: str, payload: bytes) -> bytes | Refusal:
    """Give the body of a POST to `path` as LiteLLM is to have it, or say why no model could read it."""
    body = _parse(content_type, payload)
    if isinstance(body, Refusal):
        return body
    if refusal := _refusal_of_parameters(body, _PARAMETERS[path]):
        return refusal
    left_out = LEFT_OUT.keys() & body.keys()
    if "model" in body and leaves_choice_open(body["model"]):
        # LiteLLM would call the model that answers by what the client has called it.
        left_out.add("model")
    if not left_out:
        return payload
    return json.dumps({name: value for name, value in body.items() if name not in left_out}).encode()


def _parse(content_type: str, payload: bytes) -> dict[str, Any] | Refusal:
    if content_type.partition(";")[0].strip().lower() != _JSON:
        # A page in a browser can send any other type to this address without asking first.
        message = f"The body must be JSON, announced by the header Content-Type: {_JSON}."
        return _refusal("unsupported_content_type", message, status=_UNSUPPORTED_MEDIA_TYPE)
    try:
        body = json.loads(payload.decode(), parse_constant=_no_number, parse_float=_finite)
        if b"\\u" in payload:
            # JSON can name half of a pair, as programs write it that cut a text within an emoji.
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        return _refusal("invalid_json", f"The body is not JSON: {_fault(error)}.")
    return body if isinstance(body, dict) else _refusal("invalid_type", "The body must be a JSON object.")


def _refusal_of_parameters(body: Mapping[str, Any], parameters: Mapping[str, Form]) -> Refusal | None:
    required = next(iter(parameters))
    if body.get(required) is None:
        return _refusal("missing_required_parameter", f"Missing required parameter: '{required}'.", param=required)
    for name, value in body.items():
        form = parameters.get(name)
        if form is None:
            shown = name[:_LONGEST_NAME]
            return _refusal("unknown_parameter", f"Unknown parameter: '{shown}'.", param=shown)
        if value is not None and not form.holds(value):
            return _refusal("invalid_type", f"'{name}' must be {form.words}.", param=name)
    return None


def _refusal(code: str, message: str, *, param: str | None = None, status: int = 400) -> Refusal:
    return Refusal(status=status, kind="invalid_request_error", code=code, message=message, param=param)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number("a number that 64 bits cannot hold")


def _fault(error: ValueError | RecursionError) -> str:
    """Say what is wrong without quoting the body."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "a text has half of a character, a surrogate (\\ud800 to \\udfff) without its other one"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return str(error)


class FormCheck:
    """ASGI middleware: answers what has no form that a model reads, and tells `refused`; hands everything else on as it came."""

    def __init__(self, app: Application, refused: Callable[[Refusal], None]) -> None:
        self._app, self._refused = app, refused

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Look at the body of a POST to a model, then let the application read it again."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in _PARAMETERS:
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # The client has gone.
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        content_type = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type"), "")
        body = read(scope["path"], content_type, b"".join(parts))
        if isinstance(body, bytes):
            await self._app(scope, _receiving(body, receive), send)
            return
        self._refused(body)
        document = json.dumps({"error": body.document()}).encode()
        headers = [(b"content-type", _JSON.encode()), (b"content-length", str(len(document)).encode())]
        await send({"type": "http.response.start", "status": body.status, "headers": headers})
        await send({"type": "http.response.body", "body": document})


def _receiving(body: bytes, receive: Receive) -> Receive:
    """Give the body once, then whatever else the client does: that it goes away ends a generation."""
    waiting = True

    async def again() -> dict[str, Any]:
        nonlocal waiting
        if waiting:
            waiting = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
