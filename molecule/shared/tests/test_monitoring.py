"""Every expression that is deployed finds the series that it asks for: what an upgrade renames is missed here, before an alert is."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import pytest
from lab_host import CHECKOUT, HOST, ask, until
from prometheus import Prometheus
from promql import selectors
from testinfra.host import Host

AFTER_AN_EVENT = {
    "litellm_deployment_successful_fallbacks_total": "LiteLLM tells of fallbacks when there was one",
    "litellm_deployment_failed_fallbacks_total": "the same",
    "gateway:fallbacks:rate5m": "recorded from them",
    "gateway:fallbacks_failed:rate5m": "recorded from them",
    "ALERTS": "there are none on a host that is well",
    "citadel_certificate_expires_timestamp_seconds": "there is a certificate where the inventory names one",
}
"""What need not be there on a host that is well, and why."""

LOOK_BACK_SECONDS = 3600
RECORDED_SECONDS = 240
"""Two scrapes after the traffic, and an evaluation of the slowest group."""


@pytest.fixture(scope="module")
def prometheus(plan: dict[str, Any]) -> Prometheus:
    """Prometheus, after it has seen an answer of each model through the gateway."""
    for service in plan["services"]:
        for stream in (False, True):
            body = {"model": service["name"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": stream}
            assert ask(plan["gateway"]["port"], "/v1/chat/completions", body).status == 200
    found = Prometheus(plan["monitoring"]["prometheus_port"])
    wanted = {service["name"] for service in plan["services"]}
    long = "count by (model) (model:slow:ratio_rate3d)"
    assert until(lambda: {series["metric"]["model"] for series in found.query(long)} == wanted, RECORDED_SECONDS) is not None, (
        f"nothing is recorded of {wanted}: {found.query(long)}"
    )
    return found


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_every_recorded_figure_is_there_for_each_model(prometheus: Prometheus, plan: dict[str, Any]) -> None:
    models = {service["name"] for service in plan["services"]}
    services = models | {plan["gateway"]["name"]}
    # Of the gateway the plan has no parts, so there is nothing to compare.
    planned_in_parts = {"service:memory_predicted_bytes:sum", "service:memory_held_of_predicted:ratio"}
    lacking = {}
    for name in {rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"} - set(AFTER_AN_EVENT):
        found = [series["metric"] for series in prometheus.query(name)]
        level = name.partition(":")[0]
        there = {
            "model": {labels.get("model") for labels in found} == models,
            "service": {labels.get("service") for labels in found} == (models if name in planned_in_parts else services),
        }.get(level, len(found) > 0)
        if not there or {labels.get("host") for labels in found} != {HOST}:
            lacking[name] = found
    assert lacking == {}


def test_every_series_that_a_rule_asks_for_exists(prometheus: Prometheus) -> None:
    since = f"{time.time() - LOOK_BACK_SECONDS:.0f}"
    asked = {(selector, rule["name"]) for rule in prometheus.rules() for selector in selectors(rule["query"])}
    assert len(asked) > 50
    unknown = {
        f"{selector} (in {name})"
        for selector, name in asked
        if selector.partition("{")[0] not in AFTER_AN_EVENT and not prometheus.get("series", **{"match[]": selector, "start": since})
    }
    assert unknown == set()


def key_metrics() -> list[tuple[str, str]]:
    """The specification's key metrics in docs/monitoring.md: what is asked, and the query."""
    page = (CHECKOUT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    table = page.partition("## The specification's six key metrics")[2].partition("\n## ")[0]
    return re.findall(r"^\| ([^|]+) \| `([^`]+)` \|", table, re.MULTILINE)


def test_the_specifications_key_metrics_have_an_answer(prometheus: Prometheus, plan: dict[str, Any]) -> None:
    assert len({what.partition(":")[0] for what, _ in key_metrics()}) == 6
    models = {service["name"] for service in plan["services"]}
    on_a_host_that_is_well = {"model:generating:max": {1.0}, "model:breaker_open:max": {0.0}}
    lacking = {}
    for what, query in key_metrics():
        found = prometheus.query(query)
        level = re.findall(r"\b(model|service):|$", query)[0]
        named = {series["metric"].get(level) for series in found}
        expected = {"model": models, "service": models | {plan["gateway"]["name"]}}.get(level, {None})
        values = {float(series["value"][1]) for series in found}
        there = named == expected and all(map(math.isfinite, values)) and values == on_a_host_that_is_well.get(query, values)
        if not there or {series["metric"].get("host") for series in found} != {HOST}:
            lacking[what] = found
    assert lacking == {}


def test_alertmanager_takes_alerts_and_listens_on_loopback_alone(server: Host, prometheus: Prometheus) -> None:
    active = [manager["url"] for manager in prometheus.get("alertmanagers")["activeAlertmanagers"]]
    assert active == ["http://127.0.0.1:9093/api/v2/alerts"]
    pid = server.check_output("systemctl show --property=MainPID --value prometheus-alertmanager")
    listening = server.check_output(f"ss -Hltnp | grep pid={pid}, | awk '{{print $4}}'")
    assert listening.splitlines() == ["127.0.0.1:9093"]
