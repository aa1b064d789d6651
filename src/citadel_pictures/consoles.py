"""The figures and panels as the templates of the consoles take them: ready PromQL with places for what a page is about.

Prometheus' templates cannot calculate, and take the result of a query as it is. So everything that a drawing needs is asked for in PromQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .figures import FIGURES, Figure, Level
from .panels import MODEL_PANELS, Panel, lines

HEIGHT: Final = 24
"""Of a drawing, in units of its own."""

BARS: Final = 30
BAR_WIDTH: Final = 4

RANGES_HOURS: Final = (1, 6, 24)
"""How far back a page may look; the first unless it is asked for another."""

_PLACES: Final = {
    Level.MODEL: {"host": "=%[1]q", "model": "=%[2]q"},
    Level.SERVICE: {"host": "=%[1]q", "service": "=%[2]q"},
    Level.HOST: {"host": "=%[1]q"},
}
"""Conditions for Go's printf: the host is its first value, the model or service its second, the hours that are shown its third."""


def console_pictures(percents: Mapping[str, float]) -> dict[str, Any]:
    """Describe the consoles.

    Args:
        percents: What the inventory says of the lines in drawings, by their names; see :func:`lines`.

    Returns:
        ``height`` and ``width`` of a drawing, ``ranges`` (each with its bars, the oldest first), ``figures`` by name, the ``panels``.

    """
    heights = lines(percents)
    return {
        "height": HEIGHT,
        "width": BARS * BAR_WIDTH,
        "ranges": [
            {
                "hours": hours,
                "bars": [
                    # An offset of nothing is refused.
                    {"x": number * BAR_WIDTH, "offset": f"{max(1, (BARS - 1 - number) * hours * 3600 // BARS)}s"}
                    for number in range(BARS)
                ],
            }
            for hours in RANGES_HOURS
        ],
        "figures": {name: _figure(figure) for name, figure in FIGURES.items()},
        "panels": [_panel(panel, heights) for panel in MODEL_PANELS],
    }


def _selector(figure: Figure) -> str:
    return figure.selector(**_PLACES[figure.level])


def _figure(figure: Figure) -> dict[str, str]:
    selector = _selector(figure)
    return {
        "metric": figure.metric,
        "name": figure.name,
        "selector": selector,
        "shown": selector if figure.unit.factor == "1" else f"{figure.unit.factor} * {selector}",
        "form": figure.unit.form,
        "idle": figure.idle or "not a number",
    }


def _panel(panel: Panel, heights: Mapping[str, float]) -> dict[str, Any]:
    scale = _scale(panel)
    factor = panel.first.unit.factor
    line = _line(panel, heights)
    return {
        "title": panel.title,
        "explanation": panel.explanation,
        "figures": list(panel.figures),
        "target": panel.target,
        "selector": _selector(panel.first),
        "scale": scale,
        "scale_shown": f"{factor} * {scale}",
        "form": panel.first.unit.form,
        "is_switch": panel.first.unit.grafana == "bool_yes_no",
        # In PromQL as well, because a scale may be known only then.
        "line": f"{HEIGHT} * {line} / {scale}" if line else "",
    }


def _scale(panel: Panel) -> str:
    """What fills the drawing, in PromQL."""
    if panel.full_scale is not None:
        return f"vector({panel.full_scale:g})"
    if panel.target and panel.target not in panel.figures:
        return f"vector(2 * scalar({_selector(FIGURES[panel.target])}))"
    if panel.target:
        return f"vector(scalar({_selector(FIGURES[panel.target])}))"
    return f"clamp_min(max(max_over_time({_selector(panel.first)}[%[3]sh])) or vector(0), {panel.least_scale:g})"


def _line(panel: Panel, heights: Mapping[str, float]) -> str:
    """Where the drawing has a line, in PromQL."""
    if panel.line:
        return f"vector({heights[panel.line]:g})"
    if panel.target and panel.target not in panel.figures:
        return f"vector(scalar({_selector(FIGURES[panel.target])}))"
    return ""
