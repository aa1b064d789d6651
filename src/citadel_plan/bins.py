"""Which item goes into which bin, found where there is an answer at all.

First-fit heuristics refuse hosts that would do, and refuse a larger one after accepting a smaller. The services of a
host are few, so all ways are tried, with those cut off that cannot succeed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

Size = tuple[int, int]
"""Memory and cores, of an item or left in a bin."""

MAX_STATES: Final = 5_000
"""States of the search after which it gives up: twelve services on four nodes and twenty on two were never seen to need
as many, which take a tenth of a second."""


def pack(items: Sequence[Size], bins: Sequence[Size]) -> tuple[int, ...] | None:
    """Put every item into a bin that has the memory and the cores for it.

    Args:
        items: Sizes; the answer follows their order.
        bins: Sizes; where several would do, an earlier bin is taken for an earlier item.

    Returns:
        The bin of each item, or None where there is no way to place all (or none was found in time).

    """
    in_order = _first_fit(items, bins, range(len(items)))
    if in_order is not None or not _sums_fit(items, bins):
        return in_order
    largest_first = sorted(range(len(items)), key=lambda place: (-items[place][0], -items[place][1], place))
    return _first_fit(items, bins, largest_first) or _Search(items, bins, largest_first).run()


def _fits(item: Size, room: Size) -> bool:
    return item[0] <= room[0] and item[1] <= room[1]


def _without(room: Size, item: Size) -> Size:
    return (room[0] - item[0], room[1] - item[1])


def _sums_fit(items: Sequence[Size], bins: Sequence[Size]) -> bool:
    return all(sum(item[part] for item in items) <= sum(room[part] for room in bins) for part in (0, 1))


def _first_fit(items: Sequence[Size], bins: Sequence[Size], order: Sequence[int]) -> tuple[int, ...] | None:
    rooms = list(bins)
    chosen = [0] * len(items)
    for place in order:
        found = next((index for index, room in enumerate(rooms) if _fits(items[place], room)), None)
        if found is None:
            return None
        chosen[place] = found
        rooms[found] = _without(rooms[found], items[place])
    return tuple(chosen)


class _Search:
    """Depth first, the largest item first, over states that have not failed before."""

    def __init__(self, items: Sequence[Size], bins: Sequence[Size], order: Sequence[int]) -> None:
        self.items = items
        self.order = order
        self.rooms = list(bins)
        self.chosen = [0] * len(items)
        self.failed: set[tuple[int, tuple[Size, ...]]] = set()
        # Memory that the items from each step on need: where less is left in all bins together, no way leads on.
        self.remaining = [sum(items[place][0] for place in order[step:]) for step in range(len(order) + 1)]

    def run(self) -> tuple[int, ...] | None:
        return tuple(self.chosen) if self._place(0) else None

    def _place(self, step: int) -> bool:
        if step == len(self.order):
            return True
        # Which bin is which does not matter for whether the rest fits.
        state = (step, tuple(sorted(self.rooms)))
        hopeless = self.remaining[step] > sum(memory for memory, _ in self.rooms)
        if hopeless or state in self.failed or len(self.failed) >= MAX_STATES:
            return False
        place = self.order[step]
        item = self.items[place]
        tried: set[Size] = set()
        for index, room in enumerate(self.rooms):
            if room in tried or not _fits(item, room):
                continue
            tried.add(room)
            self.chosen[place] = index
            self.rooms[index] = _without(room, item)
            if self._place(step + 1):
                return True
            self.rooms[index] = room
        self.failed.add(state)
        return False
