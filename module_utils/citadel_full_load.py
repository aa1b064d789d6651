"""The request that makes a model service hold the most that its plan allows."""

from __future__ import annotations

FIRST_TOKEN = 3  # below are the tokens that begin, end and pad


def full_load(model: str, context_tokens: int, num_seqs: int) -> dict[str, object]:
    """Body for /v1/completions: one prompt per sequence, and each prompt with its one token of answer is a full context.

    The prompts are token numbers and differ from their first token on, so that none is answered from the prefix cache.
    """
    prompts = [[FIRST_TOKEN + number] + [FIRST_TOKEN] * (context_tokens - 2) for number in range(num_seqs)]
    return {"model": model, "prompt": prompts, "max_tokens": 1, "ignore_eos": True}
