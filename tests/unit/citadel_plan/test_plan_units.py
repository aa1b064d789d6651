"""Sizes and lists of ids."""

from __future__ import annotations

import pytest

from citadel_plan.id_lists import format_ids, parse_ids
from citadel_plan.units import GIB, MIB, gib, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("90GiB", 90 * GIB), ("512MiB", 512 * MIB), ("2.5GiB", 2560 * MIB), ("1TiB", 1024 * GIB), ("2048KiB", 2 * MIB), (" 4 GiB ", 4 * GIB)],
)
def test_sizes_with_a_binary_unit_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("90", 'has no unit: write "90GiB" or "90MiB"'),
        ("90GB", 'has the unit "GB", which is not one of KiB, MiB, GiB, TiB: write "90GiB"'),
        ("512M", 'has the unit "M", which is not one of KiB, MiB, GiB, TiB: write "512MiB"'),
        ("4gib", 'write "4GiB"'),
        ("7 apples", 'write "7GiB"'),
        (90, "is not a size: write a number with a binary unit"),
        (True, "is not a size"),
        ("-4GiB", "is not a size"),
        ("4GiBs", "is not one of KiB, MiB, GiB, TiB"),
        ("", "is not a size"),
        ("0.1GiB", 'is not a whole number of MiB: write "102MiB"'),
        ("1KiB", 'is not a whole number of MiB: write "1MiB"'),
    ],
)
def test_other_sizes_are_refused_with_a_way_out(value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        parse_size(value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0 GiB"), (90 * GIB, "90.0 GiB"), (GIB // 2, "0.5 GiB"), (GIB // 2 - 1, "512 MiB"), (1, "1 MiB")]
)
def test_sizes_are_shown_in_gib(size: int, text: str) -> None:
    assert gib(size) == text


@pytest.mark.parametrize(
    ("text", "ids"), [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("8,0-1", (0, 1, 8)), ("3,2-4", (2, 3, 4)), ("7-7", (7,))]
)
def test_lists_of_ids_are_read(text: str, ids: tuple[int, ...]) -> None:
    assert parse_ids(text) == ids


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a list of ids"),
        ("a-b", "is not a list of ids"),
        ("1,,2", "is not a list of ids"),
        ("-1", "is not a list of ids"),
        ("3-1", 'runs backwards ("3-1"): write "1-3"'),
        ("999999", "is not a list of ids"),
    ],
)
def test_other_lists_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        parse_ids(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "text"), [((), ""), ((0,), "0"), ((0, 1), "0-1"), ((1, 3, 5), "1,3,5"), ((8, 0, 1, 2, 3), "0-3,8"), ((0, 2, 3), "0,2-3")]
)
def test_ids_are_written_as_ranges(ids: tuple[int, ...], text: str) -> None:
    assert format_ids(ids) == text
