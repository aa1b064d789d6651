"""How a client's program says what it has seen: one line of JSON for each check. Needs nothing but Python."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BASE_URL = sys.argv[1]
MODELS = sys.argv[2].split(",")
KEY = os.environ.get("CITADEL_CLIENT_KEY", "EMPTY")
LIMITED_KEY = os.environ.get("CITADEL_LIMITED_KEY")
"""Key of a client that may send one request a minute; the checks that want one are left out without it."""
WRONG_KEY = "sk-nobody-has-this-key-0000000000000000"

HELLO: Any = [{"role": "user", "content": "Hello, how many models are there?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": SCHEMA}}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
TOO_LONG = "x y " * 60_000
ANSWER_TOKENS = 64
"""Room enough for an object of the schema in tokens of the lab's tiny vocabulary."""


def check(name: str, look: Callable[[], object]) -> None:
    """Run one check; what it returns is told, and what it raises makes it fail."""
    began = time.monotonic()
    try:
        saw, good = look(), True
    except Exception as error:  # a client may raise anything, and the next check is to run
        saw, good = f"{type(error).__name__}: {error}"[:400], False
    line = {"check": name, "good": good, "saw": str(saw), "seconds": round(time.monotonic() - began, 3)}
    sys.stdout.write(json.dumps(line) + "\n")


def raised(kind: type[Exception], act: Callable[[], object]) -> Any:  # the clients' errors have attributes of their own
    """Give the error of that kind that ``act`` raises."""
    try:
        answer = act()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {answer!r}"[:300])
