"""The hook that the unmodified LiteLLM proxy loads from the folder of its config.yaml.

It does four things, each of which LiteLLM has no setting for:

* a request that names no model gets one (`completion_model` would override the models that others do name);
* a request that the model it names has refused as faulty is not handed to another model: LiteLLM falls back on every error, a 400
  included;
* whoever comes without the right key gets a 401: without a database LiteLLM refuses a wrong key with "400 No connected db.", and
  falls over one that is missing. It gets it after a moment, because the edge repeats what was refused while a key is being rotated, and
  may do so only so often;
* what a model server answers does not reach the log, because it can quote the prompt.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from citadel_routing import Rules, is_verdict_on_request, leaves_choice_open, load_rules, without_upstream_answer
from fastapi import HTTPException, status
from litellm.integrations.custom_logger import CustomLogger

if TYPE_CHECKING:
    from collections.abc import Mapping

_GENERATING_CALLS: Final = frozenset({"completion", "acompletion", "text_completion", "atext_completion"})

# LiteLLM keeps one metadata dictionary per request through every attempt; which of the two names it has depends on the route.
_METADATA_NAMES: Final = ("metadata", "litellm_metadata")
_CHOSEN_HERE: Final = "citadel_chosen_by_gateway"
_REFUSED_BY: Final = "citadel_refused_by"

_REFUSAL: Final = "has refused the request itself"

_WRONG_KEY_SECONDS: Final = 0.5

_LITELLM_LOGGERS: Final = ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router")


class RequestRefused(Exception):
    """Ends a fallback; LiteLLM then answers the client with the error of the model that refused."""


class GatewayHook(CustomLogger):  # type: ignore[misc]  # LiteLLM is typed, but not where this file is checked
    """One instance per LiteLLM worker; holds nothing but the rules."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    async def async_pre_call_hook(self, user_api_key_dict: object, cache: object, data: dict[str, Any], call_type: str) -> dict[str, Any]:
        """Name the model where the client has not, before LiteLLM routes the request."""
        if call_type in _GENERATING_CALLS and leaves_choice_open(data.get("model")):
            data["model"] = self._rules.default_model
            for metadata in _metadata(data):
                metadata[_CHOSEN_HERE] = True
            _ask_for_stream_usage(data)
        return data

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: object, fallback_depth: int | None = None
    ) -> None:
        """Remember that the named model refused the request; LiteLLM calls this after each failed attempt, before it looks for a fallback.

        Where the gateway chose, the next model is asked: it may hold the longer prompt.
        """
        if is_verdict_on_request(getattr(exception, "status_code", None)):
            for metadata in _metadata(request_data):
                if _CHOSEN_HERE not in metadata:
                    metadata[_REFUSED_BY] = request_data.get("model")

    async def async_filter_deployments(
        self,
        model: str,
        healthy_deployments: list[Any],
        messages: object,
        request_kwargs: Mapping[str, Any] | None = None,
        parent_otel_span: object = None,
    ) -> list[Any]:
        """Let a refused request go no further: this runs for every model about to be tried."""
        for metadata in _metadata(request_kwargs or {}):
            if _REFUSED_BY in metadata:
                raise RequestRefused(f"{metadata[_REFUSED_BY]} {_REFUSAL}; {model} is not asked.")
        return healthy_deployments

    async def async_post_call_failure_hook(
        self, request_data: dict[str, Any], original_exception: Exception, user_api_key_dict: object, traceback_str: str | None = None
    ) -> HTTPException | None:
        """Put a refusal in the right words. LiteLLM has decided: whom it lets in has a role here."""
        came_in = getattr(user_api_key_dict, "user_role", None) is not None
        has_status = hasattr(original_exception, "code") or hasattr(original_exception, "status_code")
        if came_in or (has_status and getattr(original_exception, "type", None) != "no_db_connection"):
            return None
        await asyncio.sleep(_WRONG_KEY_SECONDS)
        return HTTPException(status.HTTP_401_UNAUTHORIZED, detail="A valid API key is needed: Authorization: Bearer KEY.")


class UpstreamAnswerFilter(logging.Filter):
    """Cuts what a model server answered out of a log record.

    An exception that carries an HTTP status is an answer and not a fault in the program: its traceback repeats the answer and says
    nothing else, in 5 kB that anybody could have written by sending nonsense. The router's report of a fallback that the hook ended
    is dropped: the proxy reports the refusal itself.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if _REFUSAL in message:
            return False
        record.msg, record.args = without_upstream_answer(message), None
        if record.exc_info and hasattr(record.exc_info[1], "status_code"):
            record.exc_info = record.exc_text = None
        return True


def _is_no_leftover_client(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Unclosed client session", "Unclosed connector"))


def _metadata(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = (request.get(name) for name in _METADATA_NAMES)
    return [metadata for metadata in found if isinstance(metadata, dict)]


def _ask_for_stream_usage(data: dict[str, Any]) -> None:
    """Have the model count the tokens of a stream, as LiteLLM does by itself for a request that names its model.

    Without it LiteLLM estimates with a tokenizer that is not the model's, and the token metrics are wrong. The client sees the count
    only when it asked for it.
    """
    options = data.get("stream_options")
    if data.get("stream") is not True or (isinstance(options, dict) and options.get("include_usage") is True):
        return
    data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    data["_litellm_strip_stream_usage"] = True


for _name in _LITELLM_LOGGERS:
    logging.getLogger(_name).addFilter(UpstreamAnswerFilter())

# LiteLLM makes a client of its own for each text completion and leaves it to Python to close it, which aiohttp calls an error, twice
# per request.
logging.getLogger("asyncio").addFilter(_is_no_leftover_client)

gateway_hook: Final = GatewayHook(load_rules(Path(__file__).with_name("routing.json")))
