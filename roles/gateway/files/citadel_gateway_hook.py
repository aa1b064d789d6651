"""The hook that the unmodified LiteLLM proxy loads from the folder of its config.yaml.

It does what LiteLLM has no setting for:

* it carries the decisions of `citadel_routing` into a request: the model where none is named, and who is asked when that one cannot
  answer. A request that its model has refused as faulty is handed to nobody (LiteLLM falls back on every error, a 400 included), one
  that is too long only to a longer model;
* it asks the edge once a second, never in a request's way, how the models are;
* it names the model and the rule in the response's headers, and counts the decisions;
* it says what went wrong in OpenAI's shape: 400 for a prompt that is too long, 404 for a model that a key may not use, 503 with
  Retry-After where nobody can answer, and 401 for a wrong key (without a database LiteLLM says "400 No connected db."). The 401 comes
  after a moment, because the edge repeats what was refused while a key is being rotated, and may do so only so often;
* it keeps what a model server answers, or a client writes, out of the log, because it can be a prompt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
from fastapi import HTTPException, status
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException
from prometheus_client import Counter

from citadel_answers import Refusal, note_failure, refusal_after, refusal_before, without_quotations
from citadel_request import read_demand
from citadel_routing import (
    Course,
    Decision,
    NoSuchModel,
    Rules,
    State,
    decide,
    leaves_choice_open,
    load_rules,
    no_such_model,
    permitted_models,
    read_state,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_CHAT_CALLS: Final = frozenset({"completion", "acompletion"})
_TEXT_CALLS: Final = frozenset({"text_completion", "atext_completion"})

# The edge says with it which models a key may use, and lets no client send it.
_MODELS_HEADER: Final = "x-citadel-models"

# With it a worker asks itself before it serves (`citadel_gateway_app`) and says where it answers itself. The edge lets no client send it.
_WARM_UP_HEADER: Final = "x-citadel-warm-up"

# LiteLLM keeps one metadata dictionary per request through every attempt; which of the two names it has depends on the route.
_METADATA_NAMES: Final = ("metadata", "litellm_metadata")
_COURSE: Final = "citadel_course"

# LiteLLM's own word for it.
_STRIP_USAGE: Final = "_litellm_strip_stream_usage"

_NOT_ASKED: Final = "is not asked for this request"

_WRONG_KEY_SECONDS: Final = 0.5

_STATE_INTERVAL_SECONDS: Final = 1.0
_STATE_TIMEOUT_SECONDS: Final = 2.0
_STATE_STALE_SECONDS: Final = 5.0

_LITELLM_LOGGERS: Final = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")

# The values of both labels come from the configuration: nothing that a client sends can make a series of its own.
_DECISIONS: Final = Counter(
    "citadel_gateway_decisions", "Requests by the rule that chose a model for them, and the model.", ["rule", "model"]
)


class RequestRefused(Exception):
    """Passes a model over; LiteLLM goes on to the next one, or answers the client with the error of the first."""


class RefusalError(ProxyException, HTTPException):  # type: ignore[misc]  # LiteLLM is typed, but not where this file is checked
    """A `Refusal` as LiteLLM takes it: from a hook after a failure only as HTTPException, and unchanged only as ProxyException."""

    def __init__(self, refusal: Refusal, *, route: str | None = None) -> None:
        headers = {} if refusal.retry_after_seconds is None else {"Retry-After": str(refusal.retry_after_seconds)}
        if route is not None:
            headers["x-citadel-route"] = route
        # LiteLLM logs it; the client gets the document.
        message = "The model's own words are not logged." if refusal.quoted else refusal.message
        ProxyException.__init__(self, message=message, type=refusal.kind, param=refusal.param, code=refusal.status, headers=headers)
        # ProxyException has called HTTPException with the message for a status.
        self.status_code, self.detail = refusal.status, message
        self._document = refusal.document()

    def to_dict(self) -> dict[str, Any]:
        """Give the error as the client gets it; ProxyException's own has the status for a code."""
        return self._document


class EdgeWatch:
    """Knows how the models are, from one small request a second to the edge."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._state: dict[str, State] = {}
        self._seen = 0.0
        self._task: asyncio.Task[None] | None = None

    def state(self) -> Mapping[str, State]:
        """Give the state of each model; of nobody anything while the edge has not answered for a while. Needs a running loop."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        return self._state if time.monotonic() - self._seen < _STATE_STALE_SECONDS else {}

    async def _watch(self) -> None:
        async with httpx.AsyncClient(timeout=_STATE_TIMEOUT_SECONDS, trust_env=False) as client:
            while True:
                try:
                    self._state = read_state((await client.get(self._url)).json())
                    self._seen = time.monotonic()
                except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
                    # An edge that reloads, or an answer that makes no sense: what is known grows old, and then counts no longer.
                    pass
                await asyncio.sleep(_STATE_INTERVAL_SECONDS)


class GatewayHook(CustomLogger):  # type: ignore[misc]  # LiteLLM is typed, but not where this file is checked
    """One instance per LiteLLM worker."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules
        self._edge = EdgeWatch(rules.edge_state_url)

    async def async_pre_call_hook(self, user_api_key_dict: object, cache: object, data: dict[str, Any], call_type: str) -> dict[str, Any]:
        """Decide who answers, before LiteLLM routes the request."""
        named = data.get("model")
        automatic = leaves_choice_open(named)
        headers = (data.get("proxy_server_request") or {}).get("headers") or {}
        permitted = permitted_models(next((value for name, value in headers.items() if name.lower() == _MODELS_HEADER), None))
        if call_type not in _CHAT_CALLS | _TEXT_CALLS or not (automatic or isinstance(named, str)):
            if isinstance(named, str) and (unknown := no_such_model(self._rules, named, permitted)):
                raise RefusalError(refusal_before(unknown, self._rules))
            return data
        chat = call_type in _CHAT_CALLS
        demand = read_demand(data, chat=chat, longest_token_characters=self._rules.longest_token_characters)
        # A worker that warms up asks no model, so it does not matter how they are.
        state = {} if _WARM_UP_HEADER in headers else self._edge.state()
        decision = decide(self._rules, demand, named=None if automatic else named, state=state, permitted=permitted)
        if not isinstance(decision, NoSuchModel):
            _DECISIONS.labels(decision.route, decision.model).inc()
        if not isinstance(decision, Decision):
            route = None if isinstance(decision, NoSuchModel) else decision.route
            raise RefusalError(refusal_before(decision, self._rules), route=route)
        data["model"] = decision.model
        data["fallbacks"] = decision.others
        course = Course(decision=decision, demand=demand, permitted=permitted)
        for metadata in _metadata(data):
            metadata[_COURSE] = course
            metadata[_WARM_UP_HEADER] = headers.get(_WARM_UP_HEADER)
        if decision.model != named:
            _ask_for_stream_usage(data)
        return data

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: object,
        request_kwargs: Mapping[str, Any] | None = None,
        parent_otel_span: object = None,
    ) -> list[Any]:
        """Let only those be asked who may be: this runs for every model about to be tried."""
        course = _course(request_kwargs or {})
        if course is not None:
            if not course.may_ask(self._rules, model):
                raise RequestRefused(f"{model} {_NOT_ASKED}.")
            course.asked.append(model)
        return healthy_deployments

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: object) -> dict[str, Any]:
        """Send a worker that warms up to itself instead of to the model."""
        for metadata in _metadata(kwargs):
            if (port := metadata.get(_WARM_UP_HEADER)) is not None:
                kwargs["api_base"] = f"http://127.0.0.1:{int(port)}/v1"
        return kwargs

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: object, fallback_depth: int | None = None
    ) -> None:
        """Remember why a model has not answered; LiteLLM calls this after each failed attempt, before it looks for a fallback."""
        course = _course(request_data)
        if course is not None:
            _note(course, exception)

    async def async_post_call_failure_hook(
        self, request_data: dict[str, Any], original_exception: Exception, user_api_key_dict: object, traceback_str: str | None = None
    ) -> HTTPException | None:
        """Put a failure in the right words."""
        if isinstance(original_exception, RefusalError):
            return None
        course = _course(request_data)
        if course is not None:
            if not course.has_heard_of_last():
                # LiteLLM opens a stream of completions after its router, which then has noted nothing.
                _note(course, original_exception)
            refusal = refusal_after(course, self._rules)
            if refusal is None:
                return None
            # Of completions and streams LiteLLM takes not what is returned here, but the words of the exception.
            for name, value in {"message": refusal.message, "type": refusal.kind, "param": refusal.param}.items():
                setattr(original_exception, name, value)
            return RefusalError(refusal)
        # LiteLLM has decided about the key: whom it lets in has a role here.
        came_in = getattr(user_api_key_dict, "user_role", None) is not None
        has_status = hasattr(original_exception, "code") or hasattr(original_exception, "status_code")
        if came_in or (has_status and getattr(original_exception, "type", None) != "no_db_connection"):
            return None
        await asyncio.sleep(_WRONG_KEY_SECONDS)
        return HTTPException(status.HTTP_401_UNAUTHORIZED, detail="A valid API key is needed: Authorization: Bearer KEY.")

    async def async_post_call_response_headers_hook(
        self, data: dict[str, Any], user_api_key_dict: object, response: object, request_headers: dict[str, str] | None = None
    ) -> dict[str, str] | None:
        """Say which model answers and why."""
        course = _course(data)
        if course is None:
            return None
        answered = {"x-citadel-model": course.asked[-1]} if response is not None and course.asked else {}
        return {"x-citadel-route": course.route, **answered}

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: object, response: AsyncIterator[Any], request_data: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """Give the pieces of a stream the form that OpenAI's have and that clients rely on."""
        asked_for_usage = _asks_for_usage(request_data) and not request_data.get(_STRIP_USAGE)
        async for piece in response:
            if _has_openai_s_form(piece, asked_for_usage=asked_for_usage):
                yield piece

    async def async_filter_listed_models(self, user_api_key_dict: object, model_names: Sequence[str]) -> Sequence[str]:
        """List what the key may use: config.yaml makes LiteLLM take the edge's header for the customer."""
        permitted = permitted_models(getattr(user_api_key_dict, "end_user_id", None))
        return [name for name in model_names if permitted is None or name in permitted]


class QuotationFilter(logging.Filter):
    """Cuts what a model server answered or a client wrote out of a log record.

    An exception that carries an HTTP status is an answer and not a fault in the program: its words are a model's, its traceback repeats
    them and says nothing else, in 5 kB that anybody could have written by sending nonsense. The router's report of a model that the hook
    passed over is dropped: the proxy reports the refusal itself.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_without_words(value) for value in record.args)
        message = record.getMessage()
        if _NOT_ASKED in message:
            return False
        record.msg, record.args = without_quotations(message), None
        if record.exc_info and hasattr(record.exc_info[1], "status_code"):
            record.exc_info = record.exc_text = None
        return True


def _without_words(value: object) -> object:
    """Replace an exception that is a model's answer by what it is and its status; of the hook's own, what it says is no model's."""
    if isinstance(value, Exception) and not isinstance(value, RefusalError) and hasattr(value, "status_code"):
        return f"{type(value).__name__}, status {value.status_code} (the words of an answer are not logged)"
    return value


def _is_no_leftover_client(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Unclosed client session", "Unclosed connector"))


def _metadata(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = (request.get(name) for name in _METADATA_NAMES)
    return [metadata for metadata in found if isinstance(metadata, dict)]


def _course(request: Mapping[str, Any]) -> Course | None:
    found = (metadata.get(_COURSE) for metadata in _metadata(request))
    return next((course for course in found if isinstance(course, Course)), None)


def _note(course: Course, exception: Exception) -> None:
    """Take what matters out of an exception of LiteLLM's. A model that the hook itself passed over has not failed."""
    if isinstance(exception, RequestRefused) or not course.asked:
        return
    answer = _answer(exception)
    response = getattr(exception, "response", None)
    headers = getattr(response, "headers", None) or getattr(exception, "litellm_response_headers", None) or {}
    note_failure(
        course,
        model=course.asked[-1],
        status=getattr(exception, "status_code", None),
        message=answer["message"],
        retry_after=headers.get("retry-after"),
        param=answer.get("param"),
    )


def _answer(exception: Exception) -> Mapping[str, Any]:
    """Give a model's own `message` and `param`, or LiteLLM's where nobody has kept them: of a completion only the first exception has."""
    status = getattr(exception, "status_code", None)
    link: BaseException | None = exception
    # What came before with another status is another model's answer.
    while link is not None and getattr(link, "status_code", None) == status:
        body = getattr(link, "body", None)
        if isinstance(body, dict) and isinstance(body.get("message"), str):
            return body
        link = link.__context__
    return {"message": str(exception), "param": getattr(exception, "param", None)}


def _has_openai_s_form(piece: Any, *, asked_for_usage: bool) -> bool:  # noqa: ANN401  # LiteLLM's pieces of chats and of completions
    """Mend a piece; False where nothing is left of it.

    LiteLLM 1.106.2 sends the usage with a choice that says nothing, where OpenAI sends it with none; in a completion that choice, and the
    one with the reason for the end, have no text at all, and the usage comes to those as well who have not asked for it.
    """
    choices = getattr(piece, "choices", None)
    if not choices:
        return True
    says_something = False
    for choice in choices:
        delta = getattr(choice, "delta", None)
        if delta is None and hasattr(choice, "text"):
            choice.text = choice.text or ""
            piece.usage = piece.usage if asked_for_usage else None
        said = choice.text if delta is None else (delta.content, delta.tool_calls, delta.role, getattr(delta, "reasoning_content", None))
        says_something = says_something or bool(choice.finish_reason) or (any(said) if isinstance(said, tuple) else bool(said))
    if not says_something and getattr(piece, "usage", None) is not None:
        piece.choices = []
        return True
    return says_something or getattr(choices[0], "delta", None) is not None


def _asks_for_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _ask_for_stream_usage(data: dict[str, Any]) -> None:
    """Have the model count the tokens of a stream, as LiteLLM does by itself for a request that names its model.

    Without it LiteLLM estimates with a tokenizer that is not the model's, and the token metrics are wrong. The client sees the count
    only when it asked for it.
    """
    options = data.get("stream_options")
    if data.get("stream") is not True or _asks_for_usage(data):
        return
    data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    data[_STRIP_USAGE] = True


for _name in _LITELLM_LOGGERS:
    # Before LiteLLM's own, which leave no exception to be seen but its text.
    logging.getLogger(_name).filters.insert(0, QuotationFilter())

# LiteLLM makes a client of its own for each text completion and leaves it to Python to close it, which aiohttp calls an error, twice
# per request.
logging.getLogger("asyncio").addFilter(_is_no_leftover_client)

gateway_hook: Final = GatewayHook(load_rules(Path(__file__).with_name("routing.json")))
