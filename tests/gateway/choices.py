"""Requests without a model and with one, how the models are at the moment, and who is to answer: for the functions and for LiteLLM.

The rules are those of the inventory, so this table is also what docs/routing.md promises an operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from gateway.harness import MODELS
from rendering import PROJECT

if TYPE_CHECKING:
    from collections.abc import Mapping

INVENTORY: Final[dict[str, Any]] = yaml.safe_load((PROJECT / "inventory/group_vars/all/gateway.yml").read_text(encoding="utf-8"))

MIXTRAL, HERMES, OPENCHAT, PHI = MODELS

ONE_WORD = "Hello there, "
PARAGRAPH = "The quick brown fox jumps over the lazy dog while the others look on. "


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request. `state` is what the edge says where it differs from everybody being idle; `answer` is route and model, or an error."""

    body: Mapping[str, Any]
    answer: tuple[str, str]
    state: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    permitted: str | None = None
    chat: bool = True
    longer_models: Mapping[str, list[str]] = field(default_factory=dict)


def state_document(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Write what the edge answers; idle models with four places, but for `changes`."""
    idle = {"breaker": "closed", "running": 0, "queued": 0, "places": 4}
    return {"models": {name: idle | dict(changes.get(name, {})) for name in MODELS}}


def chat(text: str, *, turns: int = 1, **fields: object) -> dict[str, Any]:
    """Write a chat of `turns` messages of the user, the last of which is `text`."""
    earlier = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}] * (turns - 1)
    return {"messages": [*earlier, {"role": "user", "content": text}], **fields}


DOWN: Final = {"breaker": "open"}
ON_TRIAL: Final = {"breaker": "half-open"}
FULL: Final = {"running": 4}
QUEUED: Final = {"running": 4, "queued": 6}

TOO_LONG = ("400", "context_length_exceeded")
NO_MODEL = ("404", "model_not_found")

CASES: Final[dict[str, Case]] = {
    # What the request is like.
    "short": Case(body=chat("What is 2 + 2?"), answer=("short", PHI)),
    "short, null": Case(body=chat("What is 2 + 2?", model=None), answer=("short", PHI)),
    "short, empty": Case(body=chat("What is 2 + 2?", model=""), answer=("short", PHI)),
    "short, auto": Case(body=chat("What is 2 + 2?", model="auto"), answer=("short", PHI)),
    "short completion": Case(body={"prompt": "The capital of France is"}, chat=False, answer=("short", PHI)),
    "short with a short answer": Case(body=chat("What is 2 + 2?", max_tokens=64), answer=("short", PHI)),
    "short with a system prompt": Case(
        body={"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 2?"}]},
        answer=("short", PHI),
    ),
    "short in parts": Case(body=chat("", messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]), answer=("short", PHI)),
    "middling answer": Case(body=chat("Tell me of Paris.", max_tokens=800), answer=("otherwise", HERMES)),
    "middling answers together": Case(body=chat("Tell me of Paris.", max_tokens=300, n=2), answer=("otherwise", HERMES)),
    "middling prompt": Case(body=chat(PARAGRAPH * 40), answer=("otherwise", HERMES)),
    "stream": Case(body=chat("What is 2 + 2?", stream=True), answer=("streaming", OPENCHAT)),
    "stream of a completion": Case(body={"prompt": "Once upon a time", "stream": True}, chat=False, answer=("streaming", OPENCHAT)),
    "stream of a middling prompt": Case(body=chat(PARAGRAPH * 40, stream=True), answer=("streaming", OPENCHAT)),
    "two turns": Case(body=chat("And 3 + 3?", turns=2), answer=("short", PHI)),
    "three turns": Case(body=chat("And 3 + 3?", turns=3), answer=("conversation", HERMES)),
    "three turns, streamed": Case(body=chat("And 3 + 3?", turns=3, stream=True), answer=("conversation", HERMES)),
    "many turns": Case(body=chat("And 3 + 3?", turns=30), answer=("conversation", HERMES)),
    "reasoning": Case(body=chat("Explain step by step why the sky is blue."), answer=("reasoning", MIXTRAL)),
    "reasoning, streamed": Case(body=chat("Prove that there is no largest prime.", stream=True), answer=("reasoning", MIXTRAL)),
    "reasoning in capitals": Case(body=chat("PROVE IT."), answer=("reasoning", MIXTRAL)),
    "reasoning was before": Case(
        body={
            "messages": [
                {"role": "user", "content": "Prove it."},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": "Ok."},
            ]
        },
        answer=("short", PHI),
    ),
    "a word that only contains one": Case(body=chat("Improvement is waterproof."), answer=("short", PHI)),
    "long prompt": Case(body=chat(PARAGRAPH * 170), answer=("long-prompt", MIXTRAL)),
    "long answer": Case(body=chat("Write a story.", max_tokens=2000), answer=("long-answer", MIXTRAL)),
    "long answer by its newer name": Case(body=chat("Write a story.", max_completion_tokens=2000), answer=("long-answer", MIXTRAL)),
    "long answers together": Case(body=chat("Write a poem.", max_tokens=400, n=4), answer=("long-answer", MIXTRAL)),
    # What fits.
    "longer than anybody but one": Case(body=chat(PARAGRAPH * 600), answer=("long-prompt", MIXTRAL)),
    "an answer that only one has room for": Case(body=chat("Write.", max_tokens=20000), answer=("long-answer", MIXTRAL)),
    "a short stream with no room in the first": Case(
        body=chat(PARAGRAPH * 130, stream=True, max_tokens=1400), answer=("streaming", HERMES)
    ),
    "a prompt that fits nobody": Case(body=chat("word " * 200_000), answer=TOO_LONG),
    "an answer that fits nobody": Case(body=chat("Write.", max_tokens=40_000), answer=TOO_LONG),
    "a prompt of tokens": Case(body={"prompt": [5] * 5000}, chat=False, answer=("long-prompt", MIXTRAL)),
    "a prompt of tokens for one only": Case(
        body={"prompt": [5] * 9000}, chat=False, answer=("long-prompt", MIXTRAL), state={MIXTRAL: DOWN}
    ),
    "prompts are apart": Case(body={"prompt": ["Hello"] * 600}, chat=False, answer=("short", PHI)),
    "tools count": Case(
        body=chat("Weather?", tools=[{"type": "function", "function": {"name": "w", "description": PARAGRAPH * 40}}]),
        answer=("otherwise", HERMES),
    ),
    # What is able now.
    "short, first down": Case(body=chat("What is 2 + 2?"), state={PHI: DOWN}, answer=("short", OPENCHAT)),
    "short, two down": Case(body=chat("What is 2 + 2?"), state={PHI: DOWN, OPENCHAT: DOWN}, answer=("short", HERMES)),
    "short, three down": Case(body=chat("What is 2 + 2?"), state={PHI: DOWN, OPENCHAT: DOWN, HERMES: DOWN}, answer=("otherwise", MIXTRAL)),
    "short, first full": Case(body=chat("What is 2 + 2?"), state={PHI: FULL}, answer=("short", OPENCHAT)),
    "short, all full, one less": Case(
        body=chat("What is 2 + 2?"), state={PHI: QUEUED, OPENCHAT: QUEUED, HERMES: FULL, MIXTRAL: QUEUED}, answer=("short", HERMES)
    ),
    "short, all full alike": Case(body=chat("What is 2 + 2?"), state=dict.fromkeys(MODELS, FULL), answer=("short", PHI)),
    "stream, first down": Case(body=chat("Hi", stream=True), state={OPENCHAT: DOWN}, answer=("streaming", HERMES)),
    "short, first on trial": Case(body=chat("What is 2 + 2?"), state={PHI: ON_TRIAL}, answer=("short", PHI)),
    "stream of a completion, first on trial": Case(
        body={"prompt": "Once", "stream": True}, chat=False, state={OPENCHAT: ON_TRIAL}, answer=("streaming", HERMES)
    ),
    "conversation, first down": Case(body=chat("And?", turns=4), state={HERMES: DOWN}, answer=("conversation", OPENCHAT)),
    "reasoning, first down": Case(body=chat("Prove it."), state={MIXTRAL: DOWN}, answer=("reasoning", HERMES)),
    "long, and the only one is full": Case(body=chat(PARAGRAPH * 600), state={MIXTRAL: QUEUED}, answer=("long-prompt", MIXTRAL)),
    "stream of a completion, first down": Case(
        body={"prompt": "Once", "stream": True}, chat=False, state={OPENCHAT: DOWN}, answer=("streaming", HERMES)
    ),
    "stream of a completion, all down": Case(
        body={"prompt": "Once", "stream": True}, chat=False, state=dict.fromkeys(MODELS, DOWN), answer=("503", "model_unavailable")
    ),
    # Who names a model gets it.
    "named": Case(body=chat("What is 2 + 2?", model=MIXTRAL), answer=("named", MIXTRAL)),
    "named, streamed": Case(body=chat("Prove it.", model=PHI, stream=True), answer=("named", PHI)),
    "named, with max_tokens": Case(body=chat("What is 2 + 2?", model=OPENCHAT, max_tokens=9), answer=("named", OPENCHAT)),
    "named, full": Case(body=chat("What is 2 + 2?", model=MIXTRAL), state={MIXTRAL: QUEUED}, answer=("named", MIXTRAL)),
    "named, and may fit": Case(body=chat(PARAGRAPH * 100, model=PHI), answer=("named", PHI)),
    "named, and cannot fit": Case(body=chat(PARAGRAPH * 600, model=PHI), answer=TOO_LONG),
    "named, and no room for the answer": Case(body=chat("Hi", model=PHI, max_tokens=2048), answer=TOO_LONG),
    "named, cannot fit, a longer one allowed": Case(
        body=chat(PARAGRAPH * 600, model=PHI), longer_models={PHI: [HERMES, MIXTRAL]}, answer=("longer:named", MIXTRAL)
    ),
    "named, unknown": Case(body=chat("Hi", model="gpt-4"), answer=NO_MODEL),
    "named, a place of a model": Case(body=chat("Hi", model="phi-3-mini@hx-llm-server-01"), answer=NO_MODEL),
    "named, several": Case(body=chat("Hi", model=f"{PHI},{HERMES}"), answer=NO_MODEL),
    "named, stream of a completion, down": Case(
        body={"prompt": "Once", "stream": True, "model": PHI}, chat=False, state={PHI: DOWN}, answer=("fallback:named", OPENCHAT)
    ),
    # What a key may use.
    "key, short": Case(body=chat("What is 2 + 2?"), permitted=f"{OPENCHAT}, {HERMES}", answer=("short", OPENCHAT)),
    "key, none of the rule": Case(body=chat("What is 2 + 2?"), permitted=MIXTRAL, answer=("otherwise", MIXTRAL)),
    "key, named": Case(body=chat("Hi", model=HERMES), permitted=f"{PHI},{HERMES}", answer=("named", HERMES)),
    "key, named another": Case(body=chat("Hi", model=MIXTRAL), permitted=f"{PHI},{HERMES}", answer=NO_MODEL),
    "key, too long for its models": Case(body=chat(PARAGRAPH * 3000), permitted=f"{PHI},{HERMES}", answer=TOO_LONG),
    "key, nothing there": Case(body=chat("Hi"), permitted="gone", answer=NO_MODEL),
    "key, no model": Case(body=chat("Hi"), permitted="", answer=NO_MODEL),
}
