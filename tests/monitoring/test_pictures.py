"""The consoles, as Prometheus renders them, and Grafana's dashboards: both show what the rules record, and say so when there is nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from promql import selectors

from citadel_exporter import FAMILIES
from citadel_pictures import FIGURES, MODEL_PANELS, OVERVIEW_PANELS, Figure, Level, console_pictures
from citadel_pictures.dashboards import dashboards
from edge.haproxy import tool, until
from monitoring.test_rules import promtool, write_rules
from ports import free_port
from rendering import PROJECT, render, role_defaults, role_variables_file

TEMPLATES = PROJECT / "roles" / "monitoring" / "templates"
HOST = "hx-llm-server-01"
MODELS = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "fifth")
DOWN, IDLE, LATE = "hermes-2", "openchat-3.5", "phi-3-mini"
MEASURED = {
    "breaker_open": 0,
    "breaker_half_open": 0,
    "memory_held": 2**30,
    "memory_limit": 2**31,
    "first_token_p95": 0.25,
    "target": 0.5,
    "edge_denied": 0,
}
PERCENTS = {"memory_near_limit": 95, "memory_off_prediction": 110, "errors_allowed": 99.5, "slow_allowed": 95}


def labels_of(figure: Figure) -> Iterator[dict[str, str]]:
    """List the series of a figure on a host with all models."""
    fixed = {"host": HOST, **dict(figure.labels)}
    if figure.level is Level.HOST:
        yield {"service": fixed.get("job", "")} | fixed
        return
    for model in MODELS:
        yield fixed | {"model": model, "service": model} | ({"job": "models"} if figure.metric == "up" else {})
    if figure.level is Level.SERVICE and not figure.of_models_alone:
        yield fixed | {"service": "gateway"}


def value_of(key: str, labels: Mapping[str, str]) -> float | None:
    """What is measured: DOWN does not run, IDLE is asked for nothing, LATE answers too late."""
    model = labels.get("model")
    if model == DOWN:
        return {"scraped": 0, "generating": 0, "breaker_open": 1, "breaker_half_open": 0, "target": 0.5, "places": 4}.get(key)
    if model == IDLE and FIGURES[key].idle:
        return float("nan")
    if model == LATE and key == "first_token_p95":
        return 0.75
    return MEASURED.get(key, 1)


def series() -> dict[str, dict[str, float]]:
    """Gather the series that the consoles ask for, by metric and labels."""
    found: dict[str, dict[str, float]] = {}
    for key, figure in FIGURES.items():
        for labels in labels_of(figure) if key not in {"state", "breaker"} else ():
            value = value_of(key, labels)
            if value is not None:
                found.setdefault(figure.metric, {})[json.dumps(labels)] = value
    for model in MODELS:
        for state in ("process", "loaded", "generating", "hung"):
            labels = {"host": HOST, "service": model, "model": model, "state": state}
            found.setdefault("citadel_service_state", {})[json.dumps(labels)] = int(state == "generating" and model != DOWN)
        for state in ("closed", "half-open", "open"):
            labels = {"host": HOST, "service": "breakers", "model": model, "state": state}
            is_so = state == {DOWN: "open", LATE: "half-open"}.get(model, "closed")
            found.setdefault("citadel_edge_breaker_state", {})[json.dumps(labels)] = int(is_so)
    alert = {"alertname": "ModelDown", "severity": "critical", "host": HOST, "model": DOWN}
    found["ALERTS"] = {json.dumps(alert | {"alertstate": "firing"}): 1}
    found["ALERTS_FOR_STATE"] = {json.dumps(alert): time.time() - 90}
    found["prometheus_rule_group_rules"] = {json.dumps({"host": HOST}): 3}
    found["model:edge_queue_requests:sum"] = {json.dumps({"host": HOST, "model": MODELS[0]}): 0}
    return found


def variables(**changes: Any) -> dict[str, Any]:  # noqa: ANN401  # role variables are of any type
    return role_defaults("monitoring") | role_variables_file("monitoring") | changes


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with the consoles, and half an hour of measurements; its address."""
    folder = tmp_path_factory.mktemp("prometheus")
    for name in ("consoles", "libraries"):
        (folder / name).mkdir()
    for template in (TEMPLATES / "consoles").glob("*.j2"):
        name = template.name.removesuffix(".j2")
        (folder / ("libraries" if name.endswith(".lib") else "consoles") / name).write_text(render(template, variables()), encoding="utf-8")
    now = int(time.time())
    lines = []
    for metric, values in series().items():
        lines.append(f"# TYPE {metric} unknown")
        for text, value in values.items():
            labels = ",".join(f'{name}="{label}"' for name, label in json.loads(text).items())
            # And some way into the future, so that a slow run finds them fresh.
            lines += [f"{metric}{{{labels}}} {value} {at}" for at in range(now - 1800, now + 1800, 60)]
    (folder / "data").write_text("\n".join([*lines, "# EOF", ""]), encoding="utf-8")
    promtool("tsdb", "create-blocks-from", "openmetrics", "-q", folder / "data", folder / "tsdb")
    (folder / "prometheus.yml").write_text("{}", encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address={address}",
        f"--web.console.templates={folder}/consoles",
        f"--web.console.libraries={folder}/libraries",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(
            lambda: "ready to receive" in (folder / "log").read_text(encoding="utf-8") or process.poll() is not None,
            seconds=60,
            what="Prometheus starts",
        )
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
        yield f"http://{address}/consoles/"
    finally:
        process.terminate()
        process.wait(20)


def page(prometheus: str, name: str, **parameters: str) -> str:
    with urllib.request.urlopen(f"{prometheus}{name}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return str(answer.read().decode())


def card(overview: str, title: str) -> str:
    """What a page says under a title."""
    found = [part for part in overview.split("<article>")[1:] if re.search(rf"<h2>(<a [^>]*>)?{re.escape(title)}\b", part)]
    assert len(found) == 1, title
    return found[0].partition("</article>")[0]


def words(part: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", part).split())


@pytest.fixture(scope="module")
def overview(prometheus: str) -> str:
    return page(prometheus, "index.html")


def test_a_card_for_every_model_without_a_list_of_them_anywhere(overview: str) -> None:
    titles = re.findall(r"<h2>(?:<a [^>]*>)?([\w.-]+)", overview)
    assert titles[: len(MODELS)] == sorted(MODELS)
    assert [model for model in MODELS for template in (TEMPLATES / "consoles").glob("*.j2") if model in template.read_text()] == []


def test_the_overview_says_what_is_down_what_is_idle_and_what_is_well(overview: str) -> None:
    assert "▲ 4 of 5 models generate" in words(overview)
    well, idle, down = (words(card(overview, model)) for model in ("mixtral-8x7b", IDLE, DOWN))
    for said in (
        "● generates ● breaker closed",
        "First token, p95 250 ms target 500 ms",
        "Requests 1.000 /s share 100.0 %",
        "breaker openings in an hour: 1",
        "At work 1 of 1 waiting 1",
        "Memory 1.00 GiB planned 0.00 GiB (mark), limit 2.00 GiB",
    ):
        assert said in well, well
    assert "First token, p95 no requests target 500 ms" in idle
    assert "no data" not in idle
    assert "✕ down ▲ breaker open" in down
    assert "● generates ◐ breaker half-open" in words(card(overview, LATE))
    assert "First token, p95 no data target 500 ms" in down
    assert "CPU no data of no data CPUs allowed" in down


def test_alerts_that_fire_are_on_top_with_their_age(overview: str) -> None:
    said = words(overview.partition("<article>")[0])
    assert re.search(rf"▲ critical ModelDown {DOWN} on {HOST}, for 1m [34]\ds", said), said


def test_no_data_is_drawn_as_a_gap_and_zero_as_a_hairline(overview: str) -> None:
    def bars(title: str) -> list[float]:
        drawing = card(overview, title).partition('<svg class="bars"')[2].partition("</svg>")[0]
        return [float(height) for height in re.findall(r'<rect x="\d+" width="3.2" height="([\d.]+)"', drawing)]

    # Half an hour of measurements in a drawing of an hour, at half of the line that is the target.
    assert set(bars("mixtral-8x7b")) == {6.0}
    assert 14 <= len(bars("mixtral-8x7b")) <= 19
    assert bars(DOWN) == bars(IDLE) == []
    assert "NaN" not in overview
    assert set(bars("Edge")) == {1.0}


def test_first_tokens_that_come_too_late_are_marked(overview: str) -> None:
    assert {model for model in MODELS if "750 ms ▲ over the target of 500 ms" in words(card(overview, model))} == {LATE}


@pytest.mark.parametrize("hours", ["1", "6", "24"])
def test_a_page_for_every_model_over_several_times(prometheus: str, hours: str) -> None:
    text = page(prometheus, "model.html", host=HOST, model="fifth", hours=hours)
    said = words(text)
    assert re.findall(r"<h2>(.+?)</h2>", text) == [panel.title for panel in MODEL_PANELS]
    assert f"{hours} h ago" in said
    assert "no data" not in said
    assert text.count('<svg class="bars"') == len(MODEL_PANELS)
    assert "● generates ● breaker closed ● gives metrics" in said
    assert "● no alert fires" in said


def test_what_a_client_writes_into_the_address_is_text_and_no_query(prometheus: str) -> None:
    text = page(prometheus, "model.html", host=HOST, model='fifth"} or up{x!="<script>', hours="<b>")
    assert "<script>" not in text
    assert "<b>&lt;" not in text
    assert "Prometheus knows of no model" in text


@pytest.mark.parametrize("url", ["docs/runbooks", "https://example.org/runbooks"])
def test_an_alert_leads_to_its_page_where_that_has_an_address(url: str) -> None:
    text = render(TEMPLATES / "consoles" / "citadel.lib.j2", variables(monitoring_runbooks_url=url))
    assert ("https://example.org/runbooks/{{ .Labels.alertname }}.md" in text) == url.startswith("https")


def test_the_consoles_bring_no_script_and_load_nothing_from_elsewhere(overview: str) -> None:
    assert re.findall(r"<script|\bon\w+=|https?://|url\(|@import", overview) == []
    assert '<meta http-equiv="refresh" content="15">' in overview


# --- what both show is what is recorded ---


def recorded(folder: Path) -> set[str]:
    groups = [group for file in write_rules(folder) for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def test_every_figure_is_recorded_or_told_by_the_exporter(tmp_path: Path) -> None:
    known = recorded(tmp_path) | set(FAMILIES) | {"up", "citadel_edge_breaker_state"}
    assert {figure.metric for figure in FIGURES.values()} - known == set()


def test_the_overviews_of_both_show_the_same_figures() -> None:
    console = render(TEMPLATES / "consoles" / "index.html.j2", variables())
    shown = {key for panel in OVERVIEW_PANELS for key in (*panel.figures, *([panel.target] if panel.target else []))}
    # Drawn from what it is the ratio of; said in the word for the state of a breaker; and on the model's page.
    elsewhere = {"memory_of_limit", "breaker_half_open", "first_token_p50", "first_token_p99", "throttled"}
    assert [key for key in shown - elsewhere if FIGURES[key].metric not in console] == []


def expressions(text: str) -> Iterator[str]:
    for panel in json.loads(text)["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


@pytest.fixture(scope="module")
def boards() -> dict[str, str]:
    return dashboards(PERCENTS)


def test_the_dashboards_ask_for_the_figures_and_nothing_else(boards: dict[str, str]) -> None:
    assert set(boards) == {"citadel-overview.json", "citadel-model.json"}
    for name, panels in (("citadel-overview.json", OVERVIEW_PANELS), ("citadel-model.json", MODEL_PANELS)):
        asked = {selector.partition("{")[0] for text in expressions(boards[name]) for selector in selectors(text)} - {"ALERTS"}
        assert asked == {FIGURES[key].metric for panel in panels for key in (*panel.figures, *([panel.target] if panel.target else []))}


def test_promtool_accepts_what_the_dashboards_ask(boards: dict[str, str], tmp_path: Path) -> None:
    rules = [{"record": "x", "expr": text} for board in boards.values() for text in expressions(board)]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": f"{number}", "rules": [rule]} for number, rule in enumerate(rules)]}), encoding="utf-8")
    promtool("check", "rules", file)


@pytest.mark.parametrize("name", ["citadel-overview", "citadel-model"])
def test_a_dashboard_is_whole(boards: dict[str, str], name: str) -> None:
    board = json.loads(boards[f"{name}.json"])
    assert board["uid"] == name
    assert board["schemaVersion"] >= 36
    assert board["editable"] is False
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert [panel["title"] for panel in board["panels"] if panel["datasource"] != source] == []
    assert [target for panel in board["panels"] for target in panel["targets"] if target["datasource"] != source] == []
    for panel in board["panels"]:
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert panel["fieldConfig"]["defaults"]["noValue"], "what is not there is not shown as nothing"
    places = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (p["gridPos"] for p in board["panels"])
    ]
    assert sum(map(len, places)) == len(set().union(*places)), "panels lie on each other"
    assert max(x for place in places for x, _ in place) == 23
    offered = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert offered["datasource"]["type"] == "datasource"
    asked = set(re.findall(r"\$(\w+)", "".join(expressions(boards[f"{name}.json"]))))
    assert asked <= set(offered)


def test_a_controller_without_the_library_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "citadel_pictures.dashboards")
    monkeypatch.setitem(sys.modules, "grafana_foundation_sdk.builders", None)
    (tmp_path / "x.j2").write_text("{{ percents | citadel_dashboards }}", encoding="utf-8")
    with pytest.raises(AnsibleError, match=r"no module grafana_foundation_sdk.*run ansible-playbook from \.venv"):
        render(tmp_path / "x.j2", {"percents": PERCENTS})


def test_lines_lie_where_the_inventory_says(boards: dict[str, str]) -> None:
    changed = dashboards(PERCENTS | {"memory_near_limit": 80})
    assert '"value": 0.95' in boards["citadel-overview.json"]
    assert '"value": 0.8' in changed["citadel-overview.json"]
    lines = {panel["title"]: panel["line"] for panel in console_pictures(PERCENTS)["panels"]}
    assert lines["Memory of its plan"] == "24 * vector(1.1) / vector(2)"


def test_grafana_is_given_a_datasource_that_the_dashboards_offer(boards: dict[str, str]) -> None:
    sources = [{"name": HOST, "url": "http://192.168.10.29:9090"}]
    given = yaml.safe_load(render(TEMPLATES / "grafana" / "datasources.yml.j2", variables(monitoring_grafana_sources=sources)))
    (source,) = given["datasources"]
    assert (source["type"], source["url"], source["jsonData"]["timeInterval"]) == ("prometheus", "http://192.168.10.29:9090", "15s")
    offered = json.loads(boards["citadel-overview.json"])["templating"]["list"][0]
    assert re.search(offered["regex"].strip("/"), source["name"])
    provider = yaml.safe_load(render(TEMPLATES / "grafana" / "dashboards.yml.j2", variables()))["providers"][0]
    assert provider["options"]["path"] == role_defaults("monitoring")["monitoring_grafana_dashboards_directory"]
