"""The geometry of the page: every drawing is to scale, nothing overlaps, and it shows who has what."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_plan.inputs import NumaNode
from citadel_plan.parse import parse_host
from citadel_plan.problems import Problems
from citadel_plan.report_layout import (
    Part,
    Segment,
    Strip,
    cpu_strips,
    gpu_memory,
    host_memory,
    letters_of,
    node_memory,
    service_memory,
    storage_strip,
)
from unit.plan_examples import GIB, HOST, host_facts, production_plan, tiny_overrides


def drawn(facts: dict[str, Any], **arguments: object) -> tuple[dict[str, Any], Any]:
    return production_plan(facts=facts, **arguments).to_dict(), parse_host(HOST, facts, Problems(HOST))


def share(text: str) -> float:
    assert text.endswith("%")
    return float(text[:-1])


@given(st.lists(st.integers(1, 2**45), min_size=1, max_size=40), st.integers(0, 2**45))
def test_segments_touch_and_are_to_scale(sizes: list[int], free: int) -> None:
    starts = list(itertools.accumulate(sizes, initial=0))
    segments = [Segment(part=Part.WEIGHTS, start=start, size=size, text="") for start, size in zip(starts, sizes, strict=False)]
    strip = Strip(title="", description="", whole=starts[-1] + free, segments=tuple(segments))
    places = [share(strip.percent(segment.start)) for segment in segments]
    widths = [share(strip.width(segment)) for segment in segments]
    ends = [*places[1:], share(strip.percent(starts[-1]))]
    for place, width, end, size in zip(places, widths, ends, sizes, strict=True):
        assert place + width == pytest.approx(end, abs=1e-9)
        assert width == pytest.approx(100 * size / strip.whole, abs=0.0011)
    assert ends[-1] <= 100


CASES = [
    host_facts(),
    host_facts(memory_gib=256, nodes=2),
    host_facts(memory_gib=256, gpus_gib=(141,)),
    host_facts(memory_gib=256, gpus_gib=(24, 24, 24, 24)),
]


@pytest.mark.parametrize("facts", CASES, ids=["one-node", "two-nodes", "one-gpu", "four-gpus"])
def test_the_strips_hold_exactly_what_the_plan_grants(facts: dict[str, Any]) -> None:
    result, host = drawn(facts)
    whole = host_memory(result)
    assert sum(segment.size for segment in whole.segments) == whole.whole == facts["memory_bytes"]
    used = sum(segment.size for segment in whole.segments if segment.part not in {Part.FREE, Part.RESERVE})
    assert used == result["totals"]["memory_max_bytes"]
    assert sum(segment.size for segment in whole.segments if segment.part is Part.FREE) == result["totals"]["memory_free_bytes"]
    for strip in (*node_memory(result, host), *gpu_memory(result, host)):
        assert sum(segment.size for segment in strip.segments) == strip.whole
    on_gpus = [segment for strip in gpu_memory(result, host) for segment in strip.segments if segment.part is not Part.FREE]
    # A share that does not divide evenly loses less than a byte per part and GPU.
    granted = sum(service["gpu"]["memory_bytes"] for service in result["services"] if service["gpu"])
    assert granted - len(on_gpus) <= sum(segment.size for segment in on_gpus) <= granted


def test_a_node_shows_the_models_that_are_bound_to_it() -> None:
    result, host = drawn(host_facts(memory_gib=256, nodes=2))
    for node, strip in enumerate(node_memory(result, host)):
        here = {service["name"] for service in result["services"] if service["numa_nodes"][0] == node}
        assert {segment.text.split(": ")[0] for segment in strip.segments if ": " in segment.text} == here
        assert here, "the example would show nothing"


def test_a_node_without_cpus_has_memory_and_no_cores() -> None:
    result, host = drawn(host_facts())
    expander = NumaNode(id=1, cpu_ids=(), memory_bytes=64 * GIB)
    host = replace(host, numa_nodes=(*host.numa_nodes, expander))
    assert [strip.title for strip in node_memory(result, host)] == ["Memory of NUMA node 0: 128.0 GiB", "Memory of NUMA node 1: 64.0 GiB"]
    assert [strip.title for strip in cpu_strips(result, host)] == ["Cores of NUMA node 0: 24"]


def test_a_node_without_memory_has_cores_and_no_bar() -> None:
    facts = host_facts(memory_gib=160, nodes=2)
    facts["numa_nodes"] = [{**node, "memory_bytes": 160 * GIB * (1 - node["id"])} for node in facts["numa_nodes"]]
    plan, host = drawn(facts)
    assert [strip.title for strip in node_memory(plan, host)] == ["Memory of NUMA node 0: 160.0 GiB"]
    assert [strip.title for strip in cpu_strips(plan, host)] == ["Cores of NUMA node 0: 12", "Cores of NUMA node 1: 12"]


def test_what_was_asked_is_marked_on_the_scale_of_the_larger() -> None:
    result, _ = drawn(host_facts())
    strips = {service["name"]: service_memory(service)[-1][0] for service in result["services"]}
    phi = next(service for service in result["services"] if service["name"] == "phi-3-mini")
    assert phi["memory_max_bytes"] > phi["memory_requested_bytes"]
    strip = strips["phi-3-mini"]
    assert strip.whole == phi["memory_max_bytes"]
    assert strip.request is not None
    assert (strip.request.at, strip.request.text) == (4 * GIB, "asked 4.0 GiB")
    # Where less was granted than asked, the mark is at the end and the rest stays empty.
    tight, _ = drawn(host_facts(memory_gib=125.6))
    mixtral = service_memory(tight["services"][0])[-1][0]
    assert mixtral.whole == 90 * GIB == mixtral.request.at
    assert sum(segment.size for segment in mixtral.segments) == tight["services"][0]["memory_max_bytes"] < 90 * GIB


def owners(strip: Strip) -> list[tuple[str, int]]:
    return [(segment.text.split(": ")[0], segment.size) for segment in strip.segments]


def test_cores_are_drawn_with_who_has_them() -> None:
    result, host = drawn(host_facts())
    (strip,) = cpu_strips(result, host)
    assert owners(strip) == [
        ("mixtral-8x7b", 8), ("hermes-2", 4), ("openchat-3.5", 4), ("phi-3-mini", 2), ("unified-api-gateway", 4), ("free", 2),
    ]  # fmt: skip
    assert [letter.text for letter in strip.letters] == ["A", "B", "C", "D", "E"]


def test_threads_of_a_core_are_one_core() -> None:
    facts = host_facts(cores=48) | {"thread_siblings": [f"{core},{core + 24}" for core in range(24)]}
    result, host = drawn(facts)
    (strip,) = cpu_strips(result, host)
    assert strip.whole == 24
    assert owners(strip)[0] == ("mixtral-8x7b", 8)


def test_cores_that_all_share_say_so() -> None:
    result, host = drawn(host_facts(memory_gib=23, cores=2, isa="avx2"), overrides=tiny_overrides(), memory_reserve="2GiB")
    (strip,) = cpu_strips(result, host)
    assert [letter.text for letter in strip.letters] == ["all of them"]
    assert [segment.size for segment in strip.segments] == [2]


def test_the_disk_shows_more_allocated_than_there_is() -> None:
    result, host = drawn(host_facts())
    strip = storage_strip(result, host)
    assert strip.whole == result["totals"]["storage_requested_bytes"] > host.storage_free_bytes
    assert sum(segment.size for segment in strip.segments) == host.storage_free_bytes


@pytest.mark.parametrize("count", [1, 25, 26, 60])
def test_letters_never_run_out(count: int) -> None:
    names = [f"model-{number}" for number in range(count)]
    letters = letters_of({"services": [{"name": name} for name in names], "gateway": {"name": "gateway"}})
    assert list(letters) == [*names, "gateway"]
    assert len(set(letters.values())) == count + 1
    assert letters[names[0]] == "A"
    assert letters["gateway"] == {1: "B", 25: "Z", 26: "AA", 60: "BI"}[count]


@pytest.mark.parametrize("size_gib", [1, 4, 23, 80, 125.6, 128, 141, 512, 2048, 65536])
def test_a_scale_has_a_handful_of_round_figures(size_gib: float) -> None:
    result, _ = drawn(host_facts())
    result["totals"]["memory_capacity_bytes"] = int(size_gib * GIB)
    ticks = host_memory(result).ticks
    assert 2 <= len(ticks) <= 6
    assert ticks[0].at == 0
    assert all(tick.text.split()[0] == str(tick.at // GIB) and tick.at % GIB == 0 for tick in ticks)
    assert ticks[-1].text.endswith(" GiB")
