"""What the role says to bad routing rules before it touches a host."""

from __future__ import annotations

from typing import Any

import pytest

from edge.refusals import refusals
from gateway.choices import INVENTORY
from gateway.harness import MODELS, plan

LAST: dict[str, Any] = {"name": "otherwise", "models": ["hermes-2"]}


def upstream(name: str) -> dict[str, Any]:
    keys = ["service", "host", "max_output_tokens", "specialisation", "description"]
    more = {"context_tokens": 2048, "modes": ["chat"], "api_base": "http://127.0.0.1:31400/v1"}
    return dict.fromkeys(keys, name) | more | {"model": name}


def rule(**changes: object) -> dict[str, Any]:
    return {"gateway_routing_rules": [{"name": "first", "models": ["phi-3-mini"]} | changes, LAST]}


PRODUCTION: dict[str, Any] = INVENTORY | {
    "gateway_plan": plan(8000, 1),
    "gateway_upstreams": [upstream(name) for name in MODELS],
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no rule": ({"gateway_routing_rules": []}, "gateway_routing_rules is empty"),
    "an unknown condition": (
        rule(when={"temperature_max": 1}), "The rule first of gateway_routing_rules has the unknown condition temperature_max",
    ),
    "conditions in the last rule": (
        {"gateway_routing_rules": [LAST | {"when": {"stream": True}}]}, "The last rule of gateway_routing_rules, otherwise, has conditions",
    ),
    "an unknown model in a rule": (rule(models=["gpt-4"]), "names gpt-4, which no host of llm_servers serves"),
    "an unknown longer model": ({"gateway_longer_models": {"phi-3-mini": ["gpt-4"]}}, "names gpt-4, which no host of llm_servers serves"),
    "no count of requests": (
        {"gateway_metrics": ["litellm_output_tokens_metric"]}, "gateway_metrics lacks litellm_proxy_total_requests_metric",
    ),
    "a model twice": ({"gateway_upstreams": [*map(upstream, MODELS), upstream("hermes-2")]}, "must have each model once"),
    "a model past the edge": (
        {"gateway_upstreams": [upstream(name) | {"api_base": "http://192.168.10.30:11403/v1"} for name in MODELS]},
        "the gateway is let out to nobody else",
    ),
    "no reserve": ({"gateway_answer_reserve_tokens": 0}, "gateway_answer_reserve_tokens is 0"),
}  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "the inventory": {},
    "longer models": {"gateway_longer_models": {"phi-3-mini": ["hermes-2"]}},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Collect what the role says to each of REFUSED and of GOOD."""
    cases = {name: changes for name, (changes, _) in REFUSED.items()} | GOOD
    return refusals("gateway", {name: PRODUCTION | changes for name, changes in cases.items()}, tmp_path_factory.mktemp("refused"))


@pytest.mark.parametrize("case", REFUSED)
def test_bad_rules_are_refused_with_a_sentence(said: dict[str, str], case: str) -> None:
    assert REFUSED[case][1] in said[case]


@pytest.mark.parametrize("case", GOOD)
def test_good_rules_are_not(said: dict[str, str], case: str) -> None:
    assert case not in said, said.get(case)
