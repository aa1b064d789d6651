"""Every expression that is deployed finds the series that it asks for: what an upgrade renames is missed here, before an alert is."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from typing import Any

import pytest
from lab_host import CHECKOUT, HOST, Answer, ask, health, until
from prometheus import Prometheus
from promql import selectors
from testinfra.host import Host

from citadel_pictures import FIGURES, MODEL_PANELS, Level
from citadel_pictures.dashboards import dashboards

ABSENT = {
    "ALERTS": "no alert fires",
    "citadel_certificate_expires_timestamp_seconds": "there is a certificate where the inventory names one",
}
"""What need not be there on a host that is well, and why."""

LABELS = {
    "model:": {"host", "model"},
    "service:": {"host", "service"},
    "gateway:": {"host"},
    "edge:": {"host"},
    "vllm:": {"host", "service", "model", "job"},
    "litellm_": {"host", "service", "job"},
    "haproxy_": {"host", "service", "job", "proxy"},
    "citadel_service_": {"host", "service", "job"},
    "citadel_": {"host", "job"},
    "node_": {"host", "service", "job"},
    "alertmanager_": {"host", "service", "job"},
    "prometheus_": {"host", "service", "job"},
    "up": {"host", "service", "job"},
    "ALERTS": {"alertname", "severity"},
}
"""What every series has to be told apart by, by the beginning of its name; the first that fits."""

LINES = {"memory_near_limit": 95.0, "memory_off_prediction": 110.0, "errors_allowed": 99.5, "slow_allowed": 95.0}
RECORDED_SECONDS = 240
"""Two scrapes after the traffic, and an evaluation of the slowest group."""
TWO_SCRAPES_SECONDS = 60


def set_servers(server: Host, models: Iterable[str], state: str) -> None:
    """Have the edge take models out, as an operator would, or in again."""
    commands = "; ".join(f"set server model_{model}/model state {state}" for model in models)
    script = (
        "import socket; edge = socket.socket(socket.AF_UNIX); edge.connect('/run/citadel-edge/admin.sock'); "
        f"edge.sendall(b'{commands}\\n'); print(edge.makefile().read())"
    )
    assert server.check_output("python3 -c %s", script).strip() == ""


def fall_back(server: Host, plan: dict[str, Any]) -> None:
    """Ask for a model that is out, while another can take its place and while nobody can, until LiteLLM has counted each.

    The gateway knows within a second who is out and then asks nobody in vain; LiteLLM counts where it was asked before that.
    """
    models = [service["name"] for service in plan["services"]]
    port = plan["gateway"]["port"]
    body = {"model": models[0], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}

    def counted(counter: str, out: list[str], status: int) -> bool:
        assert until(lambda: set(health(port).values()) == {"healthy"}, 30) is not None, health(port)
        try:
            set_servers(server, out, "maint")
            assert ask(port, "/v1/chat/completions", body).status == status
        finally:
            set_servers(server, out, "ready")
        return f"\n{counter}{{" in ask(port, "/metrics").text

    for counter, out, status in (
        ("litellm_deployment_successful_fallbacks_total", models[:1], 200),
        ("litellm_deployment_failed_fallbacks_total", models, 503),
    ):
        assert until(lambda counter=counter, out=out, status=status: counted(counter, out, status), 120) is not None, counter
    assert until(lambda: set(health(port).values()) == {"healthy"}, 30) is not None, health(port)


@pytest.fixture(scope="module")
def prometheus(server: Host, plan: dict[str, Any]) -> Prometheus:
    """Prometheus, after it has seen an answer of each model through the gateway, and requests that another answered and that nobody did."""
    fall_back(server, plan)
    for service in plan["services"]:
        for stream in (False, True):
            body = {"model": service["name"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": stream}
            assert ask(plan["gateway"]["port"], "/v1/chat/completions", body).status == 200
    sent = time.time() + 1
    found = Prometheus(plan["monitoring"]["prometheus_port"])
    wanted = {service["name"] for service in plan["services"]}

    def is_recorded() -> bool:
        models = {series["metric"]["model"] for series in found.query("count by (model) (model:slow:ratio_rate3d)")}
        # Rates are there after two scrapes, and of the gateway only after the traffic.
        rates = {
            "edge:requests_denied:rate5m",
            "gateway:errors:rate5m",
            "gateway:errors:ratio_rate1h",
            "gateway:fallbacks:rate5m",
            "gateway:fallbacks_failed:rate5m",
        }
        # A rate may be of counters that ended with an earlier run of the gateway; those of now are there after a scrape.
        scraped = found.query(f"min(timestamp(up)) > {sent:.0f}")
        return models == wanted and bool(scraped) and all(found.query(name) for name in rates)

    assert until(is_recorded, RECORDED_SECONDS) is not None, f"not all is recorded of {wanted}"
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
    for name in {rule["name"] for rule in prometheus.rules() if rule["type"] == "recording"} - set(ABSENT):
        found = [series["metric"] for series in prometheus.query(name)]
        level = name.partition(":")[0]
        there = {
            "model": {labels.get("model") for labels in found} == models,
            "service": {labels.get("service") for labels in found} == (models if name in planned_in_parts else services),
        }.get(level, len(found) > 0)
        if not there or {labels.get("host") for labels in found} != {HOST}:
            lacking[name] = found
    assert lacking == {}


def test_every_expression_asks_for_series_that_there_are(prometheus: Prometheus) -> None:
    """Of rules, alerts, consoles and dashboards: each selector by itself, because a condition need not hold on a host that is well."""
    asked = {(selector, rule["name"]) for rule in prometheus.rules() for selector in selectors(rule["query"])}
    asked |= {(figure.selector(host=f'="{HOST}"'), f"figure {name}") for name, figure in FIGURES.items()}
    boards = dashboards(LINES)
    asked |= {
        (selector, f"{board} {panel['title']}")
        for board, text in boards.items()
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
        for selector in selectors(re.sub(r"\$\w+", ".+", target["expr"]))
    }
    assert len(asked) > 200
    wrong = {}
    for selector, where in sorted(asked):
        metric = selector.partition("{")[0]
        if metric in ABSENT:
            continue
        wanted = next(labels for beginning, labels in LABELS.items() if metric.startswith(beginning))
        found = prometheus.query(f"group by ({', '.join(sorted(wanted))}) ({selector})")
        if not found or any(set(series["metric"]) != wanted for series in found):
            wrong[selector] = f"{where}: {[series['metric'] for series in found]}"
    assert wrong == {}


def test_every_expression_is_evaluated(prometheus: Prometheus) -> None:
    """What an alert asks is nothing on a host that is well; the tests without a host show when it is something."""
    for rule in prometheus.rules():
        prometheus.query(rule["query"])


def test_every_figure_is_there_for_each_model_and_service(prometheus: Prometheus, plan: dict[str, Any]) -> None:
    models = {service["name"] for service in plan["services"]}
    lacking = {}
    for name, figure in FIGURES.items():
        if figure.metric in ABSENT:
            continue
        found = [series["metric"] for series in prometheus.query(figure.selector(host=f'="{HOST}"'))]
        match figure.level:
            case Level.MODEL:
                there = {labels["model"] for labels in found if "model" in labels} == models
            case Level.SERVICE:
                there = {labels["service"] for labels in found} == models | (set() if figure.of_models_alone else {plan["gateway"]["name"]})
            case Level.HOST:
                there = bool(found)
        if not there:
            lacking[name] = found
    assert lacking == {}


@pytest.mark.parametrize("hours", [1, 24])
def test_a_models_page_has_all_its_figures(prometheus: Prometheus, plan: dict[str, Any], service: dict[str, Any], hours: int) -> None:
    answer = prometheus.console("model.html", host=HOST, model=service["name"], hours=str(hours))
    assert re.findall(r"<h2>(.+?)</h2>", answer.text) == [panel.title for panel in MODEL_PANELS]
    assert_drawn(answer)


def test_the_overview_has_every_model_the_gateway_and_the_edge(prometheus: Prometheus, plan: dict[str, Any]) -> None:
    answer = prometheus.console("index.html")
    titles = re.findall(r"<h2>(?:<a [^>]*>)?([\w .-]+?)(?:</a>)? <span", answer.text)
    assert titles == [*sorted(service["name"] for service in plan["services"]), "Gateway", "Edge", "All services"]
    assert_drawn(answer)


def assert_drawn(answer: Answer) -> None:
    """Nothing lacks a figure, no drawing is empty, and no script could run."""
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    body = answer.text.partition("</style>")[2]
    assert re.findall(r"[^\n]*no (?:data|target)[^\n]*", body) == []
    drawings = re.findall(r'aria-label="([^"]+)">(.*?)</svg>', body, re.DOTALL)
    assert len(drawings) > 10
    assert [label for label, drawing in drawings if "<rect" not in drawing] == []


def key_metrics() -> list[tuple[str, str]]:
    """The specification's key metrics in docs/monitoring.md: what is asked, and the query."""
    page = (CHECKOUT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    table = page.partition("## The specification's six key metrics")[2].partition("\n## ")[0]
    return re.findall(r"^\| ([^|]+) \| `([^`]+)` \|", table, re.MULTILINE)


def test_the_specifications_key_metrics_have_an_answer(prometheus: Prometheus, plan: dict[str, Any]) -> None:
    assert len({what.partition(":")[0] for what, _ in key_metrics()}) == 6
    models = {service["name"] for service in plan["services"]}
    on_a_host_that_is_well = {"model:generating:max": {1.0}, "model:breaker_open:max": {0.0}}

    def lacking() -> dict[str, Any]:
        without = {}
        for what, query in key_metrics():
            everything = prometheus.query(query)
            # A host that was there an hour ago is in the figures of a day.
            found = [series for series in everything if series["metric"].get("host") in {HOST, None}]
            level = re.findall(r"\b(model|service):|$", query)[0]
            named = {series["metric"].get(level) for series in found}
            expected = {"model": models, "service": models | {plan["gateway"]["name"]}}.get(level, {None})
            values = {float(series["value"][1]) for series in found}
            there = named == expected and all(map(math.isfinite, values)) and values == on_a_host_that_is_well.get(query, values)
            if not there or {series["metric"].get("host") for series in found} != {HOST}:
                without[what] = everything
        return without

    assert until(lambda: lacking() == {}, TWO_SCRAPES_SECONDS) is not None, lacking()


def test_alertmanager_takes_alerts_and_listens_on_loopback_alone(server: Host, prometheus: Prometheus) -> None:
    active = [manager["url"] for manager in prometheus.get("alertmanagers")["activeAlertmanagers"]]
    assert active == ["http://127.0.0.1:9093/api/v2/alerts"]
    pid = server.check_output("systemctl show --property=MainPID --value prometheus-alertmanager")
    listening = server.check_output(f"ss -Hltnp | grep pid={pid}, | awk '{{print $4}}'")
    assert listening.splitlines() == ["127.0.0.1:9093"]
