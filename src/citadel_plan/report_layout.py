"""What the page of a plan draws: strips that are divided into segments, and where each of them begins.

All geometry of the page is here; :mod:`report_html` only writes it down. A strip is a line of a given whole (bytes,
or cores), whatever its width on the screen turns out to be.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from .cpus import Core, usable_node_bytes
from .id_lists import parse_ids
from .units import GIB, gib

if TYPE_CHECKING:
    from .inputs import Host, NumaNode

Entry = Mapping[str, Any]


class Part(StrEnum):
    """What a segment stands for; each has a colour and a pattern of its own."""

    WEIGHTS = "weights"
    KV_CACHE = "kv-cache"
    RUNTIME = "runtime"
    HEADROOM = "headroom"
    GATEWAY = "gateway"
    RESERVE = "reserve"
    CORES = "cores"
    FREE = "free"


PART_NAMES: Final[Mapping[Part, str]] = {
    Part.WEIGHTS: "weights",
    Part.KV_CACHE: "KV cache",
    Part.RUNTIME: "runtime",
    Part.HEADROOM: "headroom",
    Part.GATEWAY: "gateway",
    Part.RESERVE: "reserve",
    Part.CORES: "cores of models",
    Part.FREE: "free",
}

MEMORY_PARTS: Final = (Part.WEIGHTS, Part.KV_CACHE, Part.RUNTIME, Part.HEADROOM)
"""The four parts of a service's memory, in the order in which they are drawn."""

_TICKS: Final = 4
"""About as many labelled distances as fit a telephone."""

_LETTER_SHARE: Final = 25
"""Letters keep this part of the strip between their middles, or they would overlap on a telephone; the table names all."""

_LETTER_MIN_SHARE: Final = 80
"""What is smaller than this part of the strip gets no letter: nobody could tell what it points at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of a strip."""

    part: Part
    start: int
    size: int
    text: str
    """What it is, in words, for who points at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place on a strip with a text."""

    at: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What names the owner of a stretch of a strip."""

    start: int
    size: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One drawing: a line of ``whole``, divided."""

    title: str
    description: str
    whole: int
    segments: tuple[Segment, ...]
    dividers: tuple[int, ...] = ()
    """Where one owner ends and the next begins."""
    grid: tuple[int, ...] = ()
    """Fine lines between the units that an owner has."""
    letters: tuple[Letter, ...] = ()
    ticks: tuple[Mark, ...] = ()
    request: Mark | None = None
    """What was asked for."""

    def percent(self, value: int) -> str:
        """Give a place as a share of the strip: ``"12.5%"``."""
        return _percent(_thousandths(value, self.whole))

    def width(self, segment: Segment) -> str:
        """Give the width of a segment, such that the next one begins exactly where it ends."""
        end = _thousandths(segment.start + segment.size, self.whole)
        return _percent(end - _thousandths(segment.start, self.whole))

    def anchor(self, mark: Mark) -> str:
        """Say on which side of a mark its text stands, so that it stays within the strip."""
        if 20 * mark.at < self.whole:
            return "start"
        return "end" if 20 * mark.at > 19 * self.whole else "middle"

    def middle(self, letter: Letter) -> str:
        """Give the middle of what a letter stands over."""
        return _percent(_thousandths(2 * letter.start + letter.size, 2 * self.whole))


def _thousandths(value: int, whole: int) -> int:
    """Round a share to thousandths of a percent."""
    return (2 * 100_000 * value + whole) // (2 * whole)


def _percent(thousandths: int) -> str:
    return f"{thousandths / 1000:g}%"


def usable_memory(plan: Entry) -> int:
    """Give the bytes of the host's memory that services and the gateway may have."""
    totals = plan["totals"]
    return int(totals["memory_capacity_bytes"] - totals["memory_reserved_bytes"])


def letters_of(plan: Entry) -> dict[str, str]:
    """Give each service and the gateway a letter, in the order of the plan: A to Z, then AA, AB and so on."""
    names = [*(service["name"] for service in plan["services"]), plan["gateway"]["name"]]
    return dict(zip(names, _letters(), strict=False))


def _letters() -> Iterator[str]:
    prefixes = [""]
    while True:
        yield from (prefix + letter for prefix in prefixes for letter in string.ascii_uppercase)
        prefixes = [prefix + letter for prefix in prefixes for letter in string.ascii_uppercase]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """What one owner has of a strip: parts and their sizes."""

    owner: str
    parts: tuple[tuple[Part, int], ...]

    @property
    def size(self) -> int:
        return sum(size for _, size in self.parts)


def memory_parts(entry: Entry) -> tuple[tuple[Part, int], ...]:
    """List the four parts of a service's memory, or of its memory on the GPUs."""
    return tuple((part, entry[f"{part.replace('-', '_')}_bytes"]) for part in MEMORY_PARTS)


def host_memory(plan: Entry) -> Strip:
    """Draw the memory of the host: every service, the gateway, the reserve, what is left."""
    totals = plan["totals"]
    blocks = [
        *(_Block(owner=service["name"], parts=memory_parts(service)) for service in plan["services"]),
        _Block(owner=plan["gateway"]["name"], parts=((Part.GATEWAY, plan["gateway"]["memory_max_bytes"]),)),
    ]
    return _memory_strip(
        plan, f"Memory of {plan['host']}", blocks, capacity=totals["memory_capacity_bytes"], reserve=totals["memory_reserved_bytes"]
    )


def node_memory(plan: Entry, host: Host) -> list[Strip]:
    """Draw each NUMA node with the services whose memory is bound to it; none where the host has one node."""
    if len(host.numa_nodes) == 1:
        return []
    return [_node_strip(plan, host, node) for node in host.numa_nodes if node.memory_bytes]


def _node_strip(plan: Entry, host: Host, node: NumaNode) -> Strip:
    # The first node of a service is the one that vLLM binds its memory to.
    here = [service for service in plan["services"] if service["numa_nodes"][0] == node.id]
    blocks = [_Block(owner=service["name"], parts=memory_parts(service)) for service in here]
    usable = usable_node_bytes(node, host, plan["totals"]["memory_reserved_bytes"])
    return _memory_strip(plan, f"Memory of NUMA node {node.id}", blocks, capacity=node.memory_bytes, reserve=node.memory_bytes - usable)


def gpu_memory(plan: Entry, host: Host) -> list[Strip]:
    """Draw each GPU; a service on several has the same share of each."""
    strips = []
    for gpu in host.gpus:
        blocks = [
            _Block(
                owner=service["name"],
                parts=tuple((part, size // len(service["gpu_ids"])) for part, size in memory_parts(service["gpu"])),
            )
            for service in plan["services"]
            if gpu.id in service["gpu_ids"]
        ]
        strips.append(_memory_strip(plan, f"Memory of GPU {gpu.id}", blocks, capacity=gpu.memory_bytes, reserve=0))
    return strips


def _memory_strip(plan: Entry, title: str, blocks: Sequence[_Block], *, capacity: int, reserve: int) -> Strip:
    used = sum(block.size for block in blocks)
    free = max(0, capacity - reserve - used)
    owners = "; ".join(
        f"{block.owner} {gib(block.size)}" + (f" ({_in_words(block.parts)})" if len(block.parts) > 1 else "") for block in blocks
    )
    rest = [_Block(owner="", parts=((Part.RESERVE, reserve),)), _Block(owner="", parts=((Part.FREE, free),))]
    segments, dividers, letters = _lay([*blocks, *rest], letters_of(plan), capacity)
    return Strip(
        title=f"{title}: {gib(capacity)}",
        description=f"{owners or 'No service'}; reserve {gib(reserve)}; free {gib(free)}.",
        whole=capacity,
        segments=segments,
        dividers=dividers,
        letters=letters,
        ticks=_size_ticks(capacity),
    )


def service_memory(service: Entry) -> list[tuple[Strip, tuple[tuple[Part, int], ...]]]:
    """Draw how a service spends what it has, each drawing to a scale of its own, with its parts: on its GPUs, then on the host."""
    name = service["name"]
    drawn = []
    if service["gpu"]:
        count = len(service["gpu_ids"])
        where = f"GPU{'s' if count > 1 else ''} {', '.join(map(str, service['gpu_ids']))}"
        drawn.append(
            (_spent(name, f"{gib(service['gpu']['memory_bytes'])} on {where}", service["gpu"], None), memory_parts(service["gpu"]))
        )
    asked = service["memory_requested_bytes"]
    granted = f"{gib(service['memory_max_bytes'])} {'of host memory ' if service['gpu'] else ''}granted, {gib(asked)} asked"
    drawn.append((_spent(name, granted, service, asked), memory_parts(service)))
    return drawn


def _spent(name: str, title: str, where: Entry, asked: int | None) -> Strip:
    block = _Block(owner=name, parts=memory_parts(where))
    whole = max(asked or 0, block.size)
    segments, _, _ = _lay([block], {}, whole)
    return Strip(
        title=title,
        description=f"{name}: {_in_words(block.parts)}.",
        whole=whole,
        segments=segments,
        request=None if asked is None else Mark(at=asked, text=f"asked {gib(asked)}"),
    )


def cpu_strips(plan: Entry, host: Host) -> list[Strip]:
    """Draw the physical cores of each NUMA node in the order of their CPUs, with who has them."""
    owners: dict[int, list[str]] = {}
    for entry in (*plan["services"], plan["gateway"]):
        for cpu in parse_ids(entry["cpu_set"]):
            owners.setdefault(cpu, []).append(entry["name"])

    def owners_of(core: Core) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for cpu in core for name in owners.get(cpu, ())))

    strips = []
    for node in host.numa_nodes:
        cores = [core for core in host.cores if core[0] in node.cpu_ids]
        if not cores:
            continue
        runs = [(names, list(run)) for names, run in groupby(cores, key=owners_of)]
        where = f"NUMA node {node.id}" if len(host.numa_nodes) > 1 else plan["host"]
        strips.append(_core_strip(f"Cores of {where}: {len(cores)}", cores, runs, letters_of(plan), plan["gateway"]["name"]))
    return strips


def _core_strip(
    title: str, cores: Sequence[Core], runs: Iterable[tuple[tuple[str, ...], Sequence[Core]]], letters: Mapping[str, str], gateway: str
) -> Strip:
    segments: list[Segment] = []
    marks: list[Letter] = []
    borders: list[int] = []
    start = 0
    for names, run in runs:
        part = Part.FREE if not names else Part.GATEWAY if names == (gateway,) else Part.CORES
        segments.append(Segment(part=part, start=start, size=len(run), text=f"{', '.join(names) or 'free'}: {_cores(run)}"))
        if names:
            text = "all of them" if len(names) == len(letters) else " ".join(letters[name] for name in names)
            marks.append(Letter(start=start, size=len(run), text=text))
        start += len(run)
        borders.append(start)
    return Strip(
        title=title,
        description="; ".join(segment.text for segment in segments) + ".",
        whole=len(cores),
        segments=tuple(segments),
        dividers=tuple(borders[:-1]),
        grid=tuple(place for place in range(1, len(cores)) if place not in borders),
        letters=tuple(marks),
        ticks=_core_ticks(cores),
    )


def storage_strip(plan: Entry, host: Host) -> Strip:
    """Draw the disk: what the chosen weights need of what is free, and what was allocated."""
    totals = plan["totals"]
    needed = [_Block(owner=service["name"], parts=((Part.WEIGHTS, service["storage_needed_bytes"]),)) for service in plan["services"]]
    reserve, asked = totals["storage_reserved_bytes"], totals["storage_requested_bytes"]
    free = max(0, host.storage_free_bytes - totals["storage_needed_bytes"] - reserve)
    rest = [_Block(owner="", parts=((Part.RESERVE, reserve),)), _Block(owner="", parts=((Part.FREE, free),))]
    whole = max(host.storage_free_bytes, asked, totals["storage_needed_bytes"] + reserve)
    segments, dividers, letters = _lay([*needed, *rest], letters_of(plan), whole)
    return Strip(
        title=f"Free disk: {gib(host.storage_free_bytes)}",
        description=f"The chosen weights need {gib(totals['storage_needed_bytes'])}; reserve {gib(reserve)}; {gib(asked)} allocated.",
        whole=whole,
        segments=segments,
        dividers=dividers,
        letters=letters,
        ticks=_size_ticks(whole),
        request=Mark(at=asked, text=f"allocated {gib(asked)}"),
    )


def _in_words(parts: Iterable[tuple[Part, int]]) -> str:
    return ", ".join(f"{PART_NAMES[part]} {gib(size)}" for part, size in parts)


def _cores(run: Sequence[Core]) -> str:
    first, last = run[0][0], run[-1][0]
    return f"core {first}" if first == last else f"cores {first} to {last}"


def _lay(
    blocks: Iterable[_Block], letters: Mapping[str, str], whole: int
) -> tuple[tuple[Segment, ...], tuple[int, ...], tuple[Letter, ...]]:
    """Put blocks beside each other: segments, the borders between blocks, and a letter for each block that is wide enough."""
    segments: list[Segment] = []
    dividers: list[int] = []
    marks: list[Letter] = []
    start = 0
    for block in blocks:
        if start and block.size:
            dividers.append(start)
        if block.owner in letters and block.size * _LETTER_MIN_SHARE >= whole:
            letter = Letter(start=start, size=block.size, text=letters[block.owner])
            if not marks or _apart(marks[-1], letter, whole):
                marks.append(letter)
        for part, size in block.parts:
            if size:
                owner = "" if block.owner == "" or part is Part.GATEWAY else f"{block.owner}: "
                segments.append(Segment(part=part, start=start, size=size, text=f"{owner}{PART_NAMES[part]} {gib(size)}"))
                start += size
    return tuple(segments), tuple(dividers), tuple(marks)


def _apart(one: Letter, other: Letter, whole: int) -> bool:
    """Tell whether there is room for both letters."""
    halves = 2 * other.start + other.size - 2 * one.start - one.size
    return halves * _LETTER_SHARE >= 2 * whole * max(len(one.text), len(other.text))


def _size_ticks(whole: int) -> tuple[Mark, ...]:
    """Round sizes along a strip: powers of two where GiB are few, 1, 2 or 5 times a power of ten where they are many."""
    steps = sorted({2**exponent for exponent in range(8)} | {factor * 10**exponent for exponent in range(2, 8) for factor in (1, 2, 5)})
    step = next(size * GIB for size in steps if size * GIB * (_TICKS + 1) > whole)
    ticks = [Mark(at=at, text=f"{at // GIB}") for at in range(0, whole + 1, step)]
    return (*ticks[:-1], Mark(at=ticks[-1].at, text=f"{ticks[-1].text} GiB"))


def _core_ticks(cores: Sequence[Core]) -> tuple[Mark, ...]:
    step = next(2**exponent for exponent in range(16) if len(cores) <= 2**exponent * 2 * _TICKS)
    return tuple(Mark(at=index, text=str(cores[index][0])) for index in range(0, len(cores), step))
