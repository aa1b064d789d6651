"""What is said of the gateway's rules."""

from __future__ import annotations

from typing import Any

import pytest

from citadel_plan import routing_rule_problems

MODELS = ["hermes-2", "phi-3-mini"]
LAST: dict[str, Any] = {"name": "otherwise", "models": ["hermes-2"]}
EVERY_CONDITION = {
    "prompt_tokens_min": 0, "prompt_tokens_max": 9, "answer_tokens_min": 0, "answer_tokens_max": 9, "turns_min": 1, "turns_max": 2,
    "stream": False, "kind": "completion", "words": ["a", "b c"],
}  # fmt: skip


def problems(**changes: object) -> list[str]:
    return routing_rule_problems([{"name": "first", "models": ["phi-3-mini"]} | changes, LAST], models=MODELS)


@pytest.mark.parametrize("changes", [{}, {"when": {}}, {"when": None}, {"when": EVERY_CONDITION}])
def test_good_rules(changes: dict[str, Any]) -> None:
    assert problems(**changes) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": None}, "Rule 1 of gateway_routing_rules needs a name"),
        ({"name": "Short ones"}, "Rule 1 of gateway_routing_rules needs a name"),
        ({"name": "named"}, "that is not named or too-long"),
        ({"name": "otherwise"}, "two rules of the name otherwise"),
        ({"models": []}, "The rule first of gateway_routing_rules needs models, a list of names."),
        ({"models": "phi-3-mini"}, "needs models, a list of names."),
        ({"models": ["gpt-4"]}, "names gpt-4, which no host of llm_servers serves; the models are hermes-2, phi-3-mini."),
        ({"unless": {}}, "has unless, but takes only name, when, models."),
        ({"when": ["stream"]}, "needs its conditions, when, by name."),
        ({"when": {"temperature_max": 1}}, "has the unknown condition temperature_max; the conditions are prompt_tokens_min,"),
        ({"when": {"turns_min": "three"}}, "has turns_min: three, but it must be a number from 0."),
        ({"when": {"turns_min": True}}, "has turns_min: True, but it must be a number from 0."),
        ({"when": {"turns_min": -1}}, "has turns_min: -1, but it must be a number from 0."),
        ({"when": {"stream": "maybe"}}, "has stream: maybe, but it must be true or false."),
        ({"when": {"kind": "embedding"}}, "has kind: embedding, but it must be chat or completion."),
        ({"when": {"words": "prove"}}, "has words: prove, but it must be a list of words."),
        ({"when": {"words": []}}, "has words: [], but it must be a list of words."),
    ],
)
def test_each_problem_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    (problem,) = problems(**changes)
    assert words in problem


def test_there_must_be_a_rule_for_every_request() -> None:
    assert routing_rule_problems([], models=MODELS) == ["gateway_routing_rules is empty: a request that names no model would get none."]
    (problem,) = routing_rule_problems([LAST | {"when": {"stream": True}}], models=MODELS)
    assert problem.startswith("The last rule of gateway_routing_rules, otherwise, has conditions")
