"""Requests that vLLM is kept from, each answered with a 400 in OpenAI's shape. vLLM has no options for that, and loads this as middleware.

* What it cannot read and answers with a 500, or with an error of another shape: a body that is not UTF-8 or nested too deeply, a text with
  half of a character, and structured outputs that are no object.
* Requests for more answers at once than the plan has places, by a list of prompts or `n`: the edge counts requests, so that one of these
  would take the places of many who wait.
* Requests for the log probabilities of a prompt, for which the plan has no memory unless it was told to. One such request takes a logit per
  token of a batch and word of the vocabulary, in several forms at once: a GiB for most models, beyond what vLLM sets aside for itself.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    Application = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

_PROMPT_LOGPROBS: Final = (
    "This model does not tell log probabilities of prompts (prompt_logprobs, or echo with logprobs): its plan has no memory for them."
    " Those of the answer are there (logprobs). The server's operator can allow it with engine.prompt_logprobs."
)


def fault_of(body: bytes, *, places: int | None = None) -> tuple[str, str | None] | None:
    """What is wrong with a body that vLLM has no good answer for, and with which parameter; None where it has one.

    `places`: how many answers may be asked for at once; None: as many as vLLM takes.
    """
    try:
        request = json.loads(body.decode())
        if b"\\u" in body:
            # JSON can name half of a pair, as programs write it that cut a text within an emoji.
            json.dumps(request, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return f"The body is not JSON: byte {error.start} is not UTF-8.", None
    except UnicodeEncodeError:
        return "A text in the body has half of a character: a surrogate (\\ud800 to \\udfff) without its other one.", None
    except RecursionError:
        return "The body is not JSON: it is nested too deeply.", None
    except ValueError:
        return None
    return _fault_of_fields(request, places) if isinstance(request, dict) else None


def _fault_of_fields(request: dict[str, Any], places: int | None) -> tuple[str, str | None] | None:
    if not isinstance(request.get("structured_outputs", {}), (dict, type(None))):
        return "'structured_outputs' must be an object.", "structured_outputs"
    prompts, each = _prompts(request.get("prompt")), request.get("n")
    answers = prompts * (each if isinstance(each, int) else 1)
    if places is not None and answers > places:
        limit = f"this model works on {places} at a time"
        return (
            f"{answers} answers are asked for at once, but {limit}: send fewer prompts, or a smaller n.",
            "prompt" if prompts > 1 else "n",
        )
    return None


def _prompts(prompt: object) -> int:
    """How many prompts a completion has: a list of numbers is one, in tokens."""
    return len(prompt) if isinstance(prompt, list) and not all(isinstance(part, int) for part in prompt) else 1


def asks_for_prompt_logprobs(body: bytes) -> bool:
    """Whether a request's body asks for them. What is not understood here vLLM does not understand either, and says so."""
    try:
        request = json.loads(body)
    except ValueError:
        return False
    if not isinstance(request, dict):
        return False
    sampling = request.get("sampling_params")
    for fields in (request, sampling if isinstance(sampling, dict) else {}):
        # 0 costs as much as 1. A chat with echo alone counts as asking for 0.
        if fields.get("prompt_logprobs") is not None or fields.get("prompt_logprob_token_ids") is not None:
            return True
    wanted = "messages" in request or request.get("logprobs") is not None
    return wanted and request.get("echo") not in (None, False)


class UnreadableRefused:
    """ASGI middleware that answers what has a fault, and hands on all others, unread where they have no body."""

    def __init__(self, app: Application) -> None:
        self._app = app
        # The plan's, as vLLM itself bounds `n` by it.
        places = os.environ.get("VLLM_MAX_N_SEQUENCES")
        self._places = None if places is None else int(places)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Look at the body of a POST, then let the application read it again."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
            messages.append(await receive())
        fault = self._fault(b"".join(message.get("body", b"") for message in messages))
        if fault is not None:
            message, parameter = fault
            error = {"message": message, "type": "BadRequestError", "param": parameter, "code": 400}
            refusal = json.dumps({"error": error}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(refusal)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": refusal})
            return

        async def receive_again() -> dict[str, Any]:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, receive_again, send)

    def _fault(self, body: bytes) -> tuple[str, str | None] | None:
        return fault_of(body, places=self._places)


class PromptLogprobsRefused(UnreadableRefused):
    """The same for a model whose plan has no memory for the log probabilities of prompts."""

    def _fault(self, body: bytes) -> tuple[str, str | None] | None:
        return super()._fault(body) or ((_PROMPT_LOGPROBS, "prompt_logprobs") if asks_for_prompt_logprobs(body) else None)
