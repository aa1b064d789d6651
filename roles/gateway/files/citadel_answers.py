"""What the answers of models mean, and what of them may be written down, as plain functions without LiteLLM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeGuard

from citadel_routing import NAMED, NoSuchModel, TooLong, Unavailable, too_long_sentence

if TYPE_CHECKING:
    from citadel_routing import Course, Rules

# With one of these a model says that the request itself is at fault. Any other error is the model's own, or of the way to it, and
# another model may well answer.
_VERDICTS_ON_REQUEST: Final = frozenset({400, 413, 422})

# What vLLM 0.32 says of a request that is too long for it: tests/gateway/test_request.py asks its own checks.
_LENGTH_REFUSAL: Final = re.compile(
    r"This model's maximum context length is \d+ tokens"
    r"|is longer than the maximum\s+model length of \d+"
    r"|exceeds model's maximum\s+context length"
    r"|\bmax_\w*tokens=\d+ cannot be greater than max_\w+=\d+"
)
_COUNTED_PROMPT: Final = re.compile(r"contains (?:at least )?(\d+) input tokens|prompt \(length (\d+)\)|Input length \((\d+)\)")

# What LiteLLM puts before the words of a model server.
_PREFIX: Final = re.compile(r"^(?:litellm\.\w+: )+[\w-]+Exception - ")

# LiteLLM quotes the answer of a model server behind "<Provider>Exception - ", and that answer can quote the prompt. It also quotes the
# model that a client names, which can be anything.
_UPSTREAM_ANSWER: Final = re.compile(r"(?P<who>\w+Exception) - .*", re.DOTALL)
_UNKNOWN_MODEL: Final = re.compile(r"(?P<what>Invalid model name passed in) model=.*", re.DOTALL)

_TOO_MANY_REQUESTS: Final = 429
_REQUEST_TIMEOUT: Final = 408
_SERVICE_UNAVAILABLE: Final = 503
_GATEWAY_TIMEOUT: Final = 504


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer of the gateway's own, in OpenAI's shape. `quoted`: the message is a model's, and may hold what is nobody's business."""

    status: int
    kind: str
    code: str
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None
    quoted: bool = False

    def document(self) -> dict[str, str | None]:
        """Give what the client finds under `error`."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def is_verdict_on_request(status: object) -> TypeGuard[int]:
    """Whether an HTTP status from a model means that the request is at fault, so that asking another model would overrule the first."""
    return status in _VERDICTS_ON_REQUEST


def note_failure(
    course: Course, *, model: str, status: object, message: str, retry_after: str | None = None, param: str | None = None
) -> None:
    """Remember what a model that did not answer has said."""
    if not is_verdict_on_request(status):
        course.unavailable[model] = status if isinstance(status, int) else _SERVICE_UNAVAILABLE
        if retry_after is not None and retry_after.isdecimal():
            course.retry_after_seconds = int(retry_after)
    elif _LENGTH_REFUSAL.search(message):
        counted = _COUNTED_PROMPT.search(message)
        course.too_long[model] = int(next(filter(None, counted.groups()))) if counted else None
    else:
        course.refused = status
        course.words, course.param = _PREFIX.sub("", message), param


def refusal_after(course: Course, rules: Rules) -> Refusal | None:
    """Say what the client is told after everybody who could be asked has failed; None where nobody was."""
    if course.refused is not None:
        return Refusal(
            status=course.refused,
            kind="invalid_request_error",
            code="invalid_value",
            message=course.words,
            param=course.param,
            quoted=True,
        )
    if not course.asked:
        return None
    last = course.asked[-1]
    longer_is_away = any(
        rules.models[away].context_tokens > rules.models[short].context_tokens for away in course.unavailable for short in course.too_long
    )
    if last in course.too_long and not longer_is_away:
        sentence = too_long_sentence(rules, last, course.demand, counted=course.too_long[last], permitted=course.permitted)
        return _too_long(sentence)
    if not course.unavailable:
        return None
    statuses = set(course.unavailable.values())
    if statuses <= {_REQUEST_TIMEOUT, _GATEWAY_TIMEOUT}:
        return Refusal(status=_GATEWAY_TIMEOUT, kind="server_error", code="model_timeout", message=f"{last} did not answer in time.")
    return Refusal(
        status=_TOO_MANY_REQUESTS if statuses == {_TOO_MANY_REQUESTS} else _SERVICE_UNAVAILABLE,
        kind="server_error",
        code="model_unavailable",
        message=_unavailable(course.decision.model if course.decision.route == NAMED else None),
        retry_after_seconds=course.retry_after_seconds or rules.retry_after_seconds,
    )


def refusal_before(decision: TooLong | NoSuchModel | Unavailable, rules: Rules) -> Refusal:
    """Say what the client is told where no model is asked at all."""
    if isinstance(decision, TooLong):
        return _too_long(decision.sentence)
    if isinstance(decision, NoSuchModel):
        return Refusal(status=404, kind="invalid_request_error", code="model_not_found", message=decision.sentence, param="model")
    return Refusal(
        status=_SERVICE_UNAVAILABLE,
        kind="server_error",
        code="model_unavailable",
        message=_unavailable(decision.model if decision.route == NAMED else None),
        retry_after_seconds=rules.retry_after_seconds,
    )


def _too_long(sentence: str) -> Refusal:
    return Refusal(status=400, kind="invalid_request_error", code="context_length_exceeded", message=sentence)


def _unavailable(named: str | None) -> str:
    return f"{f'The model {named} cannot' if named else 'No model can'} take the request at the moment."


def without_quotations(text: str) -> str:
    """`text` with what a model server answered or a client wrote cut off, since it may hold a prompt; who answered stays readable."""
    text = _UPSTREAM_ANSWER.sub(r"\g<who> - (the model's own words are not logged)", text)
    return _UNKNOWN_MODEL.sub(r"\g<what> (what clients write is not logged)", text)
