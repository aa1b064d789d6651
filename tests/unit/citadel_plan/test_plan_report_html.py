"""The page of a plan: complete, well formed, escaped, self-contained, and readable in both colour schemes by everybody."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest

from citadel_plan import PlanError, plan_page
from unit.plan_examples import GIB, host_facts, production_plan, tiny_overrides

VOID = {"meta", "br", "hr", "img", "input", "link"}

TWO_NODES = host_facts(memory_gib=256, cores=48, nodes=2) | {
    "thread_siblings": [f"{core},{core + 24}" for core in range(24)],
    "numa_nodes": [
        {"id": 0, "cpus": "0-11,24-35", "memory_bytes": 128 * GIB},
        {"id": 1, "cpus": "12-23,36-47", "memory_bytes": 128 * GIB},
    ],
}
LAB = {
    "facts": host_facts(memory_gib=23, cores=2, isa="avx2", storage_free_bytes=60 * GIB),
    "overrides": tiny_overrides(),
    "memory_reserve": "2GiB",
}
CASES: dict[str, dict[str, Any]] = {
    "one-node": {"facts": host_facts()},
    "two-nodes": {"facts": TWO_NODES},
    "one-gpu": {"facts": host_facts(memory_gib=256, gpus_gib=(141,))},
    "four-gpus": {"facts": host_facts(memory_gib=256, gpus_gib=(24, 24, 24, 24))},
    "lab": LAB,
}


class Page(HTMLParser):
    """The page as a browser reads it: elements with their attributes, their parents and their text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "elements that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}, tuple(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1:] == [tag], f"</{tag}> closes {self._open}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((tuple(self._open), data))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def shown(self) -> str:
        return "\n".join(text for inside, text in self.texts if not {"style", "head"} & set(inside))


def page_of(case: str) -> tuple[dict[str, Any], str]:
    result = production_plan(**CASES[case]).to_dict()
    return result, plan_page(result, CASES[case]["facts"])


@pytest.fixture(scope="module", params=CASES)
def drawn(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Page]:
    result, text = page_of(request.param)
    return result, Page(text)


def test_every_service_and_every_figure_is_on_the_page(drawn: tuple[dict[str, Any], Page]) -> None:
    result, page = drawn
    lines = page.shown.splitlines()
    for service in result["services"]:
        memory = ["memory_requested_bytes", "memory_max_bytes", "weights_bytes", "kv_cache_bytes", "runtime_bytes", "headroom_bytes"]
        figures = [f"{service[key]:,}" for key in [*memory, "storage_requested_bytes", "storage_needed_bytes"]]
        figures += [
            str(service[key]) for key in ("api_port", "metrics_port", "state_port", "upstream_port", "cpus_requested", "cpu_weight")
        ]
        figures += [f"{size:,}" for size in (service["gpu"] or {}).values()]
        texts = [service["name"], service["variant"], service["cpu_set"], *figures]
        assert [text for text in texts if text not in lines and f" as {text}" not in lines] == []
        assert f"for {service['max_num_seqs']} sequences of {service['context_tokens']:,} tokens" in page.shown
    gateway = result["gateway"]
    assert {gateway["name"], str(gateway["port"]), f"{gateway['memory_max_bytes']:,}", gateway["cpu_set"]} <= set(lines)
    assert set(result["warnings"]) <= set(lines)
    assert f"{result['totals']['memory_max_bytes']:,}" in lines
    assert {str(port) for port in result["edge"]["listen_ports"]} <= set(lines)
    assert str(result["monitoring"]["prometheus_port"]) in lines


def test_each_bar_of_memory_is_there(drawn: tuple[dict[str, Any], Page]) -> None:
    result, page = drawn
    titles = [text for inside, text in page.texts if inside[-1] == "title" and inside[-2] == "svg"]
    expected = {
        "one-node": ["Memory of hx-llm-server-01: 128.0 GiB"],
        "two-nodes": [
            f"Memory of {place}" for place in ("hx-llm-server-01: 256.0 GiB", "NUMA node 0: 128.0 GiB", "NUMA node 1: 128.0 GiB")
        ],
        "one-gpu": ["Memory of GPU 0: 141.0 GiB", "Memory of hx-llm-server-01: 256.0 GiB"],
        "four-gpus": [*(f"Memory of GPU {number}: 24.0 GiB" for number in range(4)), "Memory of hx-llm-server-01: 256.0 GiB"],
        "lab": ["Memory of hx-llm-server-01: 23.0 GiB"],
    }
    memory = [title for title in titles if title.startswith("Memory of")]
    assert memory in expected.values()
    assert len(memory) == 1 + len({gpu for service in result["services"] for gpu in service["gpu_ids"]}) + (
        2 if "NUMA" in str(memory) else 0
    )
    assert "\n".join(titles).count(" asked") == len(result["services"])


def test_it_needs_nothing_from_elsewhere_and_no_script(drawn: tuple[dict[str, Any], Page]) -> None:
    page = drawn[1]
    tags = {tag for tag, _, _ in page.elements}
    assert tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"} == set()
    for _, attributes, _ in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in {"src", "href", "action", "srcset", "data"}]
    style = next(text for inside, text in page.texts if inside[-1] == "style")
    assert "@import" not in style
    everything = style + str(page.elements)
    assert "://" not in everything
    assert set(re.findall(r"url\((.)", everything)) <= {"#"}


def test_it_can_be_heard_and_walked_through_by_keyboard(drawn: tuple[dict[str, Any], Page]) -> None:
    page = drawn[1]
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [
        value for _, attributes, _ in page.elements for key, value in attributes.items() if key.startswith("aria-") and key.endswith("by")
    ]
    references += re.findall(r"url\(#([^)]*)\)", str(page.elements))
    assert set(references) <= set(ids)
    for attributes in page.of("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-describedby"])
    assert len(page.of("caption")) == len(page.of("table")) >= 5
    assert all(attributes["scope"] in {"row", "col"} for attributes in page.of("th"))
    # A table that is wider than the screen is scrolled in a box that the keyboard reaches and that says what it is.
    boxes = [attributes for attributes in page.of("div") if "tabindex" in attributes]
    assert len(boxes) == len(page.of("table"))
    assert all(attributes["role"] == "region" and attributes["aria-label"] for attributes in boxes)
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("h1")) == len(page.of("main")) == 1


def test_whatever_a_name_holds_is_text() -> None:
    hostile = '<script>alert("1")</script> & <img src=x onerror=alert(2)>'
    result = production_plan().to_dict()
    result["host"] = hostile
    result["warnings"] = [hostile, "</style></title></svg>"]
    result["services"][0]["variant"] = hostile
    for entry in (*result["services"], *result["edge"]["api_ports"], *result["edge"]["metrics_ports"]):
        for key in ("name", "service"):
            if entry.get(key) == "hermes-2":
                entry[key] = hostile
    page = Page(plan_page(result, host_facts()))
    assert {"script", "img"} & {tag for tag, _, _ in page.elements} == set()
    lines = [text for _, text in page.texts]
    assert hostile in lines
    assert f" as {hostile}" in lines
    assert "</style></title></svg>" in lines
    assert f"Plan of {hostile}" in lines


def test_the_same_plan_gives_the_same_bytes_whatever_the_order_of_its_keys() -> None:
    def reverse(value: Any) -> Any:  # noqa: ANN401 - JSON
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in reversed(value)}
        return [reverse(item) for item in value] if isinstance(value, list) else value

    for case in CASES:
        result, text = page_of(case)
        assert plan_page(reverse(result), reverse(CASES[case]["facts"])) == text


def test_facts_that_are_none_are_refused_with_a_sentence() -> None:
    with pytest.raises(PlanError, match=r"citadel_host_facts\.memory_bytes"):
        plan_page(production_plan().to_dict(), {key: value for key, value in host_facts().items() if key != "memory_bytes"})


# --- colours: WCAG 2.2, success criteria 1.4.3 (text, 4.5:1) and 1.4.11 (drawings, 3:1)

PARTS = ("weights", "kv-cache", "runtime", "headroom", "gateway", "reserve", "cores", "free")
SOLID = ("weights", "kv-cache", "runtime", "gateway")
Colour = tuple[float, float, float]

# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency (2009), severity 1.0.
DEFICIENCIES = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    "achromatopsia": ((0.2126, 0.7152, 0.0722),) * 3,
}

# Ottosson: A perceptual color space for image processing (2020).
TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
CONES_TO_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


@pytest.fixture(scope="module")
def palettes() -> dict[str, dict[str, str]]:
    """Read both palettes from the page itself."""
    style = next(text for inside, text in Page(page_of("one-node")[1]).texts if inside[-1] == "style")
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{([^}]*--page[^}]*)\}", style))
    assert set(light) == set(dark)
    assert light != dark
    assert "@media screen and (prefers-color-scheme: dark)" in style, "paper is white: dark is for screens"
    return {"light": light, "dark": dark}


def linear(colour: str) -> Colour:
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return (red, green, blue)


def times(row: Sequence[float], values: Sequence[float]) -> float:
    return sum(share * value for share, value in zip(row, values, strict=True))


def contrast(one: str, other: str) -> float:
    luminance = (0.2126, 0.7152, 0.0722)
    lighter, darker = sorted((times(luminance, linear(colour)) for colour in (one, other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def seen(colour: str, deficiency: str) -> Colour:
    """OKLab of a colour as somebody with the deficiency sees it."""
    light = [min(1.0, max(0.0, times(row, linear(colour)))) for row in DEFICIENCIES[deficiency]]
    cones = [times(row, light) ** (1 / 3) for row in TO_CONES]
    lightness, green_red, blue_yellow = (times(row, cones) for row in CONES_TO_OKLAB)
    return (lightness, green_red, blue_yellow)


def test_the_measures_are_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert seen("#ffffff", "none") == pytest.approx((1, 0, 0), abs=1e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_drawings_stand_out(palettes: dict[str, dict[str, str]], scheme: str) -> None:
    palette = palettes[scheme]
    assert contrast(palette["ink"], palette["page"]) >= 7
    assert contrast(palette["quiet"], palette["page"]) >= 4.5
    assert {part for part in SOLID if contrast(palette[part], palette["page"]) < 3} == set()
    # The pale parts are told by their lines and borders.
    pale = set(PARTS) - set(SOLID)
    assert {part for part in pale if contrast(palette[f"{part}-mark"], palette["page"]) < 3} == set()
    assert {part for part in ("headroom", "reserve", "cores") if contrast(palette[f"{part}-mark"], palette[part]) < 3} == set()
    # A pattern is seen on its own ground.
    assert {part for part in ("kv-cache", "runtime", "gateway") if contrast(palette[f"{part}-mark"], palette[part]) < 2} == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_neighbours_differ_for_everybody(palettes: dict[str, dict[str, str]], scheme: str, deficiency: str) -> None:
    palette = palettes[scheme]
    # Without any colour at all the patterns tell; there only what touches must differ.
    touching = itertools.pairwise(("weights", "kv-cache", "runtime", "headroom"))
    pairs = touching if deficiency == "achromatopsia" else itertools.combinations((*SOLID, "headroom"), 2)
    distances = {pair: math.dist(*(seen(palette[part], deficiency) for part in pair)) for pair in pairs}
    # A difference of 0.02 in OKLab is just visible.
    assert {pair: distance for pair, distance in distances.items() if distance < 0.06} == {}


def test_no_two_parts_have_the_same_pattern() -> None:
    text = page_of("one-node")[1]
    patterns = re.findall(r'<pattern id="pattern-([a-z-]+)"[^>]*>(.*?)</pattern>', text, re.DOTALL)
    assert {name for name, _ in patterns} == set(PARTS) - {"free"}
    solid = [name for name, drawn in patterns if "<path" not in drawn and "<circle" not in drawn]
    # Weights are the only plain one among the parts of memory; cores are never beside them.
    assert solid == ["weights", "cores"]
    lines = [re.findall(r' (?:d|r)="([^"]*)"', drawn) for name, drawn in patterns if name not in solid]
    assert len({tuple(line) for line in lines}) == len(lines)
    assert "stroke-dasharray" in text, "what is free is outlined"
