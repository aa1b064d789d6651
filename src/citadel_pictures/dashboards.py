"""The same figures and panels as Grafana's dashboards, written with Grafana's own library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .figures import FIGURES, FIRING_ALERTS, SWITCH, Figure, Level
from .panels import MODEL_PANELS, OVERVIEW_PANELS, Panel, lines

OVERVIEW: Final = "citadel-overview"
MODEL: Final = "citadel-model"

WIDTH: Final = 8
HEIGHT: Final = 8

BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
VERMILION: Final = "#D55E00"
"""Of Okabe and Ito's palette, which people who do not see all colours tell apart."""

_SOURCE: Final = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

_CONDITIONS: Final = {
    Level.MODEL: {"host": '=~"$host"', "model": '=~"$model"'},
    Level.SERVICE: {"host": '=~"$host"', "service": '=~"$model"'},
    Level.HOST: {"host": '=~"$host"'},
}


def dashboards(percents: Mapping[str, float]) -> dict[str, str]:
    """Write all dashboards.

    Args:
        percents: What the inventory says of the lines in drawings, by their names; see :func:`citadel_pictures.panels.lines`.

    Returns:
        The text of each by the name of its file.

    """
    heights = lines(percents)
    overview = _dashboard(OVERVIEW, "citadel-llm: overview", others=MODEL).with_variable(
        _variable("host", "up{job='models'}", several=True)
    )
    overview = overview.with_panel(_alerts(1))
    model = _dashboard(MODEL, "citadel-llm: a model", others=OVERVIEW).with_variable(_variable("host", "up{job='models'}", several=False))
    model = model.with_variable(_variable("model", 'up{job="models",host=~"$host"}', several=False))
    for number, panel in enumerate(OVERVIEW_PANELS, start=2):
        overview = overview.with_panel(_panel(number, panel, heights, of_one_model=False))
    for number, panel in enumerate(MODEL_PANELS, start=1):
        model = model.with_panel(_panel(number, panel, heights, of_one_model=True))
    return {f"{uid}.json": _text(built) for uid, built in ((OVERVIEW, overview), (MODEL, model))}


def _text(built: builders.Dashboard) -> str:
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _dashboard(uid: str, title: str, *, others: str) -> builders.Dashboard:
    link = builders.DashboardLink("the other page").type(dashboard.DashboardLinkType.LINK).url(f"/d/{others}").keep_time(True)
    return (
        builders.Dashboard(title)
        .uid(uid)
        .tags(["citadel-llm"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone(common.TimeZoneBrowser)
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(link)
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus").regex("/^citadel-llm/"))
    )


def _variable(name: str, series: str, *, several: bool) -> builders.QueryVariable:
    variable = (
        builders.QueryVariable(name)
        .label(name)
        .datasource(_SOURCE)
        .query(f"label_values({series}, {name})")
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    )
    return variable.multi(True).include_all(True).all_value(".+") if several else variable


def _selector(figure: Figure, *, of_one_model: bool) -> str:
    level = figure.level if of_one_model else Level.HOST
    return figure.selector(**_CONDITIONS[level])


def _query(name: str, expression: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(name).datasource(_SOURCE).expr(expression).range().legend_format(legend)


def _queries(panel: Panel, *, of_one_model: bool) -> Iterable[prometheus.Dataquery]:
    shown = [*panel.figures, *([panel.target] if panel.target and panel.target not in panel.figures else [])]
    for place, key in enumerate(shown):
        figure = FIGURES[key]
        of_what = "" if of_one_model else " ".join(f"{{{{{label}}}}}" for label in (*figure.level.value, *_more_labels(key)))
        yield _query(chr(ord("A") + place), _selector(figure, of_one_model=of_one_model), f"{figure.name} {of_what}".strip())


def _more_labels(key: str) -> tuple[str, ...]:
    return ("requested_model", "fallback_model") if key.startswith("fallbacks") else ()


def _idle(figure: Figure) -> list[dashboard.ValueMapping]:
    """Name what is not a number."""
    if not figure.idle:
        return []
    result = dashboard.ValueMappingResult(text=figure.idle)
    options = dashboard.DashboardSpecialValueMapOptions(match=dashboard.SpecialValueMatch.NA_N, result=result)
    return [dashboard.SpecialValueMap(options)]


def _panel(number: int, panel: Panel, heights: Mapping[str, float], *, of_one_model: bool) -> Builder[dashboard.Panel]:
    return (
        _states(number, panel, of_one_model=of_one_model)
        if panel.first.unit is SWITCH
        else _curves(number, panel, heights, of_one_model=of_one_model)
    )


def _states(number: int, panel: Panel, *, of_one_model: bool) -> statetimeline.Panel:
    good = "0" if panel.figures[0].startswith("breaker_") else "1"
    words = {
        value: dashboard.ValueMappingResult(
            text=f"{'yes' if value == '1' else 'no'}", color=BLUE if value == good else VERMILION, index=place
        )
        for place, value in enumerate(("0", "1"))
    }
    built = (
        statetimeline.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.explanation)
        .datasource(_SOURCE)
        .span(WIDTH)
        .height(HEIGHT)
        .no_value("no data")
        .mappings([dashboard.ValueMap(words)])
        .show_value(common.VisibilityMode.ALWAYS)
    )
    for query in _queries(panel, of_one_model=of_one_model):
        built = built.with_target(query)
    return built


def _curves(number: int, panel: Panel, heights: Mapping[str, float], *, of_one_model: bool) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.explanation)
        .datasource(_SOURCE)
        .span(WIDTH)
        .height(HEIGHT)
        .unit(panel.first.unit.grafana)
        .min(0)
        .no_value("no data")
        .mappings(_idle(panel.first))
        # A gap stays a gap.
        .span_nulls(False)
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(2)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
    )
    if panel.full_scale is not None:
        built = built.axis_soft_max(panel.full_scale)
    elif panel.target is None:
        built = built.axis_soft_max(panel.least_scale)
    if panel.line:
        steps = [dashboard.Threshold(value=None, color=BLUE), dashboard.Threshold(value=heights[panel.line], color=VERMILION)]
        built = built.thresholds(builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps))
        built = built.thresholds_style(common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    if panel.target:
        dashes = {"fill": "dash", "dash": [10, 10]}
        style = [
            dashboard.DynamicConfigValue("custom.lineStyle", dashes),
            dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": ORANGE}),
        ]
        built = built.override_by_regexp(f"/^{FIGURES[panel.target].name}/", style)
    for key in panel.figures[1:]:
        if FIGURES[key].unit is not panel.first.unit:
            built = built.override_by_regexp(f"/^{FIGURES[key].name}/", [dashboard.DynamicConfigValue("unit", FIGURES[key].unit.grafana)])
    for query in _queries(panel, of_one_model=of_one_model):
        built = built.with_target(query)
    return built


def _alerts(number: int) -> table.Panel:
    query = prometheus.Dataquery().ref_id("A").datasource(_SOURCE).expr(FIRING_ALERTS).instant().format(PromQueryFormat.TABLE)
    return (
        table.Panel()
        .id(number)
        .title("Alerts that fire")
        .datasource(_SOURCE)
        .span(24)
        .height(6)
        .no_value("no alert fires")
        .with_target(query)
        .with_transformation(
            dashboard.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True, "Value": True, "__name__": True, "alertstate": True},
                    "indexByName": {"severity": 0, "alertname": 1, "host": 2, "service": 3, "model": 4},
                },
            )
        )
    )
