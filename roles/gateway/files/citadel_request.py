"""What a request asks for, read from its body: how long it is, how long its answer may be, and what it is like.

Nobody here has the models' tokenizers, and asking vLLM would cost a round trip with the whole prompt. So a prompt has two sizes:

* `prompt_tokens` is an estimate on the safe side: a weight per kind of character, calibrated against the tokenizer of Mixtral in
  tests/gateway/test_request.py. English comes out up to twice too long, unbroken random letters too short.
* `prompt_tokens_at_least` is certain: no token stands for more characters than the longest entry of the vocabulary.

The first chooses among models, the second refuses. What lies between them vLLM decides, which counts exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHAT: Final = "chat"
COMPLETION: Final = "completion"

# Tokens per character. Digits and punctuation are tokens of their own; capitals break words; scripts beyond the Latin one cost more
# characters the longer their UTF-8 is.
_TOKENS_PER_SMALL_LETTER: Final = 0.3
_TOKENS_PER_CAPITAL: Final = 1.2
_TOKENS_PER_DIGIT: Final = 1.3
_TOKENS_PER_SPACE: Final = 0.2
_TOKENS_PER_OTHER_ASCII: Final = 1.05
_TOKENS_PER_CHARACTER_OF_BYTES: Final = {2: 1.0, 3: 1.5, 4: 4.0}

# What a chat template writes around each message, and around them all.
_TOKENS_PER_MESSAGE: Final = 8
_TOKENS_PER_CHAT: Final = 8

# What a completion gets where it does not say how long it may be, in OpenAI's interface and in vLLM.
_USUAL_COMPLETION_TOKENS: Final = 16

# Of a long text only so much is looked at, in slices over its whole length: a megabyte costs no more than this.
_SAMPLED_CHARACTERS: Final = 32768
_SLICES: Final = 64

# An instruction stands at the beginning of the last message or at its end.
_INSTRUCTION_CHARACTERS: Final = 2000

_SMALL_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz"
_CAPITALS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS: Final = b"0123456789"
_CONTINUATION_BYTES: Final = bytes(range(0x80, 0xC0))
_LEAD_BYTES: Final = {2: bytes(range(0xC0, 0xE0)), 3: bytes(range(0xE0, 0xF0)), 4: bytes(range(0xF0, 0x100))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one request asks for.

    `answer_tokens` is the longest answer that the client has named, None where it has named none; `answers` says how many it wants.
    They do not share a context: each has the prompt and its own answer in it.
    """

    kind: str
    stream: bool
    turns: int
    prompt_tokens: int
    prompt_tokens_at_least: int
    answer_tokens: int | None
    answers: int
    instruction: str


def read_demand(body: Mapping[str, Any], *, chat: bool, longest_token_characters: int) -> Demand:
    """Read a request's body. What makes no sense counts as absent: the model refuses it in better words."""
    if chat:
        texts, fixed_tokens, instruction, turns = _read_messages(body)
        prompt_tokens, characters = fixed_tokens + estimate_tokens(texts), len(texts)
        at_least = -(-characters // longest_token_characters)
    else:
        prompts = list(_prompts(body.get("prompt")))
        prompt_tokens = max((len(prompt) if isinstance(prompt, list) else estimate_tokens(prompt) for prompt in prompts), default=0)
        at_least = max(
            (len(prompt) if isinstance(prompt, list) else -(-len(prompt) // longest_token_characters) for prompt in prompts), default=0
        )
        instruction = next((prompt for prompt in prompts if isinstance(prompt, str)), "")
        turns = 1
    kept = body.get("truncate_prompt_tokens")
    if isinstance(kept, int) and not isinstance(kept, bool):
        # The model cuts the prompt to this length, or to its own context.
        prompt_tokens, at_least = min(prompt_tokens, max(kept, 0)), min(at_least, max(kept, 0))
    answer_tokens = _count(body.get("max_completion_tokens")) or _count(body.get("max_tokens"))
    return Demand(
        kind=CHAT if chat else COMPLETION,
        stream=body.get("stream") is True,
        turns=turns,
        prompt_tokens=prompt_tokens,
        prompt_tokens_at_least=at_least,
        answer_tokens=answer_tokens if chat else answer_tokens or _USUAL_COMPLETION_TOKENS,
        answers=max(_count(body.get("n")) or 1, _count(body.get("best_of")) or 1),
        instruction=_ends(instruction),
    )


def estimate_tokens(text: str) -> int:
    """Estimate how many tokens a text is at most; as quick for a megabyte as for 32 kB."""
    if len(text) <= _SAMPLED_CHARACTERS:
        return _weigh(text)
    width = _SAMPLED_CHARACTERS // _SLICES
    step = (len(text) - width) / (_SLICES - 1)
    sample = "".join(text[start : start + width] for start in (int(step * number) for number in range(_SLICES)))
    return -(-_weigh(sample) * len(text) // len(sample))


def _weigh(text: str) -> int:
    # Python's own loops over characters would take a hundred times as long as these.
    data = text.encode("utf-8", "surrogatepass")
    small = _how_many(data, _SMALL_LETTERS)
    capitals = _how_many(data, _CAPITALS)
    digits = _how_many(data, _DIGITS)
    spaces = data.count(b" ")
    tokens = (
        small * _TOKENS_PER_SMALL_LETTER
        + capitals * _TOKENS_PER_CAPITAL
        + digits * _TOKENS_PER_DIGIT
        + spaces * _TOKENS_PER_SPACE
        + (len(data) - small - capitals - digits - spaces) * _TOKENS_PER_OTHER_ASCII
    )
    if not text.isascii():
        tokens -= _how_many(data, _CONTINUATION_BYTES) * _TOKENS_PER_OTHER_ASCII
        for width, lead_bytes in _LEAD_BYTES.items():
            tokens += _how_many(data, lead_bytes) * (_TOKENS_PER_CHARACTER_OF_BYTES[width] - _TOKENS_PER_OTHER_ASCII)
    return int(tokens) + 1


def _how_many(data: bytes, these: bytes) -> int:
    return len(data) - len(data.translate(None, these))


def _read_messages(body: Mapping[str, Any]) -> tuple[str, int, str, int]:
    """Everything that is read, what the template adds, the last thing that the user said, and how often the user has spoken."""
    given = body.get("messages")
    messages = [message for message in given if isinstance(message, dict)] if isinstance(given, list) else []
    texts = [text for message in messages for text in _strings(message)]
    tools = body.get("tools") or body.get("functions")
    if tools:
        texts.append(json.dumps(tools, ensure_ascii=False, default=str))
    spoken = [message for message in messages if message.get("role") == "user"]
    instruction = " ".join(_strings(spoken[-1].get("content"))) if spoken else ""
    return "".join(texts), _TOKENS_PER_CHAT + _TOKENS_PER_MESSAGE * len(messages), instruction, len(spoken)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("role", "type", "tool_call_id", "id"):
                yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _prompts(prompt: object) -> Iterator[str | list[int]]:
    """Each prompt of a completion: a text, or a list of tokens."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], int)):
        yield prompt
    elif isinstance(prompt, list):
        for item in prompt:
            if isinstance(item, (str, list)):
                yield item


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _ends(text: str) -> str:
    if len(text) <= 2 * _INSTRUCTION_CHARACTERS:
        return text
    return f"{text[:_INSTRUCTION_CHARACTERS]} {text[-_INSTRUCTION_CHARACTERS:]}"
