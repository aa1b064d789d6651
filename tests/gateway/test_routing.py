"""The gateway's own decisions, apart from LiteLLM."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from citadel_answers import is_verdict_on_request, note_failure, refusal_after, refusal_before, without_quotations
from citadel_request import read_demand
from citadel_routing import Course, Decision, Rules, decide, leaves_choice_open, load_rules, permitted_models, read_state
from gateway.choices import CASES, DOWN, HERMES, INVENTORY, MIXTRAL, OPENCHAT, PARAGRAPH, PHI, Case, chat, state_document
from gateway.harness import MODELS, ROLE, role_variables
from rendering import render

if TYPE_CHECKING:
    from pathlib import Path

LENGTH = "This model's maximum context length is 8192 tokens. However, your prompt contains {} input tokens, which exceeds this limit."


def upstream(name: str, **changes: object) -> dict[str, Any]:
    return {
        "model": name,
        "api_base": "http://127.0.0.1:31400/v1",
        "context_tokens": MODELS[name]["context_tokens"],
        "modes": ["chat", "completion"],
    } | changes


def rules(tmp_path: Path, **changes: object) -> Rules:
    """Read the rules as the gateway does, from the file that the role writes."""
    variables = role_variables() | INVENTORY | {"gateway_upstreams": [upstream(name) for name in MODELS]} | changes
    file = tmp_path / "routing.json"
    file.write_text(render(ROLE / "templates" / "routing.json.j2", variables), encoding="utf-8")
    return load_rules(file)


def decided(of: Rules, case: Case) -> Any:  # noqa: ANN401 - any of the decisions
    demand = read_demand(case.body, chat=case.chat, longest_token_characters=of.longest_token_characters)
    named = case.body.get("model")
    return decide(
        of,
        demand,
        named=None if leaves_choice_open(named) else named,
        state=read_state(state_document(case.state)),
        permitted=permitted_models(case.permitted),
    )


@pytest.mark.parametrize("case", CASES)
def test_the_table(tmp_path: Path, case: str) -> None:
    of = rules(tmp_path, gateway_longer_models=CASES[case].longer_models)
    decision = decided(of, CASES[case])
    if isinstance(decision, Decision):
        assert (decision.route, decision.model) == CASES[case].answer
    else:
        refusal = refusal_before(decision, of)
        assert (str(refusal.status), refusal.code) == CASES[case].answer
    assert decision == decided(of, CASES[case]), "the same request and the same state"


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", ["short", "three turns", "key, short", "longer than anybody but one"])
def test_everybody_else_who_may_and_can_is_asked_afterwards(tmp_path: Path, case: str) -> None:
    decision = decided(rules(tmp_path), CASES[case])
    permitted = permitted_models(CASES[case].permitted) or set(MODELS)
    too_short = {PHI} if case == "longer than anybody but one" else set()
    assert set(decision.others) | {decision.model} == permitted - too_short


def test_fallbacks_that_surely_do_not_fit_are_passed_over(tmp_path: Path) -> None:
    of = rules(tmp_path)
    assert decided(of, Case(body=chat("Hi", model=MIXTRAL), answer=("", ""))).on_failure == (HERMES, OPENCHAT)
    assert decided(of, Case(body=chat(PARAGRAPH * 1000, model=MIXTRAL), answer=("", ""))).on_failure == (HERMES,)
    assert decided(of, Case(body=chat("Hi", model=MIXTRAL), permitted=f"{MIXTRAL},{OPENCHAT}", answer=("", ""))).on_failure == (OPENCHAT,)


def test_fallbacks_that_are_down_come_last(tmp_path: Path) -> None:
    case = Case(body=chat("Hi", model=PHI), state={OPENCHAT: DOWN}, answer=("", ""))
    assert decided(rules(tmp_path), case).on_failure == (HERMES, MIXTRAL, OPENCHAT)


def test_a_model_of_which_nothing_is_known_is_able(tmp_path: Path) -> None:
    of = rules(tmp_path)
    demand = read_demand(chat("Hi"), chat=True, longest_token_characters=16)
    assert decide(of, demand, named=None, state={}, permitted=None) == decided(of, CASES["short"])


def test_a_kind_that_a_model_does_not_have_is_not_for_it(tmp_path: Path) -> None:
    of = rules(tmp_path, gateway_upstreams=[upstream(name, modes=["completion"] if name == PHI else ["chat"]) for name in MODELS])
    assert decided(of, CASES["short"]).model == OPENCHAT
    assert decided(of, CASES["short completion"]).others == []


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("named, and cannot fit", ["phi-3-mini holds 2048 tokens", "at least 2625", "mixtral-8x7b would take it"]),
        ("named, and no room for the answer", ["the answer 2048 (max_tokens)", "openchat-3.5 would take it"]),
        ("key, too long for its models", ["hermes-2 holds 8192 tokens", "No model here would take it"]),
    ],
)
def test_a_refusal_says_the_limit_the_size_and_the_way_out(tmp_path: Path, case: str, words: list[str]) -> None:
    sentence = decided(rules(tmp_path), CASES[case]).sentence
    assert not [word for word in words if word not in sentence], sentence


def course(tmp_path: Path, case: Case, **changes: object) -> tuple[Course, Rules]:
    of = rules(tmp_path, **changes)
    demand = read_demand(case.body, chat=True, longest_token_characters=16)
    return Course(decision=decided(of, case), demand=demand, permitted=permitted_models(case.permitted)), of


def fail(of: Course, model: str, status: int, message: str = "", retry_after: str | None = None) -> None:
    of.asked.append(model)
    note_failure(of, model=model, status=status, message=message, retry_after=retry_after)


def may_ask(of: Course, with_rules: Rules) -> set[str]:
    return {name for name in MODELS if name not in of.asked and of.may_ask(with_rules, name)}


def test_after_a_failure_the_others_are_asked(tmp_path: Path) -> None:
    run, of = course(tmp_path, CASES["short"])
    fail(run, PHI, 503)
    assert may_ask(run, of) == {OPENCHAT, HERMES, MIXTRAL}
    run.asked.append(OPENCHAT)
    assert run.route == "fallback:short"


def test_after_a_refusal_for_length_only_longer_ones_are_asked(tmp_path: Path) -> None:
    run, of = course(tmp_path, CASES["short"])
    fail(run, PHI, 503)
    fail(run, HERMES, 400, LENGTH.format(9000))
    assert may_ask(run, of) == {MIXTRAL}
    run.asked.append(MIXTRAL)
    assert run.route == "longer:short"


def test_after_another_refusal_nobody_is_asked(tmp_path: Path) -> None:
    run, of = course(tmp_path, CASES["short"])
    fail(run, PHI, 400, "temperature must be non-negative")
    assert may_ask(run, of) == set()
    refusal = refusal_after(run, of)
    assert refusal is not None
    assert (refusal.status, refusal.message) == (400, "temperature must be non-negative"), "the model's own words"


def test_a_named_model_refuses_for_length_unless_a_longer_one_is_allowed(tmp_path: Path) -> None:
    case = Case(body=chat("Hi", model=HERMES), answer=("", ""))
    run, of = course(tmp_path, case)
    fail(run, HERMES, 400, LENGTH.format("at least 8193"))
    assert may_ask(run, of) == set()
    refusal = refusal_after(run, of)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    assert refusal.message == (
        "hermes-2 holds 8192 tokens, prompt and answer together; the prompt has at least 8193 (estimated: 8193)."
        " mixtral-8x7b would take it."
    )
    run, of = course(tmp_path, case, gateway_longer_models={HERMES: [OPENCHAT, MIXTRAL]})
    fail(run, HERMES, 400, LENGTH.format(9000))
    assert may_ask(run, of) == {MIXTRAL}


@pytest.mark.parametrize(
    ("statuses", "status", "code"),
    [([503, 503], 503, "model_unavailable"), ([429, 503], 503, "model_unavailable"), ([429, 429], 429, "model_unavailable"),
     ([500, 500], 503, "model_unavailable"), ([408, 408], 504, "model_timeout")],
)  # fmt: skip
def test_what_a_client_is_told_when_nobody_can_answer(tmp_path: Path, statuses: list[int], status: int, code: str) -> None:
    run, of = course(tmp_path, CASES["short"])
    for model, answer in zip((PHI, OPENCHAT), statuses, strict=True):
        fail(run, model, answer)
    refusal = refusal_after(run, of)
    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (status, code, None if status == 504 else 5)


def test_it_waits_as_long_as_the_edge_says(tmp_path: Path) -> None:
    run, of = course(tmp_path, CASES["named"])
    fail(run, MIXTRAL, 503, retry_after="17")
    refusal = refusal_after(run, of)
    assert refusal is not None
    assert refusal.retry_after_seconds == 17
    assert refusal.message == "The model mixtral-8x7b cannot take the request at the moment."


def test_a_shorter_model_s_refusal_does_not_hide_that_the_longer_one_is_away(tmp_path: Path) -> None:
    run, of = course(tmp_path, CASES["short"])
    fail(run, MIXTRAL, 503)
    fail(run, PHI, 400, LENGTH.format(9000))
    refusal = refusal_after(run, of)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_seconds) == (503, 5)


@pytest.mark.parametrize("requested", [None, "", "auto"])
def test_the_choice_is_open(requested: object) -> None:
    assert leaves_choice_open(requested)


@pytest.mark.parametrize("requested", ["hermes-2", "AUTO", "automatic", " ", 0, False, [], {}])
def test_the_choice_is_made(requested: object) -> None:
    assert not leaves_choice_open(requested)


@pytest.mark.parametrize(
    ("status", "is_verdict"),
    [(400, True), (413, True), (422, True), (401, False), (404, False), (429, False), (500, False), (None, False)],
)
def test_only_faults_of_the_request_are_verdicts(status: object, is_verdict: bool) -> None:
    assert is_verdict_on_request(status) is is_verdict


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "Exception occured - id=7 - litellm.BadRequestError: OpenAIException - {'input': 'secret'}\nsecret",
            "OpenAIException - (the model's own words are not logged)",
        ),
        ("Hosted_vllmException - secret", "Hosted_vllmException - (the model's own words are not logged)"),
        (
            "400: {'error': '/completions: Invalid model name passed in model=secret. Call `/v1/models`'}",
            "Invalid model name passed in (what clients write is not logged)",
        ),
        ("Uvicorn running on http://127.0.0.1:8000", "Uvicorn running on http://127.0.0.1:8000"),
    ],
)
def test_what_a_model_answered_and_a_client_wrote_is_cut_out(text: str, kept: str) -> None:
    shown = without_quotations(text)
    assert shown.endswith(kept)
    assert "secret" not in shown


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rules": None}, "is not what the role gateway writes"),
        ({"rules": [{"name": "a", "models": [PHI], "when": {"temperature": 1}}]}, "is not what the role gateway writes"),
        ({"rules": [{"name": "a", "models": ["gpt-4"]}]}, "names gpt-4, which no upstream serves"),
        ({"fallbacks": {PHI: ["gpt-4"]}}, "names gpt-4, which no upstream serves"),
        ({"longer_models": {"gpt-4": [PHI]}}, "names gpt-4, which no upstream serves"),
    ],
)
def test_rules_that_make_no_sense_stop_the_start(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    rules(tmp_path)
    file = tmp_path / "routing.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        load_rules(file)


def test_what_is_read_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        rules(tmp_path).retry_after_seconds = 7
