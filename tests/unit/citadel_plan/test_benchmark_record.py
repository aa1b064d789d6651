"""What is measured of each model, what the figures are compared with, and how they are shown."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from citadel_plan import benchmark_jobs, benchmark_problems, benchmark_record, benchmark_records, benchmark_table
from citadel_plan.benchmark import FIGURES, plan_fingerprint
from citadel_plan.columns import COLUMNS
from citadel_plan.result import ServicePlan
from unit.plan_examples import PROJECT, production_plan

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("recorded").joinpath("bench_serve.json").read_text(encoding="utf-8"))
VLLM = "0.32.0-1a2b3c4d5e6f"
STARTED = "2026-11-24T03:12:07Z"
SETTINGS: dict[str, Any] = {
    "models": [],
    "input_tokens": 128,
    "output_tokens": 32,
    "prompts": 20,
    "concurrency": None,
    "gateway_url": "http://192.168.10.29:8000",
    "runtime_folder": "/opt/citadel/runtime/vllm",
    "models_folder": "/opt/models",
}
PLAN: dict[str, Any] = production_plan().to_dict()
NAMES = [service["name"] for service in PLAN["services"]]
PLACES = {service["name"]: service["max_num_seqs"] for service in PLAN["services"]}


def status(**models: dict[str, Any]) -> dict[str, Any]:
    """All is well, but for what is said of each model."""
    well = {"kind": "model", "answers": True, "load_state": "loaded", "active_state": "active", "sub_state": "running", "result": "success"}
    well |= {"state": "generating", "detail": "", "status_text": "", "breaker": "closed", "version": VLLM, "asked": "127.0.0.1:21401/state"}
    services = [well | {"name": name, "unit": f"citadel-llm@{name}.service"} | models.get(name, {}) for name in NAMES]
    parts = [("gateway", "1.106.2-a1b2c3d4e5f6"), ("edge", "2.6.12-1+deb12u4")]
    return {"services": services + [{"kind": name, "name": name, "version": version} for name, version in parts]}


def jobs(*, found: dict[str, Any] | None = None, **settings: object) -> list[dict[str, Any]]:
    return benchmark_jobs(PLAN, status=found or status(), settings=SETTINGS | settings)


def answer(slower: float = 1.0, *, failed: int = 0, errors: tuple[str, ...] = (), **figures: float) -> dict[str, Any]:
    """As recorded, but for figures by our names, and so many times slower."""
    result = RECORDED | {"failed": failed, "errors": list(errors)}
    for name, key in FIGURES.items():
        value = figures.get(name, result[key])
        result[key] = value / slower if name.endswith("per_second") else value * slower
    return {"result": result, "problem": ""}


def record(
    answers: dict[tuple[str, str, int], dict[str, Any]] | None = None,
    *,
    earlier: list[dict[str, Any]] | None = None,
    plan: dict[str, Any] = PLAN,
    found: dict[str, Any] | None = None,
    any_plan: bool = False,
    started: str = STARTED,
    **settings: object,
) -> dict[str, Any]:
    """Measure; `answers` by model, way and concurrency, as recorded where there is none."""
    work = benchmark_jobs(plan, status=found or status(), settings=SETTINGS | settings)
    given = answers or {}
    measured = {
        job["model"]: [given.get((job["model"], run["way"], run["concurrency"]), answer()) for run in job["runs"]]
        for job in work
        if not job["unready"]
    }
    result = benchmark_record(
        plan,
        jobs=work,
        measured=measured,
        status=found or status(),
        started=started,
        citadel_version="eb3f144c0ffe",
        earlier=earlier or [],
        any_plan=any_plan,
    )
    return dict(json.loads(json.dumps(result)))


def one(whole: dict[str, Any], model: str = "hermes-2", way: str = "direct", concurrency: int = 1) -> dict[str, Any]:
    (found,) = (each for each in whole["measurements"] if (each["model"], each["way"], each["concurrency"]) == (model, way, concurrency))
    return dict(found)


def changed(**changes: object) -> dict[str, Any]:
    """The plan with other values for hermes-2."""
    plan = copy.deepcopy(PLAN)
    next(service for service in plan["services"] if service["name"] == "hermes-2").update(changes)
    return plan


def test_each_model_is_asked_both_ways_alone_and_at_its_fullest() -> None:
    work = jobs()
    assert [job["model"] for job in work] == NAMES
    for job, service in zip(work, PLAN["services"], strict=True):
        assert job["unready"] == ""
        assert job["python"] == f"/opt/citadel/runtime/vllm/{VLLM}/bin/python"
        assert job["tokenizer"] == f"/opt/models/{job['model']}"
        direct, gateway = f"http://127.0.0.1:{service['api_port']}", "http://192.168.10.29:8000"
        most = service["max_num_seqs"]
        assert [(run["way"], run["base_url"], run["concurrency"], run["prompts"]) for run in job["runs"]] == [
            ("direct", direct, 1, 20),
            ("gateway", gateway, 1, 20),
            ("direct", direct, most, max(20, 2 * most)),
            ("gateway", gateway, most, max(20, 2 * most)),
        ]
        assert {(run["input_tokens"], run["output_tokens"]) for run in job["runs"]} == {(128, 32)}


def test_what_an_operator_asks_for() -> None:
    work = jobs(models="hermes-2,phi-3-mini", prompts="7", concurrency="2", gateway_url="")
    assert [job["model"] for job in work] == ["hermes-2", "phi-3-mini"]
    assert [(run["way"], run["concurrency"], run["prompts"]) for run in work[0]["runs"]] == [("direct", 1, 7), ("direct", 2, 7)]
    assert [run["concurrency"] for run in jobs(concurrency=1, gateway_url="")[0]["runs"]] == [1]
    assert [run["prompts"] for run in jobs(models="hermes-2", prompts=3, gateway_url="")[0]["runs"]] == [3, 2 * PLACES["hermes-2"]]


def test_no_more_than_the_plan_holds() -> None:
    for job, service in zip(jobs(concurrency=1000, input_tokens=10**6, output_tokens=10**5), PLAN["services"], strict=True):
        assert max(run["concurrency"] for run in job["runs"]) == service["max_num_seqs"]
        for run in job["runs"]:
            assert run["input_tokens"] >= 1
            assert 1 <= run["output_tokens"] <= service["max_output_tokens"]
            assert run["input_tokens"] + run["output_tokens"] <= service["context_tokens"] - 16


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("prompts", 0, "benchmark_prompts is '0', but must be a whole number from 1."),
        ("input_tokens", "many", "benchmark_input_tokens is 'many', but must be a whole number from 1."),
        ("output_tokens", -1, "benchmark_output_tokens is '-1', but must be a whole number from 1."),
        ("concurrency", "", "benchmark_concurrency is '', but must be a whole number from 1."),
        ("models", ["hermes"], f"benchmark_models names hermes; the models are {', '.join(NAMES)}."),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match="benchmark_") as refusal:
        jobs(**{name: value})
    assert str(refusal.value) == sentence


def test_a_model_that_cannot_answer_is_left_alone() -> None:
    down = {"answers": False, "state": None, "active_state": "failed", "result": "oom-kill", "breaker": "open"}
    found = status(**{"hermes-2": down, "phi-3-mini": {"breaker": "open"}})
    failed = "hermes-2 has failed (oom-kill). Next: journalctl -u citadel-llm@hermes-2.service -n 50"
    closed = "phi-3-mini generates, but the edge's breaker of it is open. Next: journalctl -u haproxy -n 50"
    assert {job["model"]: job["unready"] for job in jobs(found=found) if job["unready"]} == {"hermes-2": failed, "phi-3-mini": closed}
    whole = record(found=found)
    assert one(whole)["figures"] is None
    assert one(whole)["bench_serve"] is None
    assert benchmark_problems(whole, tolerance_percent=20) == [failed, closed]


def test_the_figures_are_those_of_bench_serve() -> None:
    found = one(record())
    assert found["figures"] == {name: round(RECORDED[key], 6) for name, key in FIGURES.items()}
    named = ("requests_per_second", "request_throughput"), ("ttft_p50_milliseconds", "p50_ttft_ms"), ("e2e_p95_milliseconds", "p95_e2el_ms")
    assert [found["figures"][ours] for ours, _ in named] == [round(RECORDED[theirs], 6) for _, theirs in named]
    assert found["bench_serve"] == RECORDED
    assert (found["vllm"], found["variant"], found["failed_requests"], found["problem"]) == (VLLM, "int8", 0, "")
    versions = {"citadel": "eb3f144c0ffe", "litellm": "1.106.2-a1b2c3d4e5f6", "haproxy": "2.6.12-1+deb12u4"}
    assert (record()["versions"], record()["device"], record()["isa"]) == (versions, "cpu", "amx")


@pytest.mark.parametrize(("milliseconds", "met"), [(1500.0, True), (1500.1, False)])
def test_the_target_is_for_the_slowest_of_twenty_that_come_alone(milliseconds: float, met: bool) -> None:
    slow = answer(e2e_p95_milliseconds=milliseconds, e2e_p50_milliseconds=1.0)
    whole = record({("hermes-2", "gateway", 1): slow, ("hermes-2", "gateway", PLACES["hermes-2"]): slow})
    assert (one(whole, way="gateway")["target_met"], one(whole)["target_met"]) == (met, True)
    assert one(whole, way="gateway", concurrency=PLACES["hermes-2"])["target_met"] is None
    sentence = "hermes-2, through the gateway, 1 at once, misses its target: p95 of E2E is 1500 ms instead of 1500."
    assert benchmark_problems(whole, tolerance_percent=20) == ([] if met else [sentence])


FAILURES = {
    "some failed": (
        answer(failed=3, errors=("Too Many Requests", "Bad Gateway")),
        "hermes-2, asked directly, 1 at once: 3 of 20 requests failed (Too Many Requests; Bad Gateway).",
    ),
    "all failed": (
        {"result": RECORDED | {"completed": 0, "failed": 20, "errors": []}, "problem": ""},
        "hermes-2, asked directly, 1 at once: 20 of 20 requests failed.",
    ),
    "none measured": (
        {"result": None, "problem": "it took longer than 600 s"},
        "hermes-2, asked directly, 1 at once, was not measured: it took longer than 600 s.",
    ),
}


@pytest.mark.parametrize(("failure", "sentence"), FAILURES.values(), ids=FAILURES)
def test_what_failed_has_no_target_is_no_baseline_and_is_said(failure: dict[str, Any], sentence: str) -> None:
    whole = record({("hermes-2", "direct", 1): failure}, earlier=[record(started="2026-11-20T10:00:00Z")])
    found = one(whole)
    assert (found["problem"], found["target_met"], found["baseline"]) == (sentence, None, None)
    assert benchmark_problems(whole, tolerance_percent=20) == [sentence]
    assert (found["figures"] is None) == (failure["result"] is None or failure["result"]["completed"] == 0)
    later = record(earlier=[record(started="2026-11-20T10:00:00Z"), whole], started="2026-11-25T00:00:00Z")
    assert one(later)["baseline"]["started"] == "2026-11-20T10:00:00Z"
    assert one(later, way="gateway")["baseline"]["started"] == STARTED


def test_the_baseline_is_the_latest_of_the_same_plan() -> None:
    first, second = record(started="2026-11-20T10:00:00Z"), record(started="2026-11-21T10:00:00Z")
    other = record(plan=changed(cpu_quota_percent=100), started="2026-11-22T10:00:00Z")
    whole = record({("hermes-2", "direct", 1): answer(2.0)}, earlier=[first, second, other])
    baseline = one(whole)["baseline"]
    assert (baseline["started"], baseline["same_plan"], baseline["changed"]) == ("2026-11-21T10:00:00Z", True, [])
    assert baseline["ratios"] == pytest.approx({name: 0.5 if name.endswith("per_second") else 2.0 for name in FIGURES}, rel=0.01)
    assert one(whole, model="phi-3-mini")["baseline"]["started"] == "2026-11-22T10:00:00Z", "the plan of the others is the same"
    assert one(record(earlier=[other]))["baseline"] is None


def test_only_what_is_alike_is_compared() -> None:
    assert one(record(earlier=[record(output_tokens=64)]))["baseline"] is None
    assert one(record(earlier=[record(gateway_url="")]), way="gateway")["baseline"] is None
    assert one(record(earlier=[record(prompts=40)]))["baseline"] is not None


def test_a_named_baseline_may_have_another_plan_and_says_so() -> None:
    other = record(plan=changed(cpu_quota_percent=100), started="2026-11-22T10:00:00Z")
    other["versions"]["litellm"] = "1.105.0-ffffffffffff"
    whole = record(earlier=[other], any_plan=True)
    baseline = one(whole)["baseline"]
    assert (baseline["same_plan"], baseline["changed"]) == (False, ["litellm 1.105.0-ffffffffffff -> 1.106.2-a1b2c3d4e5f6"])
    lines = benchmark_table(whole, tolerance_percent=20).splitlines()
    assert "baseline of 2026-11-22T10:00:00Z, another plan, litellm 1.105.0-ffffffffffff -> 1.106.2-a1b2c3d4e5f6: hermes-2" in lines


@pytest.mark.parametrize(("slower", "sentence"), [(1.2, None), (1.26, "0.79 times the requests per second and 1.26 times the p95 of E2E")])
def test_slower_than_tolerated_is_said(slower: float, sentence: str | None) -> None:
    base = dict.fromkeys(FIGURES, 100.0)
    whole = record({("hermes-2", "direct", 1): answer(slower, **base)}, earlier=[record({("hermes-2", "direct", 1): answer(**base)})])
    expected = [f"hermes-2, asked directly, 1 at once, is slower than on {STARTED}: {sentence}."] if sentence else []
    assert benchmark_problems(whole, tolerance_percent=20) == expected


def test_the_fingerprint_is_of_what_matters_for_speed() -> None:
    def fingerprint(way: str = "direct", **changes: object) -> str:
        plan = changed(**changes)
        return plan_fingerprint(plan, plan["services"][NAMES.index("hermes-2")], way=way)

    silent = {field.name for field in dataclasses.fields(ServicePlan) if fingerprint(**{field.name: "another"}) == fingerprint()}
    assert silent == {
        *("api_port", "metrics_port", "state_port", "upstream_port"),
        *("description", "modes", "source", "specialisation", "target_latency_milliseconds"),
        *("cpus_requested", "memory_requested_bytes", "storage_needed_bytes", "storage_requested_bytes", "expected_weights_bytes"),
        *("load_timeout_seconds", "stall_timeout_seconds", "max_output_tokens"),
    }
    assert fingerprint("gateway") != fingerprint()
    plan = copy.deepcopy(PLAN)
    service = plan["services"][1]
    before = {way: plan_fingerprint(plan, service, way=way) for way in ("direct", "gateway")}
    plan["gateway"]["workers"] += 1
    after = {way: plan_fingerprint(plan, service, way=way) for way in ("direct", "gateway")}
    assert [way for way in before if before[way] != after[way]] == ["gateway"]


def test_records_are_read_in_the_order_of_their_time() -> None:
    texts = {f"{day}.json": json.dumps(record(started=f"2026-11-{day}T10:00:00Z")) for day in ("22", "20", "21")}
    assert [found["started"][8:10] for found in benchmark_records(texts)] == ["20", "21", "22"]
    assert benchmark_records({}) == []


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"schema_version": 2, "measurements": []}'])
def test_a_file_that_is_no_record_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"^kept\.json is no record of a benchmark as this version of the project writes it: remove it"):
        benchmark_records({"kept.json": text})


def test_the_page_shows_a_table_as_it_is_shown() -> None:
    hermes, phi = PLACES["hermes-2"], PLACES["phi-3-mini"]

    def figures(
        rate: float, ttft: tuple[float, float], tpot: tuple[float, float], e2e: tuple[float, float], *failures: str
    ) -> dict[str, Any]:
        names = [f"{kind}_{part}_milliseconds" for kind in ("ttft", "tpot", "e2e") for part in ("p50", "p95")]
        values = dict(zip(names, (*ttft, *tpot, *e2e), strict=True))
        failed = {"failed": 4 * len(failures), "errors": failures}
        return answer(requests_per_second=rate, output_tokens_per_second=32 * rate, **failed, **values)

    then = {
        ("hermes-2", "direct", 1): figures(0.86, (182, 197), (31.0, 31.9), (1142, 1186)),
        ("hermes-2", "gateway", 1): figures(0.85, (191, 212), (31.0, 31.9), (1152, 1201)),
        ("hermes-2", "direct", hermes): figures(2.91, (512, 840), (71.2, 80.4), (2719, 3331)),
        ("hermes-2", "gateway", hermes): figures(2.88, (530, 871), (71.4, 80.9), (2743, 3378)),
    }
    now = then | {
        ("hermes-2", "direct", 1): figures(0.87, (180, 194), (30.5, 31.2), (1126, 1161)),
        ("hermes-2", "gateway", 1): figures(0.61, (204, 402), (46.1, 52.7), (1633, 2036)),
        ("phi-3-mini", "direct", 1): figures(3.12, (61.2, 68.4), (8.31, 8.54), (319, 333)),
        ("phi-3-mini", "gateway", 1): figures(2.98, (72.4, 81.0), (8.31, 8.61), (330, 348)),
        ("phi-3-mini", "direct", phi): figures(11.4, (140, 201), (17.2, 19.9), (673, 818)),
        ("phi-3-mini", "gateway", phi): figures(8.93, (148, 213), (17.4, 20.1), (687, 836), "Service Unavailable"),
    }
    before = record(then, models=["hermes-2"], started="2026-11-20T22:40:11Z")
    before["versions"]["litellm"] = "1.105.3-0f1e2d3c4b5a"
    whole = record(now, models=["hermes-2", "phi-3-mini"], earlier=[before])
    table = benchmark_table(whole, tolerance_percent=20)
    assert all(line == line.rstrip() and len(line) <= COLUMNS for line in table.splitlines())
    assert table in (PROJECT / "docs" / "benchmark.md").read_text(encoding="utf-8")


def test_all_well_is_said() -> None:
    table = benchmark_table(record(), tolerance_percent=20).splitlines()
    assert table[-2:] == [f"no baseline: {', '.join(NAMES)}", "All well."]
    assert len(table) == 2 + len(record()["measurements"]) + 3
