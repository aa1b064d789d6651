"""What a refusal suggests: every suggestion plans, and there is one of each kind that helps."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from citadel_plan import PlanError, plan
from citadel_plan.suggestions import _VARIABLES, MAX_TRIALS, MIN_CONTEXT_TOKENS
from unit.plan_examples import (
    GIB,
    HOST,
    INVENTORY,
    MIB,
    host_facts,
    need_bytes,
    production_models,
    refusal_of,
    settings,
    with_suggestion,
)

SMALL = {"mixtral-8x7b": {"enabled": False}}
HERMES_BYTES = need_bytes("hermes-2", "bf16")
OPENCHAT_BYTES = need_bytes("openchat-3.5", "int4")
FULL_BYTES = HERMES_BYTES + OPENCHAT_BYTES + (4 + 2 + 6) * GIB
"""A host on which two services, Phi-3's request, the gateway and the reserve leave nothing."""


def kinds(refusal: PlanError) -> list[str]:
    return [suggestion.text.split(": set ")[0] for suggestion in refusal.suggestions]


def values(refusal: PlanError, kind: str) -> dict[str, object]:
    (suggestion,) = (suggestion for suggestion in refusal.suggestions if suggestion.text.startswith(kind))
    return {".".join(change.path): change.value for change in suggestion.changes}


def assert_all_plan(refusal: PlanError, *, facts: object, overrides: object = None, models: object = None, **changes: object) -> None:
    assert refusal.suggestions
    for suggestion in refusal.suggestions:
        changed_overrides, changed_settings = with_suggestion(suggestion, overrides, settings(**changes))
        catalogue = production_models() if models is None else models
        assert plan(catalogue, overrides=changed_overrides, host=HOST, host_facts=facts, settings=changed_settings), suggestion.text


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"facts": host_facts(), "policy": "strict"}, ["the policy rebalance", "more memory for phi-3-mini", "one model less, phi-3-mini"]),
    # Two that are short under strict: one alone is not enough.
    (
        {"facts": host_facts(memory_gib=256, isa="avx2"), "policy": "strict", "overrides": SMALL},
        ["the policy rebalance", "more memory for phi-3-mini and openchat-3.5"],
    ),
    ({"facts": host_facts(memory_gib=100)}, ["less memory for mixtral-8x7b", "one model less, mixtral-8x7b"]),
    # 24 for 29: Hermes-2 can do with 10. Phi-3's 4 are not enough of a saving, OpenChat's 8 are.
    (
        {"facts": host_facts(memory_gib=30), "overrides": SMALL},
        ["less memory for hermes-2", "one model less, openchat-3.5", "one model less, hermes-2"],
    ),
    # int8 and int4 of Mixtral are pinned away; what it needs in bf16 no node has, and no context would help.
    (
        {"facts": host_facts(memory_gib=192, nodes=2), "overrides": {"mixtral-8x7b": {"pin": {"variant": "bf16"}}}},
        ["no pin for mixtral-8x7b", "one model less, mixtral-8x7b"],
    ),
    # Hermes-2 and OpenChat ask for what bf16 and int4 need, and nothing is left over for the 1.2 that Phi-3 lacks.
    (
        {
            "facts": host_facts(memory_gib=FULL_BYTES / GIB),
            "overrides": {
                **SMALL,
                "hermes-2": {"request": {"memory": f"{HERMES_BYTES // MIB}MiB"}},
                "openchat-3.5": {"request": {"memory": f"{OPENCHAT_BYTES // MIB}MiB"}},
            },
        },
        [
            "less memory for hermes-2",
            "a smaller variant of hermes-2",
            "a shorter context for hermes-2",
            "one model less, phi-3-mini",
            "one model less, openchat-3.5",
        ],
    ),
    # 57.0 of weights and 20 kept, 70 free: Mixtral in int4 saves 20.8.
    (
        {"facts": host_facts(storage_free_bytes=70 * GIB)},
        ["less memory for mixtral-8x7b", "a smaller variant of mixtral-8x7b", "one model less, hermes-2", "one model less, mixtral-8x7b"],
    ),
    ({"facts": host_facts(memory_gib=64, gpus_gib=(24,))}, ["one model less, mixtral-8x7b"]),
    (
        {"facts": host_facts(memory_gib=64, gpus_gib=(24,)), "overrides": SMALL | {"hermes-2": {"min_num_seqs": 10}}},
        ["a shorter context for hermes-2", "one model less, openchat-3.5", "one model less, hermes-2"],
    ),
    # One model less is not enough: the two largest go.
    ({"facts": host_facts(memory_gib=64, gpus_gib=(16,))}, ["fewer models, without mixtral-8x7b and hermes-2"]),
    # Repairs that need no decision come with every suggestion, and alone where nothing else is wrong.
    ({"facts": host_facts(), "overrides": {"hermes-2": {"request": {"port": 11400}}}}, ["mended"]),
    (
        {
            "facts": host_facts(memory_gib=100),
            "overrides": {"hermes-2": {"pin": {"cpu_set": "99"}}, "phi-3-mini": {"request": {"cpu_quota_percent": 9900}}},
        },
        ["less memory for mixtral-8x7b", "one model less, mixtral-8x7b"],
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), REFUSED, ids=[" ".join(expected) for _, expected in REFUSED])
def test_what_would_help_is_suggested_and_plans(arguments: dict[str, Any], expected: list[str]) -> None:
    refusal = refusal_of(**arguments)
    assert kinds(refusal) == expected
    assert_all_plan(refusal, **arguments)


def test_a_change_is_as_mild_as_it_can_be() -> None:
    # 94 for 119: of Mixtral's 90 at most 65 can stay, and 65 can.
    refusal = refusal_of(facts=host_facts(memory_gib=100))
    assert values(refusal, "less memory") == {"citadel_model_overrides.mixtral-8x7b.request.memory": "65GiB"}
    # strict: exactly what the smallest variant needs.
    needed = need_bytes("phi-3-mini", "int4-kv8") // MIB
    assert values(refusal_of(policy="strict"), "more memory") == {"citadel_model_overrides.phi-3-mini.request.memory": f"{needed}MiB"}


def test_the_longest_context_that_fits_is_found() -> None:
    facts = host_facts(isa="avx512")
    refusal = refusal_of(facts=facts)
    ((path, tokens),) = values(refusal, "a shorter context").items()
    assert path == "citadel_model_overrides.mixtral-8x7b.request.context_tokens"
    assert isinstance(tokens, int)
    assert tokens % 256 == 0
    with pytest.raises(PlanError):
        plan(
            production_models(),
            overrides={"mixtral-8x7b": {"request": {"context_tokens": tokens + 256}}},
            host=HOST,
            host_facts=facts,
            settings=settings(),
        )


def test_what_several_have_to_give_is_shared_out() -> None:
    # AVX-512, 125.2 G: 8.9 too little; Mixtral's context is good for 8.1 and Hermes-2's for 1.8. Neither is left with the shortest one.
    refusal = refusal_of(facts=host_facts(memory_gib=125.2, isa="avx512"))
    contexts = values(refusal, "a shorter context for mixtral-8x7b and hermes-2")
    assert len(contexts) == 2
    assert all(isinstance(tokens, int) and tokens > MIN_CONTEXT_TOKENS for tokens in contexts.values())


def test_an_answer_longer_than_the_new_context_is_taken_back() -> None:
    overrides = {"mixtral-8x7b": {"request": {"max_output_tokens": 30000}}}
    arguments: dict[str, Any] = {"facts": host_facts(isa="avx512"), "overrides": overrides}
    refusal = refusal_of(**arguments)
    assert values(refusal, "a shorter context")["citadel_model_overrides.mixtral-8x7b.request.max_output_tokens"] is None
    assert_all_plan(refusal, **arguments)


def test_the_message_says_what_to_set_where_and_what_comes_of_it() -> None:
    lines = str(refusal_of(facts=host_facts(memory_gib=100))).splitlines()
    assert lines[0] == "No plan for hx-llm-server-01: 1 problem."
    assert lines[2:] == [
        "Any one of these plans, each of them tried:",
        "  - less memory for mixtral-8x7b: set citadel_model_overrides.mixtral-8x7b.request.memory: 65GiB (mixtral-8x7b then runs as int8"
        " with 3 sequences of 32768 tokens).",
        "  - one model less, mixtral-8x7b: set citadel_model_overrides.mixtral-8x7b.enabled: false.",
    ]


def test_settings_are_named_as_an_operator_sets_them() -> None:
    assert "set citadel_plan_policy: rebalance." in str(refusal_of(policy="strict"))
    refusal = refusal_of(gateway={"memory": "512MiB"}, policy="strict")
    assert "set citadel_gateway_memory: 960MiB, citadel_plan_policy: rebalance." in str(refusal)


@pytest.mark.parametrize(("path", "variable"), _VARIABLES.items())
def test_each_setting_is_made_from_the_variable_that_is_named(path: tuple[str, ...], variable: str) -> None:
    value = yaml.safe_load((INVENTORY / "plan.yml").read_text(encoding="utf-8"))["citadel_plan_settings"]
    for key in path:
        value = value[key]
    assert value == f"{{{{ {variable} }}}}"


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({"overrides": {"hermes-2": {"request": {"port": 11400}}}}, {"hermes-2.request.port": 11405}),
        ({"overrides": {"phi-3-mini": {"request": {"port": 65000}}}}, {"phi-3-mini.request.port": 11404}),
        # Its port is taken by somebody else; the next four are those of models and of metrics, Phi-3's the last.
        (
            {"facts": host_facts(listening_ports=[{"address": "0.0.0.0", "port": 11400, "unit": "web.service"}])},
            {"mixtral-8x7b.request.port": 11405},
        ),
        (
            {"overrides": {"hermes-2": {"pin": {"variant": "int4"}}}, "facts": host_facts(memory_gib=512, isa="avx2")},
            {"hermes-2.pin.variant": None},
        ),
        ({"overrides": {"hermes-2": {"pin": {"gpu_ids": [0]}}}}, {"hermes-2.pin.gpu_ids": None}),
        ({"overrides": {"hermes-2": {"request": {"cpu_quota_percent": 9900}}}}, {"hermes-2.request.cpu_quota_percent": None}),
    ],
)
def test_what_needs_no_decision_is_mended(arguments: dict[str, Any], changed: dict[str, object]) -> None:
    refusal = refusal_of(**arguments)
    assert values(refusal, "mended") == {f"citadel_model_overrides.{key}": value for key, value in changed.items()}
    assert_all_plan(refusal, **{"facts": host_facts(), **arguments})


def test_nothing_is_suggested_where_only_the_operator_knows() -> None:
    assert refusal_of(overrides={"hermes-2": {"request": {"memory": "15"}}}, facts=host_facts(memory_gib=64)).suggestions == ()
    assert refusal_of(facts=host_facts(isa="none", memory_gib=64)).suggestions == ()
    assert refusal_of(gateway={"name": "hermes-2"}, facts=host_facts(memory_gib=64)).suggestions == ()


def test_the_same_refusal_has_the_same_bytes_in_any_order() -> None:
    def reverse(value: object) -> object:
        return {key: reverse(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    overrides = {"phi-3-mini": {"request": {"port": 11401}}, "hermes-2": {"pin": {"cpu_set": "99"}}}
    facts = host_facts(memory_gib=64, isa="avx512")
    one = refusal_of(facts=facts, overrides=overrides)
    other = refusal_of(facts=reverse(facts), overrides=reverse(overrides), models=reverse(production_models()))
    assert str(one) == str(other)


@pytest.mark.parametrize(
    "facts",
    [
        host_facts(memory_gib=480, cores=128),
        host_facts(memory_gib=560, cores=128, nodes=2),
        host_facts(memory_gib=512, cores=128, gpus_gib=(48, 48, 24, 24)),
        host_facts(memory_gib=1024, cores=128, storage_free_bytes=200 * GIB),
    ],
    ids=["memory", "nodes", "cards", "disk"],
)
def test_twenty_models_get_suggestions_within_the_trials(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from citadel_plan import api

    templates = list(production_models().values())
    models = {
        f"model-{number:02}": {**templates[number % 4], "request": {**templates[number % 4]["request"], "port": 11400 + 2 * number}}
        for number in range(20)
    }
    runs: list[object] = []
    real = api.parse_models
    monkeypatch.setattr(api, "parse_models", lambda *arguments: runs.append(None) or real(*arguments))
    refusal = refusal_of(models=models, facts=facts)
    assert len(runs) <= MAX_TRIALS + 1
    monkeypatch.undo()
    assert_all_plan(refusal, facts=facts, models=models)
