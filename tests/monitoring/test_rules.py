"""Rules and alerts, judged by promtool: every alert fires, stays silent, and has its page."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel_plan import list_latency_objectives
from edge.haproxy import tool
from rendering import PROJECT, render, role_defaults

ROLE = PROJECT / "roles" / "monitoring"
RUNBOOKS = PROJECT / "docs" / "runbooks"
FOLDER = Path(__file__).parent
DEFAULTS = role_defaults("monitoring")

# What the rules are rendered for: the names are those of the cases.
MODELS = {"m": 2000, "n": 500}
PLANS = {
    host: {"plan": {"services": [{"name": name, "target_latency_milliseconds": target} for name, target in MODELS.items()]}}
    for host in ("a", "b")
}


def write_rules(folder: Path, **changes: Any) -> list[Path]:  # noqa: ANN401  # role variables are of any type
    """Render the rules into `folder`."""
    values = DEFAULTS | {"monitoring_latency_objectives": list_latency_objectives(PLANS)} | changes
    files = []
    for template in sorted((ROLE / "templates" / "rules").iterdir()):
        files.append(folder / f"rules-{template.name.removesuffix('.j2')}")
        files[-1].write_text(render(template, values), encoding="utf-8")
    return files


def promtool(*arguments: object) -> None:
    """Run promtool; what it says is the failure."""
    done = subprocess.run([tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_rules(tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="module")
def alerts(rules: list[Path]) -> list[dict[str, Any]]:
    groups = [group for file in rules for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def cases() -> list[dict[str, Any]]:
    return list(yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8")))


def written_out(values: str) -> str:
    """Repeat what promtool cannot. A value that YAML takes for a number (0x20 is 32 to it) has to be quoted."""
    assert isinstance(values, str), values
    return re.sub(r"\bInfx(\d+)", lambda found: " ".join(["Inf"] * (int(found[1]) + 1)), values)


def promtool_test(case: dict[str, Any]) -> dict[str, Any]:
    """Write a case as promtool has it. Annotations are compared as a whole, so the page's address is put in here."""
    page = f"{DEFAULTS['monitoring_runbooks_url']}/{case['alert']}.md"
    expected = {time: [] for time in case.get("silent", [])} | case.get("fires", {})
    return {
        "interval": case.get("interval", "1m"),
        "input_series": [{"series": series, "values": written_out(values)} for series, values in case["series"].items()],
        "alert_rule_test": [
            {
                "eval_time": time,
                "alertname": case["alert"],
                "exp_alerts": [
                    {
                        "exp_labels": {name: value for name, value in alert.items() if name != "summary"},
                        "exp_annotations": {"summary": alert["summary"], "runbook_url": page},
                    }
                    for alert in fired
                ],
            }
            for time, fired in expected.items()
        ],
    }


def run_tests(folder: Path, rules: list[Path], tests: list[dict[str, Any]]) -> None:
    file = folder / "tests.yml"
    content = {"rule_files": [str(path) for path in rules], "evaluation_interval": "1m", "tests": tests}
    file.write_text(json.dumps(content), encoding="utf-8")
    promtool("test", "rules", file)


def test_promtool_accepts_the_rules(rules: list[Path]) -> None:
    promtool("check", "rules", *rules)


@pytest.mark.parametrize("alert", dict.fromkeys(case["alert"] for case in cases()))
def test_the_alert_fires_and_stays_silent_as_its_cases_say(alert: str, rules: list[Path], tmp_path: Path) -> None:
    run_tests(tmp_path, rules, [promtool_test(case) for case in cases() if case["alert"] == alert])


def test_no_alert_lacks_a_case_in_which_it_fires_or_one_in_which_it_does_not(alerts: list[dict[str, Any]]) -> None:
    fired = {
        (case["alert"], *(alert.get(label) for label in ("severity", "window", "problem")))
        for case in cases()
        for times in case.get("fires", {}).values()
        for alert in times
    }
    assert fired == {(rule["alert"], *(rule["labels"].get(label) for label in ("severity", "window", "problem"))) for rule in alerts}
    assert {case["alert"] for case in cases() if case.get("silent")} == {rule["alert"] for rule in alerts}


def test_every_alert_has_a_page_and_every_page_an_alert(alerts: list[dict[str, Any]]) -> None:
    assert {f"{rule['alert']}.md" for rule in alerts} == {page.name for page in RUNBOOKS.iterdir()}
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_says_what_it_means_what_to_look_at_and_what_to_do(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^#+ .*$", text, re.MULTILINE) == [f"# {page.stem}", "## What it means", "## What to look at", "## What to do"]
    assert len(text.splitlines()) < 60, "read at three in the morning"


def test_every_alert_names_a_host_or_keeps_that_of_its_series_and_its_severity(alerts: list[dict[str, Any]]) -> None:
    """They are grouped by host, and told apart by their severity."""
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert all("host" in aggregation for aggregation in re.findall(r"\bby \(([^)]*)\)", rule["expr"]))


def test_thresholds_are_those_of_the_inventory(tmp_path: Path) -> None:
    """Each of them stands in a rule, and nowhere is its default left."""
    thresholds = {
        name: value
        for name, value in DEFAULTS.items()
        if re.search(
            r"_(model_down|edge_down|generating|open|missing|loop|fills|memory)_seconds$|_percent$|_restarts$|_rounds$|_per_second$|_warning_days$",
            name,
        )
    }
    assert len(thresholds) == 17
    before = "".join(file.read_text() for file in write_rules(tmp_path))
    for name, value in thresholds.items():
        after = "".join(file.read_text() for file in write_rules(tmp_path, **{name: value - 0.25}))
        assert after != before, name
        assert str(value - 0.25) in after, name


def test_the_names_of_recording_rules_are_level_metric_operations(rules: list[Path]) -> None:
    groups = [group for file in rules for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    names = [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]
    assert [name for name in names if not re.fullmatch(r"(model|gateway|edge|service):[a-z_]+:[a-z0-9_]+", name)] == []


def test_recorded_figures_are_right(rules: list[Path], tmp_path: Path) -> None:
    series = {
        'haproxy_backend_http_responses_total{host="a", proxy="model_m", code="2xx"}': "0+45x20",
        'haproxy_backend_http_responses_total{host="a", proxy="model_m", code="5xx"}': "0+15x20",
        'haproxy_backend_http_responses_total{host="a", proxy="model_n", code="2xx"}': "0+180x20",
        'haproxy_server_check_up_down_total{host="a", proxy="model_m", server="model"}': "0 1 2x20",
        'haproxy_server_check_up_down_total{host="a", proxy="gateway", server="gateway"}': "NaN NaN NaN",
        'citadel_edge_breaker_trips_total{host="a", model="m"}': "0 0 1x20",
        'litellm_deployment_successful_fallbacks_total{host="a", requested_model="m", fallback_model="n", exception_class="x"}': "0+30x20",
        'vllm:prefix_cache_hits_total{host="a", model="m", engine="0"}': "0+30x20",
        'vllm:prefix_cache_queries_total{host="a", model="m", engine="0"}': "0+120x20",
        'vllm:e2e_request_latency_seconds_bucket{host="a", model="m", engine="0", le="0.3"}': "0+30x20",
        'vllm:e2e_request_latency_seconds_bucket{host="a", model="m", engine="0", le="0.5"}': "0+60x20",
        'vllm:e2e_request_latency_seconds_bucket{host="a", model="m", engine="0", le="+Inf"}': "0+60x20",
        'vllm:num_requests_waiting{host="b", model="m", engine="0"}': "2x20",
        'citadel_service_cpu_seconds_total{host="a", service="m", model="m"}': "0+240x20",
        'citadel_service_cpus_allowed{host="a", service="m", model="m"}': "8x20",
    }
    expected = {
        'model:requests:rate5m{host="a", model="m"}': 1,
        'model:errors:ratio_rate5m{host="a", model="m"}': 0.25,
        'model:requests:share_rate5m{host="a", model="m"}': 0.25,
        'model:requests:share_rate5m{host="a", model="n"}': 0.75,
        'gateway:fallbacks:rate5m{host="a", requested_model="m", fallback_model="n"}': 0.5,
        'model:prefix_cache_hits:ratio_rate5m{host="a", model="m"}': 0.25,
        'model:end_to_end_seconds:p50_rate5m{host="a", model="m"}': 0.3,
        'model:end_to_end_seconds:p95_rate5m{host="a", model="m"}': 0.48,
        'service:cpu_used_of_allowed:ratio_rate5m{host="a", service="m", model="m"}': 0.5,
        'model:requests_waiting:sum{host="b", model="m"}': 2,
        'model:breaker_openings:increase1h{host="a", model="m"}': 3,
    }
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {"expr": name, "eval_time": "15m", "exp_samples": [{"labels": name, "value": value}]} for name, value in expected.items()
            ],
        }
    ]
    run_tests(tmp_path, rules, tests)
