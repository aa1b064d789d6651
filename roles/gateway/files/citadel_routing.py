"""Which model a request goes to, and which others may answer for it, as plain functions without LiteLLM.

`citadel_gateway_hook.py` beside this file carries the decisions into LiteLLM. The rules are data: `routing.json` in the same
folder, written by the role from inventory variables; docs/routing.md explains them. The same request and the same state of the
models give the same decision.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from citadel_request import COMPLETION, Demand

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path


# The name by which a client asks for the gateway's own choice in so many words.
AUTOMATIC_MODEL: Final = "auto"

# What `x-citadel-route` says where no rule has chosen.
NAMED: Final = "named"
TOO_LONG: Final = "too-long"
LONGER: Final = "longer:"
FALLBACK: Final = "fallback:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as the plans have it."""

    name: str
    context_tokens: int
    modes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a model is, all of its instances together, as the edge sees it.

    `on_trial`: its breaker is half-open, one request is let through to see.
    """

    able: bool
    on_trial: bool
    running: int
    queued: int
    places: int

    @property
    def waiting(self) -> float:
        """How many a new request would wait for, per place; 0 where there is a free place."""
        return max(self.running + self.queued + 1 - self.places, 0) / max(self.places, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule: it holds for a request that meets every condition, and names models in order of preference."""

    name: str
    models: tuple[str, ...]
    prompt_tokens_min: int = 0
    prompt_tokens_max: int | None = None
    answer_tokens_min: int = 0
    answer_tokens_max: int | None = None
    turns_min: int = 0
    turns_max: int | None = None
    stream: bool | None = None
    kind: str | None = None
    words: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything in `routing.json`. `models` is in the order of the plans."""

    models: Mapping[str, Model]
    rules: tuple[Rule, ...]
    fallbacks: Mapping[str, tuple[str, ...]]
    longer_models: Mapping[str, tuple[str, ...]]
    answer_reserve_tokens: int
    longest_token_characters: int
    retry_after_seconds: int
    edge_state_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`model` is asked first, then, one after the other, those of `on_failure` or, where it was too short, of `on_length`."""

    route: str
    model: str
    on_failure: tuple[str, ...] = ()
    on_length: tuple[str, ...] = ()

    @property
    def others(self) -> list[str]:
        """Everybody who may have to be asked after `model`."""
        return list(dict.fromkeys(self.on_failure + self.on_length))


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLong:
    """Nobody who may be asked can take the request: `model` is the one that was named, or the longest."""

    model: str
    sentence: str
    route: str = TOO_LONG


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """Nobody who may be asked can answer, as far as is known, and asking would not help."""

    model: str
    route: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSuchModel:
    """The model does not exist, or is not for this client, who is told the same."""

    sentence: str


def load_rules(path: Path) -> Rules:
    """Read `routing.json`; ValueError says what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        models = {
            upstream["model"]: Model(name=upstream["model"], context_tokens=upstream["context_tokens"], modes=frozenset(upstream["modes"]))
            for upstream in document["upstreams"]
        }
        rules = tuple(_read_rule(rule) for rule in document["rules"])
        read = Rules(
            models=models,
            rules=rules,
            fallbacks={name: tuple(others) for name, others in document["fallbacks"].items()},
            longer_models={name: tuple(others) for name, others in document["longer_models"].items()},
            answer_reserve_tokens=document["answer_reserve_tokens"],
            longest_token_characters=document["longest_token_characters"],
            retry_after_seconds=document["retry_after_seconds"],
            edge_state_url=document["edge_state_url"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what the role gateway writes: {error!r}.") from error
    named = {model for rule in rules for model in rule.models}
    for lists in (read.fallbacks, read.longer_models):
        named.update(lists, *lists.values())
    if unknown := sorted(named - models.keys()):
        raise ValueError(f"{path} names {', '.join(unknown)}, which no upstream serves.")
    return read


def _read_rule(document: Mapping[str, Any]) -> Rule:
    conditions = dict(document.get("when") or {})
    words = conditions.pop("words", None)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE) if words else None
    return Rule(name=document["name"], models=tuple(document["models"]), words=pattern, **conditions)


def read_state(document: Mapping[str, Any]) -> dict[str, State]:
    """Read what the edge says of its models."""
    return {
        name: State(
            able=model["breaker"] == "closed",
            on_trial=model["breaker"] == "half-open",
            running=model["running"],
            queued=model["queued"],
            places=model["places"],
        )
        for name, model in document["models"].items()
    }


def leaves_choice_open(requested: object) -> bool:
    """Whether the request's `model` leaves the choice to the gateway: missing, null, empty or "auto"."""
    return requested is None or requested in ("", AUTOMATIC_MODEL)


def permitted_models(header: str | None) -> frozenset[str] | None:
    """Read which models a client may use from the edge's header; None where it may use all."""
    return None if header is None else frozenset(name.strip() for name in header.split(","))


def no_such_model(rules: Rules, model: str, permitted: Collection[str] | None) -> NoSuchModel | None:
    """Say that this client may not use `model`, or that there is no such model; None where it may."""
    if model in rules.models and (permitted is None or model in permitted):
        return None
    return NoSuchModel(
        sentence="The model that the request names does not exist or is not for this key; GET /v1/models lists those that are."
    )


def decide(
    rules: Rules, demand: Demand, *, named: str | None, state: Mapping[str, State], permitted: Collection[str] | None
) -> Decision | TooLong | Unavailable | NoSuchModel:
    """Decide about one request. `named` is None where the gateway chooses; `state` lacks models of which nothing is known."""
    choice = _Choice(rules, demand, state, permitted)
    if named is None:
        return choice.automatic()
    return no_such_model(rules, named, permitted) or choice.named(named)


@dataclass(frozen=True, slots=True)
class _Choice:
    rules: Rules
    demand: Demand
    state: Mapping[str, State]
    permitted: Collection[str] | None

    def automatic(self) -> Decision | TooLong | Unavailable | NoSuchModel:
        routes: dict[str, str] = {}
        for rule in self.rules.rules:
            if holds(rule, self.demand):
                for name in rule.models:
                    routes.setdefault(name, rule.name)
        for name in self.rules.models:
            # Not in any rule that holds, but better than no answer.
            routes.setdefault(name, self.rules.rules[-1].name)
        mine = [name for name in routes if self._may(name)]
        if not mine:
            return NoSuchModel(sentence="No model of this gateway is for this key and this kind of request.")
        ranked = self._rank(mine)
        if not ranked:
            return self._too_long(max(mine, key=self._context))
        first, *others = ranked
        if self._asked_once and self._known_down(first):
            return Unavailable(model=first, route=routes[first])
        return Decision(route=routes[first], model=first, on_failure=tuple(others), on_length=tuple(others))

    def named(self, model: str) -> Decision | TooLong | Unavailable:
        longer = self._rank(name for name in self.rules.longer_models.get(model, ()) if self._may(name))
        if self._may_fit(model):
            fallbacks = self._rank(name for name in self.rules.fallbacks.get(model, ()) if self._may(name))
            if self._asked_once and self._known_down(model):
                able = next((name for name in fallbacks if not self._known_down(name)), None)
                return Decision(route=FALLBACK + NAMED, model=able) if able else Unavailable(model=model, route=NAMED)
            return Decision(route=NAMED, model=model, on_failure=tuple(fallbacks), on_length=tuple(longer))
        if longer:
            return Decision(route=LONGER + NAMED, model=longer[0], on_failure=tuple(longer[1:]), on_length=tuple(longer[1:]))
        return self._too_long(model)

    @property
    def _asked_once(self) -> bool:
        """Whether only one model will be asked: LiteLLM 1.106 opens a stream of completions after its router; nobody falls back."""
        return self.demand.stream and self.demand.kind == COMPLETION

    def _known_down(self, name: str) -> bool:
        """Whether asking is of no use. A model on trial is asked, or it would never be taken back, unless nobody else could answer then."""
        state = self.state.get(name)
        return state is not None and not state.able and (self._asked_once or not state.on_trial)

    def _may(self, name: str) -> bool:
        return (self.permitted is None or name in self.permitted) and self.demand.kind in self.rules.models[name].modes

    def _context(self, name: str) -> int:
        return self.rules.models[name].context_tokens

    def _may_fit(self, name: str) -> bool:
        """Only what surely does not fit is left out; what might, the model itself decides."""
        return max(self.demand.prompt_tokens_at_least, 1) + (self.demand.answer_tokens or 1) <= self._context(name)

    def _fits(self, name: str) -> bool:
        answer = self.demand.answer_tokens or self.rules.answer_reserve_tokens
        return self.demand.prompt_tokens + answer <= self._context(name)

    def _rank(self, names: Iterable[str]) -> list[str]:
        """Order those that may fit: able ones, then those that fit by the estimate, then those with a free place, then as they were."""

        def key(name: str) -> tuple[bool, bool, int, float]:
            model = self.rules.models[name]
            state = self.state.get(name)
            fits = self._fits(name)
            return (
                self._known_down(name),
                not fits,
                0 if fits else -model.context_tokens,
                0.0 if state is None else state.waiting,
            )

        return sorted(filter(self._may_fit, names), key=key)

    def _too_long(self, model: str) -> TooLong:
        return TooLong(model=model, sentence=too_long_sentence(self.rules, model, self.demand, counted=None, permitted=self.permitted))


def holds(rule: Rule, demand: Demand) -> bool:
    """Whether a request meets every condition of a rule. A request that names no longest answer has one of 0 tokens here."""
    answer_tokens = (demand.answer_tokens or 0) * demand.answers
    return (
        rule.prompt_tokens_min <= demand.prompt_tokens
        and (rule.prompt_tokens_max is None or demand.prompt_tokens <= rule.prompt_tokens_max)
        and rule.answer_tokens_min <= answer_tokens
        and (rule.answer_tokens_max is None or answer_tokens <= rule.answer_tokens_max)
        and rule.turns_min <= demand.turns
        and (rule.turns_max is None or demand.turns <= rule.turns_max)
        and (rule.stream is None or rule.stream == demand.stream)
        and (rule.kind is None or rule.kind == demand.kind)
        and (rule.words is None or rule.words.search(demand.instruction) is not None)
    )


def too_long_sentence(rules: Rules, model: str, demand: Demand, *, counted: int | None, permitted: Collection[str] | None) -> str:
    """Say the limit, the size (`counted` by the model, or what is certain without counting), and who would take the request."""
    limit = rules.models[model].context_tokens
    at_least = counted or max(demand.prompt_tokens_at_least, 1)
    # vLLM counts no further than one beyond its context.
    exact = counted is not None and counted != limit + 1
    estimated = max(demand.prompt_tokens, at_least)
    size = f"{at_least} (counted by the model)" if exact else f"at least {at_least} (estimated: {estimated})"
    answer = f" and the answer {demand.answer_tokens} (max_tokens)" if demand.answer_tokens else ""
    needed = (at_least if exact else estimated) + (demand.answer_tokens or rules.answer_reserve_tokens)
    takers = sorted(
        (other for other in rules.models.values() if demand.kind in other.modes and (permitted is None or other.name in permitted)),
        key=lambda other: other.context_tokens,
    )
    taker = next((other.name for other in takers if other.context_tokens >= needed and other.context_tokens > limit), None)
    way_out = f"{taker} would take it." if taker else "No model here would take it: shorten the prompt or ask for a shorter answer."
    return f"{model} holds {limit} tokens, prompt and answer together; the prompt has {size}{answer}. {way_out}"


@dataclass(slots=True, kw_only=True)
class Course:
    """What has become of a decision: who was asked, and what came of it. LiteLLM carries it from hook to hook."""

    decision: Decision
    demand: Demand
    permitted: Collection[str] | None
    asked: list[str] = field(default_factory=list)
    refused: int | None = None
    """The status with which a model has said that the request is at fault; `words` and `param` are the model's."""
    words: str = ""
    param: str | None = None
    too_long: dict[str, int | None] = field(default_factory=dict)
    """By model, how many tokens it has counted, where it says so."""
    unavailable: dict[str, int] = field(default_factory=dict)
    """By model, the HTTP status."""
    retry_after_seconds: int | None = None

    def may_ask(self, rules: Rules, model: str) -> bool:
        """Whether `model` may be asked now."""
        if self.refused is not None:
            return False
        if self.too_long:
            longest = max(rules.models[name].context_tokens for name in self.too_long)
            return model in self.decision.on_length and rules.models[model].context_tokens > longest
        return model == self.decision.model or model in self.decision.on_failure

    def has_heard_of_last(self) -> bool:
        """Whether it is known why the one who was asked last has not answered."""
        return not self.asked or self.refused is not None or self.asked[-1] in self.too_long or self.asked[-1] in self.unavailable

    @property
    def route(self) -> str:
        """What `x-citadel-route` says: the rule, and whether somebody else answered, and why."""
        if not self.asked or self.asked[-1] == self.decision.model:
            return self.decision.route
        return f"{LONGER if self.too_long else FALLBACK}{self.decision.route}"
