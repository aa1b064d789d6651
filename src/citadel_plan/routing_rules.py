"""The gateway's rules for requests that name no model: whether they make sense before a host is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_TAKEN: Final = ("named", "too-long")
"""What the gateway calls decisions that no rule has made."""

_RULE_KEYS: Final = ("name", "when", "models")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


_Test = tuple["Callable[[object], bool]", str]
_COUNT: Final[_Test] = (_is_count, "a number from 0")
_CONDITIONS: Final[Mapping[str, _Test]] = {
    "prompt_tokens_min": _COUNT,
    "prompt_tokens_max": _COUNT,
    "answer_tokens_min": _COUNT,
    "answer_tokens_max": _COUNT,
    "turns_min": _COUNT,
    "turns_max": _COUNT,
    "stream": (lambda value: isinstance(value, bool), "true or false"),
    "kind": (lambda value: value in ("chat", "completion"), "chat or completion"),
    "words": (_is_names, "a list of words"),
}


def routing_rule_problems(rules: Sequence[object], *, models: Collection[str]) -> list[str]:
    """Say what is wrong with ``gateway_routing_rules``.

    Args:
        rules: As the inventory has them.
        models: What the gateway can call.

    Returns:
        One sentence per problem, in the order of the rules.

    """
    problems: list[str] = []
    seen: set[str] = set()
    for number, rule in enumerate(rules, start=1):
        name = rule.get("name") if isinstance(rule, Mapping) else None
        if not isinstance(rule, Mapping) or not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
            problems.append(
                f"Rule {number} of gateway_routing_rules needs a name of small letters, digits and dashes that is not"
                f" {' or '.join(_TAKEN)}."
            )
            continue
        if name in seen:
            problems.append(f"gateway_routing_rules has two rules of the name {name}: what chose a model could not be told apart.")
        seen.add(name)
        problems += [f"The rule {name} of gateway_routing_rules {problem}" for problem in _rule_problems(rule, models)]
    if not rules:
        problems.append("gateway_routing_rules is empty: a request that names no model would get none.")
    elif isinstance(rules[-1], Mapping) and rules[-1].get("when"):
        problems.append(
            f"The last rule of gateway_routing_rules, {rules[-1].get('name')}, has conditions: it must be the one for every request that no"
            " other rule is for."
        )
    return problems


def _rule_problems(rule: Mapping[str, Any], models: Collection[str]) -> list[str]:
    problems = [f"has {key}, but takes only {', '.join(_RULE_KEYS)}." for key in rule if key not in _RULE_KEYS]
    named = rule.get("models")
    if not isinstance(named, list) or not _is_names(named):
        problems.append("needs models, a list of names.")
    elif unknown := [name for name in named if name not in models]:
        problems.append(f"names {', '.join(unknown)}, which no host of llm_servers serves; the models are {', '.join(models)}.")
    conditions = rule.get("when") or {}
    if not isinstance(conditions, Mapping):
        return [*problems, "needs its conditions, when, by name."]
    for condition, value in conditions.items():
        if condition not in _CONDITIONS:
            problems.append(f"has the unknown condition {condition}; the conditions are {', '.join(_CONDITIONS)}.")
        elif not _CONDITIONS[condition][0](value):
            problems.append(f"has {condition}: {value}, but it must be {_CONDITIONS[condition][1]}.")
    return problems
