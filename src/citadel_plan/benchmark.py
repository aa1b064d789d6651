"""How quick a host's models are: what is measured, what the figures are compared with, and how they are shown.

What measures is vLLM's own `bench serve`; docs/benchmark.md says what the figures mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .columns import COLUMNS, Column, lay_out
from .prose import wrap
from .status import service_problems

Entry = Mapping[str, Any]

SCHEMA_VERSION: Final = 1

DIRECT: Final = "direct"
GATEWAY: Final = "gateway"

FIGURES: Final[Mapping[str, str]] = {
    "requests_per_second": "request_throughput",
    "output_tokens_per_second": "output_throughput_by_length",
    "ttft_p50_milliseconds": "p50_ttft_ms",
    "ttft_p95_milliseconds": "p95_ttft_ms",
    "tpot_p50_milliseconds": "p50_tpot_by_length_ms",
    "tpot_p95_milliseconds": "p95_tpot_by_length_ms",
    "e2e_p50_milliseconds": "p50_e2el_ms",
    "e2e_p95_milliseconds": "p95_e2el_ms",
}
"""Our name of each figure, and that of `bench serve` (vllm/benchmarks/serve.py) or, "by length", of module_utils/citadel_bench_serve.py."""

_TARGET_FIGURE: Final = "e2e_p95_milliseconds"

_SPARE_TOKENS: Final = 16
"""Left free of a context: what a tokenizer puts around a prompt, and the few tokens by which a random prompt misses its length."""

_REQUESTS_PER_PLACE: Final = 2
"""Where several requests run at once, at least so many per place: else most of the time nobody would come after the first."""

_NO_MATTER_OF_SPEED: Final = frozenset(
    {
        "api_port",
        "cpus_requested",
        "description",
        "expected_weights_bytes",
        "load_timeout_seconds",
        "max_output_tokens",
        "memory_requested_bytes",
        "metrics_port",
        "modes",
        "source",
        "specialisation",
        "stall_timeout_seconds",
        "state_port",
        "storage_needed_bytes",
        "storage_requested_bytes",
        "target_latency_milliseconds",
        "upstream_port",
    }
)
"""What may change of a service's plan, with the figures still to be compared. A key that is new counts until it is named here."""

_COLUMNS: Final[tuple[Column, ...]] = (
    ("model", str.ljust, 15),
    ("way", str.ljust, 7),
    ("at once", str.rjust, 7),
    ("in+out", str.rjust, 9),
    ("req/s", str.rjust, 6),
    ("tok/s", str.rjust, 6),
    ("TTFT p50/p95", str.rjust, 12),
    ("TPOT p50/p95", str.rjust, 12),
    ("E2E p50/p95", str.rjust, 13),
    ("target", str.rjust, 12),
    ("x req/s", str.rjust, 7),
    ("x E2E", str.rjust, 5),
)
"""With two spaces between them they fill a line, but for one column."""


def plan_fingerprint(plan: Entry, service: Entry, *, way: str) -> str:
    """Name all of a plan that the speed of one model depends on; through the gateway, the gateway's part as well.

    Args:
        plan: A plan in its plain form.
        service: The model's entry in it.
        way: ``direct`` or ``gateway``.

    Returns:
        Twelve hexadecimal digits: the same where the figures may be compared.

    """
    parts: dict[str, object] = {"device": plan["device"], "isa": plan["isa"]}
    parts["service"] = {key: value for key, value in service.items() if key not in _NO_MATTER_OF_SPEED}
    if way == GATEWAY:
        parts["gateway"] = {key: value for key, value in plan["gateway"].items() if key not in _NO_MATTER_OF_SPEED | {"port"}}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def benchmark_jobs(plan: Entry, *, status: Entry, settings: Entry) -> list[dict[str, Any]]:
    """Say what to measure of each model.

    Args:
        plan: The plan as deployed, in its plain form.
        status: What the module citadel_status returned: which models are able, and which version of vLLM serves them.
        settings: ``models`` (names, or none for all), ``input_tokens``, ``output_tokens``, ``prompts``, ``concurrency`` (or None for the
            plan's max_num_seqs), ``gateway_url`` (empty where the host has no gateway), ``runtime_folder`` and ``models_folder``.

    Returns:
        Per model its ``model`` (name), ``unready`` (why nothing can be measured, else empty), ``python`` of its runtime, ``tokenizer``, and
        ``runs``: each with its ``way``, ``base_url``, ``concurrency``, ``prompts``, ``input_tokens`` and ``output_tokens``. First one
        request at a time, then as many as the plan holds; each both ways.

    Raises:
        ValueError: With a sentence for everything that is wrong with the settings.

    """
    numbers, problems = {}, []
    for name in ("input_tokens", "output_tokens", "prompts", "concurrency"):
        given = settings[name]
        numbers[name] = int(given) if str(given).isdecimal() else 0
        if not numbers[name] and not (name == "concurrency" and given is None):
            problems.append(f"benchmark_{name} is '{given}', but must be a whole number from 1.")
    asked = settings["models"].split(",") if isinstance(settings["models"], str) else settings["models"]
    names = [service["name"] for service in plan["services"]]
    problems += [f"benchmark_models names {name}; the models are {', '.join(names)}." for name in asked if name not in names]
    if problems:
        raise ValueError(" ".join(problems))
    states = {service["name"]: service for service in status["services"] if service["kind"] == "model"}
    jobs = []
    for service in plan["services"]:
        if asked and service["name"] not in asked:
            continue
        room = service["context_tokens"] - _SPARE_TOKENS
        output_tokens = min(numbers["output_tokens"], service["max_output_tokens"], room - 1)
        most = min(numbers["concurrency"] or service["max_num_seqs"], service["max_num_seqs"])
        ways = {DIRECT: f"http://127.0.0.1:{service['api_port']}", GATEWAY: settings["gateway_url"]}
        runs = [
            {
                "way": way,
                "base_url": url,
                "concurrency": concurrency,
                "prompts": numbers["prompts"] if concurrency == 1 else max(numbers["prompts"], _REQUESTS_PER_PLACE * concurrency),
                "input_tokens": min(numbers["input_tokens"], room - output_tokens),
                "output_tokens": output_tokens,
            }
            for concurrency in sorted({1, most})
            for way, url in ways.items()
            if url
        ]
        jobs.append(
            {
                "model": service["name"],
                "unready": _unready(states[service["name"]]),
                "python": f"{settings['runtime_folder']}/{states[service['name']]['version']}/bin/python",
                "tokenizer": f"{settings['models_folder']}/{service['name']}",
                "runs": runs,
            }
        )
    return jobs


def _unready(state: Entry) -> str:
    """Why a model cannot be measured: down, or another would answer for it."""
    if problems := list(service_problems(state)):
        return problems[0]
    if state["breaker"] in {"open", "half-open"}:
        return f"{state['name']} generates, but the edge's breaker of it is {state['breaker']}. Next: journalctl -u haproxy -n 50"
    return ""


def benchmark_records(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read records of earlier benchmarks.

    Args:
        texts: The text of each file by its name.

    Returns:
        The records, the latest last.

    Raises:
        ValueError: With a sentence that names a file that holds none.

    """
    records = []
    for name, text in texts.items():
        try:
            record = json.loads(text)
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION or "measurements" not in record:
            raise ValueError(
                f"{name} is no record of a benchmark as this version of the project writes it: remove it, or name another one."
            )
        records.append(record)
    return sorted(records, key=lambda record: str(record["started"]))


def benchmark_record(
    plan: Entry,
    *,
    jobs: Sequence[Entry],
    measured: Mapping[str, Sequence[Entry]],
    status: Entry,
    started: str,
    citadel_version: str,
    earlier: Sequence[Entry],
    any_plan: bool,
) -> dict[str, Any]:
    """Put together what was measured, and compare it with the targets and with the last baseline.

    Args:
        plan: The plan as deployed, in its plain form.
        jobs: What :func:`benchmark_jobs` gave.
        measured: Per model that was measured, for each of its runs ``result`` (what `bench serve` found, or None) and ``problem``.
        status: What the module citadel_status returned.
        started: When, in UTC: ``2026-11-24T03:12:07Z``.
        citadel_version: Commit of the project; may be empty.
        earlier: What :func:`benchmark_records` gave: for each measurement the latest that measured the same is its baseline.
        any_plan: Whether a measurement with another plan may be the baseline, too.

    Returns:
        The record, in plain types.

    """
    services = {service["name"]: service for service in plan["services"]}
    versions = {(service["kind"], service["name"]): service["version"] for service in status["services"]}
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "host": plan["host"],
        "started": started,
        "device": plan["device"],
        "isa": plan["isa"],
        "versions": {
            "citadel": citadel_version,
            "litellm": versions.get(("gateway", "gateway")),
            "haproxy": versions.get(("edge", "edge")),
        },
        "measurements": [],
    }
    for job in jobs:
        service = services[job["model"]]
        for number, run in enumerate(job["runs"]):
            answer: Entry = {"result": None, "problem": ""} if job["unready"] else measured[job["model"]][number]
            measurement = {
                "model": service["name"],
                "variant": service["variant"],
                "vllm": versions["model", service["name"]],
                "plan_fingerprint": plan_fingerprint(plan, service, way=run["way"]),
                **{key: value for key, value in run.items() if key != "base_url"},
                **_figures(answer["result"]),
                "target_latency_milliseconds": service["target_latency_milliseconds"],
                "target_met": None,
                "problem": job["unready"],
                "baseline": None,
                "bench_serve": answer["result"],
            }
            if not job["unready"]:
                measurement["problem"] = _problem(measurement, answer)
            if not measurement["problem"]:
                if run["concurrency"] == 1:
                    measurement["target_met"] = measurement["figures"][_TARGET_FIGURE] <= service["target_latency_milliseconds"]
                measurement["baseline"] = _baseline(record, measurement, earlier, any_plan=any_plan)
            record["measurements"].append(measurement)
    return record


def _figures(result: Entry | None) -> dict[str, Any]:
    if not result:
        return {"figures": None, "failed_requests": 0}
    found = {name: round(float(result[key]), 6) for name, key in FIGURES.items()} if result["completed"] else None
    return {"figures": found, "failed_requests": result["failed"]}


def _problem(measurement: Entry, answer: Entry) -> str:
    """Say why the figures do not count, if they do not."""
    if answer["problem"]:
        return f"{_name(measurement)}, was not measured: {answer['problem'].rstrip('.')}."
    if failed := measurement["failed_requests"]:
        errors = f" ({'; '.join(answer['result']['errors'])})" if answer["result"]["errors"] else ""
        return f"{_name(measurement)}: {failed} of {measurement['prompts']} requests failed{errors}."
    return ""


def _name(measurement: Entry) -> str:
    way = "through the gateway" if measurement["way"] == GATEWAY else "asked directly"
    return f"{measurement['model']}, {way}, {measurement['concurrency']} at once"


def _baseline(record: Entry, measurement: Entry, earlier: Sequence[Entry], *, any_plan: bool) -> dict[str, Any] | None:
    same = ("model", "way", "concurrency", "input_tokens", "output_tokens")
    for before in reversed(earlier):
        for found in before["measurements"]:
            same_plan = found["plan_fingerprint"] == measurement["plan_fingerprint"]
            if found["problem"] or not (same_plan or any_plan) or any(found[key] != measurement[key] for key in same):
                continue
            now, then = ({**whole["versions"], "vllm": part["vllm"]} for whole, part in ((record, measurement), (before, found)))
            return {
                "started": before["started"],
                "same_plan": same_plan,
                "changed": [f"{name} {then[name]} -> {now[name]}" for name in now if then.get(name) and then[name] != now[name]],
                "ratios": {
                    name: round(value / found["figures"][name], 3) if found["figures"][name] else None
                    for name, value in measurement["figures"].items()
                },
            }
    return None


def benchmark_problems(record: Entry, *, tolerance_percent: float) -> list[str]:
    """Say what is not as it should be.

    Args:
        record: What :func:`benchmark_record` gave.
        tolerance_percent: By how many percent fewer requests per second, or a longer E2E p95, than the baseline's are still as good.

    Returns:
        A sentence for each measurement that failed, that misses its target or that is slower than its baseline; none where all is well.

    """
    return list(dict.fromkeys(sentence for found in record["measurements"] for sentence in _problems(found, tolerance_percent)))


def _problems(measurement: Entry, tolerance_percent: float) -> Iterator[str]:
    if measurement["problem"]:
        yield measurement["problem"]
        return
    figures = measurement["figures"]
    if measurement["target_met"] is False:
        yield (
            f"{_name(measurement)}, misses its target: p95 of E2E is {_short(figures[_TARGET_FIGURE])} ms instead of"
            f" {measurement['target_latency_milliseconds']}."
        )
    baseline = measurement["baseline"]
    if not baseline:
        return
    rate, latency = baseline["ratios"]["requests_per_second"], baseline["ratios"][_TARGET_FIGURE]
    slower = []
    if rate is not None and rate * 100 < 100 - tolerance_percent:
        slower.append(f"{rate:.2f} times the requests per second")
    if latency is not None and latency * 100 > 100 + tolerance_percent:
        slower.append(f"{latency:.2f} times the p95 of E2E")
    if slower:
        yield f"{_name(measurement)}, is slower than on {baseline['started']}: {' and '.join(slower)}."


def benchmark_table(record: Entry, *, tolerance_percent: float) -> str:
    """Lay a record out in columns.

    Args:
        record: What :func:`benchmark_record` gave.
        tolerance_percent: As for :func:`benchmark_problems`.

    Returns:
        Lines of at most :data:`~citadel_plan.columns.COLUMNS`: a heading, a row per measurement, the versions, the baselines, and what is
        not as it should be.

    """
    measurements = record["measurements"]
    device = ", ".join(filter(None, (record["device"], record["isa"])))
    lines = [f"{record['host']} ({device}) at {record['started']}; times in milliseconds, x: as a multiple of the baseline"]
    lines += lay_out(_COLUMNS, [_cells(measurement) for measurement in measurements])
    versions = {name: version for name, version in record["versions"].items() if version}
    served = ", ".join(dict.fromkeys(str(measurement["vllm"]) for measurement in measurements))
    lines += _wrapped(f"versions: {', '.join(f'{name} {version}' for name, version in versions.items())}, vllm {served}")
    groups: dict[str, list[str]] = {}
    for measurement in measurements:
        if not measurement["problem"]:
            groups.setdefault(_compared_with(measurement["baseline"]), []).append(measurement["model"])
    for sentence, models in groups.items():
        lines += _wrapped(f"{sentence}: {', '.join(dict.fromkeys(models))}")
    problems = benchmark_problems(record, tolerance_percent=tolerance_percent)
    if not problems:
        return "\n".join([*lines, "All well."])
    lines.append("Not well (docs/benchmark.md):")
    return "\n".join([*lines, *(line for problem in problems for line in _wrapped(f"- {problem}"))])


def _compared_with(baseline: Entry | None) -> str:
    if baseline is None:
        return "no baseline"
    return f"baseline of {baseline['started']}" + "".join(
        f", {difference}" for difference in ([] if baseline["same_plan"] else ["another plan"]) + baseline["changed"]
    )


def _wrapped(sentence: str) -> list[str]:
    return wrap(" ".join(sentence.split()), columns=COLUMNS)


def _cells(measurement: Entry) -> tuple[str, ...]:
    first = (
        measurement["model"],
        measurement["way"],
        str(measurement["concurrency"]),
        f"{measurement['input_tokens']}+{measurement['output_tokens']}",
    )
    figures = measurement["figures"]
    if figures is None:
        return (*first, *["-"] * (len(_COLUMNS) - len(first)))
    pairs = (
        f"{_short(figures[f'{name}_p50_milliseconds'])}/{_short(figures[f'{name}_p95_milliseconds'])}" for name in ("ttft", "tpot", "e2e")
    )
    met = {True: "met", False: "missed"}.get(measurement["target_met"])
    ratios = measurement["baseline"]["ratios"] if measurement["baseline"] else {}
    return (
        *first,
        _short(figures["requests_per_second"]),
        _short(figures["output_tokens_per_second"]),
        *pairs,
        f"{measurement['target_latency_milliseconds']} {met}" if met else "-",
        *(f"{ratio:.2f}" if (ratio := ratios.get(name)) is not None else "-" for name in ("requests_per_second", _TARGET_FIGURE)),
    )


def _short(value: float) -> str:
    """Three digits or what it takes."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
