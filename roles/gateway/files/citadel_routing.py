"""What the gateway decides about a request, as plain functions without LiteLLM.

`citadel_gateway_hook.py` beside this file carries the decisions into LiteLLM. The rules are data: `routing.json` in the same
folder, written by the role from inventory variables.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# The name by which a client asks for the gateway's own choice in so many words.
AUTOMATIC_MODEL: Final = "auto"

# With one of these a model says that the request itself is at fault. Any other error is the model's own, or of the way to it, and
# another model may well answer.
_VERDICTS_ON_REQUEST: Final = frozenset({400, 413, 422})

# LiteLLM quotes the answer of a model server behind "<Provider>Exception - ", and that answer can quote the prompt. It also quotes the
# model that a client names, which can be anything.
_UPSTREAM_ANSWER: Final = re.compile(r"(?P<who>\w+Exception) - .*", re.DOTALL)
_UNKNOWN_MODEL: Final = re.compile(r"(?P<what>Invalid model name passed in) model=.*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The routing rules of this gateway; `default_model` serves whatever names no model."""

    default_model: str


def load_rules(path: Path) -> Rules:
    """Read the rules from a JSON object `{"default_model": NAME}`; ValueError says what is wrong with the file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    default_model = document.get("default_model") if isinstance(document, dict) else None
    if not isinstance(default_model, str) or not default_model:
        raise ValueError(f"{path}: default_model must be the name of a model, not {default_model!r}; the role gateway writes it.")
    return Rules(default_model=default_model)


def leaves_choice_open(requested: object) -> bool:
    """Whether the request's `model` leaves the choice to the gateway: missing, null, empty or "auto"."""
    return requested is None or requested in ("", AUTOMATIC_MODEL)


def is_verdict_on_request(status: object) -> bool:
    """Whether an HTTP status from a model means that the request is at fault, so that asking another model would overrule the first."""
    return status in _VERDICTS_ON_REQUEST


def without_quotations(text: str) -> str:
    """`text` with what a model server answered or a client wrote cut off, since it may hold a prompt; who answered stays readable."""
    text = _UPSTREAM_ANSWER.sub(r"\g<who> - (the model's own words are not logged)", text)
    return _UNKNOWN_MODEL.sub(r"\g<what> (what clients write is not logged)", text)
