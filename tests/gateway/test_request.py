"""How long a request is taken to be, against what the real tokenizer counts, and what vLLM says when it is too long."""

from __future__ import annotations

import argparse
import base64
import json
import random
import subprocess
import textwrap
import typing
from pathlib import Path
from typing import Any, Final

import pytest

from citadel_answers import note_failure
from citadel_request import estimate_tokens, read_demand
from citadel_routing import Course, Decision
from rendering import PROJECT
from runtimes import vllm_python

GERMAN = (
    "Der schnelle braune Fuchs springt über den faulen Hund. Größere Änderungen müssen geprüft werden, bevor sie auf den Rechnern"
    " ausgerollt werden; außerdem heißt es, dass Überlastung vermieden werden könne. "
)
RUSSIAN = "Быстрая коричневая лиса перепрыгивает через ленивую собаку. Большие изменения должны быть проверены. "
CHINESE = "敏捷的棕色狐狸跳过了懒狗。较大的更改在部署到服务器之前必须经过检查，并且应当避免过载。"  # noqa: RUF001 - Chinese punctuation is meant
JAPANESE = "素早い茶色の狐がのろまな犬を飛び越える。大きな変更はサーバーに展開する前に確認しなければなりません。"
KOREAN = "빠른 갈색 여우가 게으른 개를 뛰어넘습니다. 큰 변경 사항은 서버에 배포하기 전에 확인해야 합니다. "
ARABIC = "الثعلب البني السريع يقفز فوق الكلب الكسول. يجب فحص التغييرات الكبيرة قبل نشرها على الخوادم. "
HINDI = "तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। बड़े बदलावों की जाँच तैनात करने से पहले की जानी चाहिए। "
EMOJI = "😀🎉🚀🔥💡✨"


def _texts() -> dict[str, str]:
    randomness = random.Random(1)  # noqa: S311 - the same text each time
    noise = randomness.randbytes(9000)
    read = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (argparse, typing)]
    return {
        "english": " ".join((PROJECT / "docs" / name).read_text(encoding="utf-8") for name in ("services.md", "plan.md")),
        "python": "".join(read),
        "yaml": (PROJECT / "roles/gateway/meta/argument_specs.yml").read_text(encoding="utf-8"),
        "json": json.dumps([{"id": number, "name": f"user{number}", "value": number * 3.7} for number in range(200)], indent=1),
        "numbers": " ".join(str(randomness.random()) for _ in range(500)),
        "base64": base64.b64encode(noise).decode(),
        "hexadecimal": noise.hex(),
        "spaces": " " * 5000,
        "lines": "\n" * 3000,
        "german": GERMAN * 10,
        "russian": RUSSIAN * 10,
        "chinese": CHINESE * 10,
        "japanese": JAPANESE * 10,
        "korean": KOREAN * 10,
        "arabic": ARABIC * 10,
        "hindi": HINDI * 10,
        "emoji": EMOJI * 40,
    }


TEXTS: Final = _texts()

_COUNT = """
import json, pathlib, sys
import mistral_common, sentencepiece
model = pathlib.Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
counter = sentencepiece.SentencePieceProcessor(model_file=str(model))
texts = json.load(sys.stdin)
longest = max(len(counter.id_to_piece(number)) for number in range(counter.vocab_size()))
json.dump({"tokens": {name: len(counter.encode(text)) for name, text in texts.items()}, "longest": longest}, sys.stdout)
"""

# Each as vLLM itself checks it: the length of the text before it is tokenized, that of the tokens, and that of the answer.
_REFUSE = """
import json, sys
from types import SimpleNamespace
from vllm.renderers.params import TokenizeParams
names = {"max_total_tokens_param": "max_model_len", "max_output_tokens_param": "max_tokens"}
parameters = TokenizeParams(max_total_tokens=2048, max_output_tokens=16, **names)
tokenizer = SimpleNamespace(max_chars_per_token=16, truncation_side="left")
def said(attempt):
    try:
        attempt()
    except Exception as error:
        return str(error)
json.dump({
    "text": said(lambda: parameters._text_len_check(tokenizer, "x" * 40000)),
    "tokens": said(lambda: parameters._token_len_check(tokenizer, [1] * 3000)),
    "cut tokens": said(lambda: parameters._token_len_check(tokenizer, [1] * 2049)),
    "answer": said(lambda: TokenizeParams(max_total_tokens=2048, max_output_tokens=4000, **names)),
}, sys.stdout)
"""


def in_vllm(program: str, given: object = None) -> Any:  # noqa: ANN401 - JSON
    """Run a program with the Python that has vLLM in it, and what vLLM brings along; it answers in JSON on its last line."""
    run = subprocess.run(
        [vllm_python(), "-c", textwrap.dedent(program)], input=json.dumps(given), capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    """What the tokenizer of Mixtral-8x7B counts; that of Hermes 2 and OpenChat is the same with two tokens more."""
    return dict(in_vllm(_COUNT, TEXTS))


@pytest.mark.parametrize("name", TEXTS)
def test_the_estimate_errs_on_the_safe_side_and_not_by_much(counted: dict[str, Any], name: str) -> None:
    ratio = estimate_tokens(TEXTS[name]) / counted["tokens"][name]
    assert 1.0 <= ratio <= {"spaces": 4, "russian": 2.5, "emoji": 2.5}.get(name, 1.75)


@pytest.mark.parametrize("name", TEXTS)
def test_a_prompt_surely_has_as_many_tokens(counted: dict[str, Any], name: str) -> None:
    longest = role_longest_token()
    demand = read_demand({"prompt": TEXTS[name]}, chat=False, longest_token_characters=longest)
    assert demand.prompt_tokens_at_least <= counted["tokens"][name]
    assert longest == counted["longest"]


def role_longest_token() -> int:
    from rendering import role_defaults

    return int(role_defaults("gateway")["gateway_longest_token_characters"])


@pytest.mark.parametrize("name", ["english", "python"])
def test_a_sample_of_a_long_text_says_the_same(name: str) -> None:
    long = TEXTS[name] * 20
    exact = sum(estimate_tokens(long[start : start + 20000]) for start in range(0, len(long), 20000))
    assert estimate_tokens(long) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(("which", "counted_tokens"), [("text", None), ("tokens", 3000), ("cut tokens", 2049), ("answer", None)])
def test_what_vllm_says_of_a_request_that_is_too_long_is_understood(
    vllm_says: dict[str, str], which: str, counted_tokens: int | None
) -> None:
    demand = read_demand({"prompt": "Hi"}, chat=False, longest_token_characters=16)
    course = Course(decision=Decision(route="named", model="phi-3-mini"), demand=demand, permitted=None)
    note_failure(course, model="phi-3-mini", status=400, message=vllm_says[which], retry_after=None)
    assert course.too_long == {"phi-3-mini": counted_tokens}, vllm_says[which]


@pytest.fixture(scope="module")
def vllm_says() -> dict[str, str]:
    return dict(in_vllm(_REFUSE))


def demand_of(body: dict[str, Any], *, chat: bool = True) -> Any:  # noqa: ANN401 - read field by field
    return read_demand(body, chat=chat, longest_token_characters=16)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"max_tokens": 9}, 9),
        ({"max_completion_tokens": 9}, 9),
        ({"max_completion_tokens": 9, "max_tokens": 8}, 9),
        ({"max_tokens": None}, None),
        ({"max_tokens": "9"}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": True}, None),
        ({}, None),
    ],
)
def test_how_long_the_answer_may_be(body: dict[str, Any], tokens: int | None) -> None:
    assert demand_of({"messages": []} | body).answer_tokens == tokens


def test_a_completion_is_short_unless_it_says_otherwise() -> None:
    assert demand_of({"prompt": "Hi"}, chat=False).answer_tokens == 16


@pytest.mark.parametrize(("kept", "tokens"), [(100, 100), (-1, 0), (100000, 5000)])
def test_a_prompt_that_the_model_cuts_is_as_long_as_it_leaves_it(kept: int, tokens: int) -> None:
    assert demand_of({"prompt": [1] * 5000, "truncate_prompt_tokens": kept}, chat=False).prompt_tokens_at_least == tokens


def test_everything_that_is_said_counts() -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "x" * 400}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "x" * 400}}]}
    plain = demand_of({"messages": [{"role": "user", "content": "x" * 400}]})
    assert plain.prompt_tokens_at_least == 25
    assert demand_of({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 400}]}]}) == plain
    assert demand_of({"messages": [call]}).prompt_tokens_at_least == 26
    assert demand_of({"messages": [], "tools": [tool]}).prompt_tokens_at_least > 25


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": None}, {"messages": "hi"}, {"messages": [1, None]}, {"messages": [{}]}, {"messages": [{"content": 7}]}],
)
def test_nonsense_is_measured_without_a_fault(body: dict[str, Any]) -> None:
    assert demand_of(body).prompt_tokens < 20
    assert demand_of({"prompt": body.get("messages")}, chat=False).prompt_tokens < 20
