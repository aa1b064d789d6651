"""A plan as a page: one file without scripts or anything from elsewhere, readable on paper, in the dark and by ear.

The page is built as a tree of elements, so that whatever a name holds is escaped and every element is closed. Figures
come from the plan, geometry from :mod:`report_layout`; nothing is calculated here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from .parse import parse_host
from .problems import Problems
from .report_layout import (
    MEMORY_PARTS,
    PART_NAMES,
    Part,
    Strip,
    cpu_strips,
    gpu_memory,
    host_memory,
    letters_of,
    memory_parts,
    node_memory,
    service_memory,
    storage_strip,
    usable_memory,
)
from .units import gib

Entry = Mapping[str, Any]
Element = ElementTree.Element
Content = Element | str

_STYLE: Final = Path(__file__).with_name("report.css")

_LETTERS_HEIGHT: Final = 20
_BAR_HEIGHT: Final = 28
_TICKS_HEIGHT: Final = 20
_SWATCH: Final = 14

_INLINE: Final = frozenset({"a", "b", "code", "span"})
"""White space after these would show."""


def plan_page(plan: Entry, host_facts: object) -> str:
    """Draw a plan.

    Args:
        plan: A plan in its plain form.
        host_facts: ``citadel_host_facts`` that it was made with: sizes of nodes, GPUs and the disk.

    Returns:
        An HTML document; the same plan and facts give the same text.

    Raises:
        PlanError: With a sentence for everything that is wrong with the facts.

    """
    problems = Problems(plan["host"])
    host = parse_host(plan["host"], host_facts, problems)
    problems.raise_if_any()
    head = _element(
        "head",
        {},
        _element("meta", {"charset": "utf-8"}),
        _element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        _element("title", {}, f"Plan of {plan['host']}"),
        _element("style", {}, _STYLE.read_text(encoding="utf-8")),
    )
    numbered = _Numbers()
    body = _element(
        "body",
        {},
        _patterns(),
        _header(plan),
        _element(
            "main",
            {},
            _warnings(plan),
            _memory(plan, [host_memory(plan), *node_memory(plan, host)], gpu_memory(plan, host), numbered),
            _cpus(plan, cpu_strips(plan, host), numbered),
            _ports(plan),
            _storage(plan, storage_strip(plan, host), numbered),
        ),
        _footer(plan),
    )
    page = _element("html", {"lang": "en"}, head, body)
    return "<!doctype html>\n" + ElementTree.tostring(page, encoding="unicode", method="html")


class _Numbers:
    """Gives drawings ids, in the order in which they are made."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        self._last += 1
        return f"drawing-{self._last}"


def _element(tag: str, attributes: Mapping[str, str], *children: Content) -> Element:
    """Build an element; texts are escaped when the tree is written."""
    element = ElementTree.Element(tag, dict(attributes))
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    if tag not in _INLINE:
        element.tail = "\n"
    return element


def _paragraph(*children: Content, kind: str = "") -> Element:
    return _element("p", {"class": kind} if kind else {}, *children)


def _section(title: str, *children: Content) -> Element:
    name = title.lower()
    return _element("section", {"aria-labelledby": name}, _element("h2", {"id": name}, title), *children)


def _letter(text: str) -> Element:
    return _element("span", {"class": "letter"}, text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- drawings


def _patterns() -> Element:
    """Define the patterns, once; a drawing fills with ``url(#pattern-PART)``."""
    marks: dict[Part, tuple[int, list[Element]]] = {
        Part.WEIGHTS: (8, []),
        Part.KV_CACHE: (8, [_path("M-2 2 L2 -2 M-2 10 L10 -2 M6 10 L10 6", Part.KV_CACHE, 1.5)]),
        Part.RUNTIME: (6, [_element("circle", {"cx": "3", "cy": "3", "r": "1.4", "style": f"fill: var(--{Part.RUNTIME}-mark)"})]),
        Part.HEADROOM: (6, [_path("M0 3 H6", Part.HEADROOM, 1.2)]),
        Part.GATEWAY: (6, [_path("M3 0 V6", Part.GATEWAY, 1.5)]),
        Part.RESERVE: (8, [_path("M0 0 L8 8 M8 0 L0 8", Part.RESERVE, 1)]),
        Part.CORES: (8, []),
    }
    patterns = [
        _element(
            "pattern",
            {"id": f"pattern-{part}", "width": str(size), "height": str(size), "patternUnits": "userSpaceOnUse"},
            _element("rect", {"width": str(size), "height": str(size), "style": f"fill: var(--{part})"}),
            *drawn,
        )
        for part, (size, drawn) in marks.items()
    ]
    return _element("svg", {"class": "patterns", "aria-hidden": "true", "focusable": "false"}, _element("defs", {}, *patterns))


def _path(line: str, part: Part, width: float) -> Element:
    return _element("path", {"d": line, "style": f"fill: none; stroke: var(--{part}-mark); stroke-width: {width}"})


def _fill(part: Part) -> dict[str, str]:
    return {"class": "free"} if part is Part.FREE else {"class": str(part), "fill": f"url(#pattern-{part})"}


def _swatch(part: Part) -> Element:
    box = {"x": "0.5", "y": "0.5", "width": str(_SWATCH - 1), "height": str(_SWATCH - 1)}
    return _element(
        "svg",
        {"viewBox": f"0 0 {_SWATCH} {_SWATCH}", "aria-hidden": "true", "focusable": "false"},
        _element("rect", {**box, **_fill(part)}),
        _element("rect", {**box, "class": "outline"}),
    )


def _line(place: str, top: int, bottom: int, kind: str) -> Element:
    return _element("line", {"x1": place, "x2": place, "y1": str(top), "y2": str(bottom), "class": kind})


def _draw(strip: Strip, numbers: _Numbers) -> Element:
    """Write a strip as SVG: places across are shares of its width, heights are pixels, so that it fits any screen."""
    name = numbers.next()
    top = _LETTERS_HEIGHT if strip.letters or strip.request else 2
    bottom = top + _BAR_HEIGHT
    height = bottom + (_TICKS_HEIGHT if strip.ticks else 2)
    drawn = [_element("title", {"id": f"{name}-title"}, strip.title), _element("desc", {"id": f"{name}-text"}, strip.description)]
    for segment in strip.segments:
        box = {"x": strip.percent(segment.start), "y": str(top), "width": strip.width(segment), "height": str(_BAR_HEIGHT)}
        drawn.append(_element("rect", {**box, **_fill(segment.part)}, _element("title", {}, segment.text)))
    drawn += [_line(strip.percent(place), top, bottom, "grid") for place in strip.grid]
    drawn += [_line(strip.percent(segment.start), top, bottom, "border") for segment in strip.segments if segment.start]
    drawn += [_line(strip.percent(place), top, bottom, "divider") for place in strip.dividers]
    drawn += [
        _element("text", {"x": strip.middle(letter), "y": str(top - 6), "text-anchor": "middle", "class": "letters"}, letter.text)
        for letter in strip.letters
    ]
    for tick in strip.ticks:
        place = strip.percent(tick.at)
        drawn.append(_line(place, bottom + 1, bottom + 5, "tick-line"))
        drawn.append(_element("text", {"x": place, "y": str(bottom + 17), "text-anchor": strip.anchor(tick), "class": "tick"}, tick.text))
    if strip.request:
        place = strip.percent(strip.request.at)
        drawn += [_line(place, top - 4, bottom + 4, kind) for kind in ("request-halo", "request")]
        drawn.append(_element("text", {"x": place, "y": str(top - 7), "text-anchor": strip.anchor(strip.request)}, strip.request.text))
    return _element(
        "svg",
        {"class": "strip", "height": str(height), "role": "img", "aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-text"},
        *drawn,
    )


def _figure(strip: Strip, numbers: _Numbers) -> Element:
    return _element("figure", {}, _element("h3", {}, strip.title), _draw(strip, numbers))


def _legend(parts: Iterable[Part]) -> Element:
    return _element("ul", {"class": "legend"}, *(_element("li", {}, _swatch(part), PART_NAMES[part]) for part in parts))


def _owners(letters: Mapping[str, str]) -> Element:
    return _element("ul", {"class": "legend"}, *(_element("li", {}, _letter(letter), name) for name, letter in letters.items()))


# --- tables


def _table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[Content]], *, foot: Sequence[str] = ()) -> Element:
    """Write a table; the first column names the row, columns of figures stand on the right."""
    body = [list(row) for row in rows]
    numbers = {column for column in range(len(headings)) if all(_is_number(row[column]) for row in body) and column}

    def cell(tag: str, column: int, content: Content, scope: str = "") -> Element:
        attributes = {"class": "number"} if column in numbers else {}
        return _element(tag, attributes | ({"scope": scope} if scope else {}), content)

    def row(cells: Sequence[Content]) -> Element:
        return _element(
            "tr", {}, *(cell("td" if column else "th", column, content, "" if column else "row") for column, content in enumerate(cells))
        )

    parts = [
        _element("caption", {}, _element("span", {}, caption)),
        _element("thead", {}, _element("tr", {}, *(cell("th", column, heading, "col") for column, heading in enumerate(headings)))),
        _element("tbody", {}, *(row(cells) for cells in body)),
    ]
    if foot:
        parts.append(_element("tfoot", {}, row(foot)))
    # What is wider than the screen is scrolled, by keyboard too.
    return _element("div", {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": caption}, _element("table", {}, *parts))


def _is_number(content: Content) -> bool:
    """Tell whether a cell holds a figure, or nothing."""
    return isinstance(content, str) and (not content or re.fullmatch(r"[\d,.]+(?: %)?", content) is not None)


def _bytes(size: int) -> str:
    return f"{size:,}"


def _quota(entry: Entry) -> str:
    return "none" if entry["cpu_quota_percent"] is None else f"{entry['cpu_quota_percent']} %"


# --- the parts of the page


def _header(plan: Entry) -> Element:
    totals = plan["totals"]
    machine = "CUDA" if plan["device"] == "cuda" else f"CPU with {str(plan['isa']).upper()}"
    figures = [
        ("Memory", gib(totals["memory_max_bytes"]), f"granted of {gib(usable_memory(plan))}, {gib(totals['memory_free_bytes'])} free"),
        ("Cores", str(totals["cpus_requested"]), f"requested of {totals['cpus_available']}"),
        ("Disk", gib(totals["storage_needed_bytes"]), f"needed for weights, {gib(totals['storage_requested_bytes'])} allocated"),
        ("Models", str(len(plan["services"])), f"and the gateway, with {_count(plan['gateway']['workers'], 'worker')}"),
    ]
    return _element(
        "header",
        {},
        _element("h1", {}, f"Plan of {plan['host']}"),
        _paragraph(
            f"{machine}, policy {plan['policy']}. Everything below fits together; nothing on the host has been touched.", kind="quiet"
        ),
        _element(
            "dl",
            {"class": "figures"},
            *(
                _element("div", {}, _element("dt", {}, name), _element("dd", {}, value, _element("span", {}, note)))
                for name, value, note in figures
            ),
        ),
    )


def _warnings(plan: Entry) -> Element:
    if not plan["warnings"]:
        return _section("Warnings", _paragraph("None."))
    return _section("Warnings", _element("ul", {"class": "warnings"}, *(_element("li", {}, warning) for warning in plan["warnings"])))


def _memory(plan: Entry, host: Sequence[Strip], gpus: Sequence[Strip], numbers: _Numbers) -> Element:
    letters = letters_of(plan)
    content: list[Content] = [
        _legend((*MEMORY_PARTS, Part.GATEWAY, Part.RESERVE, Part.FREE)),
        _owners(letters),
        *(_figure(strip, numbers) for strip in (*gpus, *host)),
    ]
    if len(host) > 1:
        content.append(
            _paragraph(
                "vLLM binds each model to one NUMA node. The gateway is bound to none and stands in the host's line only.", kind="quiet"
            )
        )
    content.append(_element("h3", {}, "What each service does with its share"))
    content.append(_paragraph("Each line has a scale of its own. The upright mark is what was asked for.", kind="quiet"))
    content += [_service(service, letters[service["name"]], numbers) for service in plan["services"]]
    gateway = plan["gateway"]
    rows: list[list[Content]] = [
        [_named(letters, service["name"]), service["variant"], *map(_bytes, _memory_figures(service, service))]
        for service in plan["services"]
    ]
    asked, granted = (_bytes(gateway[f"memory_{key}_bytes"]) for key in ("requested", "max"))
    total = plan["totals"]
    content.append(
        _table(
            "Memory of the host in bytes; granted is what systemd enforces, and the sum of the four to its right",
            ["Service", "Variant", "Asked", "Granted", "Weights", "KV cache", "Runtime", "Headroom"],
            [*rows, [_named(letters, gateway["name"]), _count(gateway["workers"], "worker"), asked, granted, *[""] * 4]],
            foot=["All", "", _bytes(total["memory_requested_bytes"]), _bytes(total["memory_max_bytes"]), "", "", "", ""],
        )
    )
    if gpus:
        content.append(
            _table(
                "Memory on the GPUs in bytes, all GPUs of a service together",
                ["Service", "GPUs", "Share of each", "Granted", "Weights", "KV cache", "Runtime", "Headroom"],
                [
                    [
                        _named(letters, service["name"]),
                        ", ".join(map(str, service["gpu_ids"])),
                        f"{service['gpu_memory_utilization']:.3f}",
                        _bytes(service["gpu"]["memory_bytes"]),
                        *(_bytes(size) for _, size in memory_parts(service["gpu"])),
                    ]
                    for service in plan["services"]
                ],
            )
        )
    return _section("Memory", *content)


def _memory_figures(service: Entry, where: Entry) -> list[int]:
    return [service["memory_requested_bytes"], service["memory_max_bytes"], *(size for _, size in memory_parts(where))]


def _named(letters: Mapping[str, str], name: str) -> Element:
    return _element("span", {}, _letter(letters[name]), name)


def _service(service: Entry, letter: str, numbers: _Numbers) -> Element:
    notes = {Part.KV_CACHE: f" for {_count(service['max_num_seqs'], 'sequence')} of {service['context_tokens']:,} tokens"}
    drawn: list[Content] = []
    for strip, parts in service_memory(service):
        shown = [_element("li", {}, _swatch(part), f"{PART_NAMES[part]} {gib(size)}{notes.get(part, '')}") for part, size in parts if size]
        drawn += [_paragraph(strip.title, kind="quiet share"), _draw(strip, numbers), _element("ul", {"class": "parts"}, *shown)]
    name = _paragraph(_letter(letter), _element("b", {}, service["name"]), f" as {service['variant']}", kind="name")
    return _element("div", {"class": "service"}, name, *drawn)


def _cpus(plan: Entry, strips: Sequence[Strip], numbers: _Numbers) -> Element:
    letters = letters_of(plan)
    entries = [*plan["services"], plan["gateway"]]
    rows: list[list[Content]] = [
        [
            _named(letters, entry["name"]),
            str(entry["cpus_requested"]),
            _element("code", {}, entry["cpu_set"]),
            "its own" if entry["cpus_exclusive"] else "shared",
            _quota(entry),
            str(entry["cpu_weight"]),
            ", ".join(map(str, entry.get("numa_nodes", ()))) or "any",
            entry.get("omp_threads_bind") or "none",
        ]
        for entry in entries
    ]
    return _section(
        "CPUs",
        _legend((Part.CORES, Part.GATEWAY, Part.FREE)),
        _owners(letters),
        *(_figure(strip, numbers) for strip in strips),
        _table(
            "CPUs by service; cores asked are physical ones, sets are logical CPUs as the kernel numbers them",
            ["Service", "Cores asked", "CPU set", "Use", "CPUQuota", "CPUWeight", "NUMA node", "Threads bound to"],
            rows,
        ),
    )


def _ports(plan: Entry) -> Element:
    letters = letters_of(plan)
    api = {owner["port"]: owner["service"] for owner in plan["edge"]["api_ports"]}
    metrics = {owner["port"]: owner["service"] for owner in plan["edge"]["metrics_ports"]}
    fixed = {plan["gateway"]["port"]: plan["gateway"]["name"], plan["monitoring"]["prometheus_port"]: "Prometheus"}

    def who(name: str | None) -> Content:
        return _named(letters, name) if name in letters else name or "no model"

    return _section(
        "Ports",
        _paragraph(
            "Only HAProxy, the edge, listens on the server's address. A request that names no model goes to the gateway, and from there"
            " through the upstream port, where the breaker and the queue are, to the model."
        ),
        _table(
            "On the server's address, by port",
            ["Port", "API and /health", "GET /metrics"],
            [
                [_element("code", {}, str(port)), who(fixed.get(port) or api.get(port)), who(fixed.get(port) or metrics.get(port))]
                for port in plan["edge"]["listen_ports"]
            ],
        ),
        _table(
            "By service; the server's address and 127.0.0.1 have the same API port",
            ["Service", "API", "Metrics", "State, 127.0.0.1", "Upstream, 127.0.0.1"],
            [
                [_named(letters, service["name"]), *(str(service[f"{key}_port"]) for key in ("api", "metrics", "state", "upstream"))]
                for service in plan["services"]
            ],
        ),
    )


def _storage(plan: Entry, strip: Strip, numbers: _Numbers) -> Element:
    letters, totals = letters_of(plan), plan["totals"]
    needed: list[list[Content]] = [
        [_named(letters, service["name"]), _bytes(service["storage_requested_bytes"]), _bytes(service["storage_needed_bytes"])]
        for service in plan["services"]
    ]
    gateway: list[Content] = [_named(letters, plan["gateway"]["name"]), _bytes(plan["gateway"]["storage_requested_bytes"]), "0"]
    return _section(
        "Storage",
        _legend((Part.WEIGHTS, Part.RESERVE, Part.FREE)),
        _figure(strip, numbers),
        _table(
            "Disk in bytes; what is needed is enforced, what is allocated is only compared",
            ["Service", "Allocated", "Needed"],
            [*needed, gateway],
            foot=["All", _bytes(totals["storage_requested_bytes"]), _bytes(totals["storage_needed_bytes"])],
        ),
    )


def _footer(plan: Entry) -> Element:
    return _element(
        "footer",
        {},
        _paragraph(
            "GiB are 2",
            _element("sup", {}, "30"),
            " bytes. The same figures for programs: ",
            _element("code", {}, f"{plan['host']}.json"),
            f", schema {plan['schema_version']}.",
        ),
    )
