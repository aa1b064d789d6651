"""Items into bins: found where there is a way at all."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_plan.bins import pack

if TYPE_CHECKING:
    from collections.abc import Sequence

Sizes = list[tuple[int, int]]


def holds(items: Sequence[tuple[int, int]], bins: Sequence[tuple[int, int]], chosen: Sequence[int]) -> bool:
    return all(
        sum(item[part] for item, index in zip(items, chosen, strict=True) if index == place) <= room[part]
        for place, room in enumerate(bins)
        for part in (0, 1)
    )


@pytest.mark.parametrize(
    ("items", "bins", "chosen"),
    [
        ([], [(1, 1)], ()),
        ([(1, 1)], [], None),
        ([(3, 1), (2, 1)], [(5, 2), (5, 2)], (0, 0)),  # an earlier bin for an earlier item
        ([(3, 1), (3, 1)], [(5, 2), (5, 2)], (0, 1)),
        ([(2, 1), (3, 1), (5, 1)], [(5, 2), (5, 2)], (0, 0, 1)),
        ([(2, 1), (2, 1), (4, 1), (4, 1)], [(6, 4), (6, 4)], (0, 1, 0, 1)),  # in order both 2 fill the first bin: the largest first
        ([(5, 1), (4, 1), (3, 1), (3, 1), (3, 1), (2, 1)], [(10, 9), (10, 9)], (0, 1, 0, 1, 1, 0)),  # not even that: all ways
        ([(6, 1), (6, 1)], [(11, 2)], None),
        ([(1, 2), (1, 1)], [(9, 2), (9, 1)], (0, 1)),  # cores count as memory does
        ([(1, 2), (1, 2)], [(9, 3)], None),
    ],
)
def test_what_goes_where(items: Sizes, bins: Sizes, chosen: tuple[int, ...] | None) -> None:
    assert pack(items, bins) == chosen


sizes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6)


@given(items=sizes, bins=sizes.filter(lambda bins: len(bins) < 4))
def test_the_answer_is_that_of_trying_everything(items: Sizes, bins: Sizes) -> None:
    found = pack(items, bins)
    possible = any(holds(items, bins, chosen) for chosen in product(range(len(bins)), repeat=len(items)))
    assert (found is not None) == possible
    if found is not None:
        assert holds(items, bins, found)


@given(placed=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2)), max_size=10))
def test_bins_without_a_gap_are_filled(placed: list[tuple[int, int, int]]) -> None:
    # As large as what lies in them: there is an answer, and hardly another one.
    bins = [tuple(sum(entry[part] for entry in placed if entry[2] == index) for part in (0, 1)) for index in range(3)]
    items = [(memory, cores) for memory, cores, _ in placed]
    found = pack(items, bins)
    assert found is not None
    assert holds(items, bins, found)
