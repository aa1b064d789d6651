"""Typed reading of plain mappings, with sentences instead of tracebacks.

A :class:`Reader` walks one mapping. Each method returns a value of the right type whatever it found;
what was wrong goes to the shared :class:`~citadel_plan.problems.Problems`. The caller reads everything, then asks
whether anything was wrong: the stand-in values are never planned with.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from .units import gib, parse_size

if TYPE_CHECKING:
    import re

    from .problems import Problems

Namer = Callable[[tuple[str, ...]], str]
"""Turns a path inside an input into the name an operator finds it by."""

_MISSING: Final = object()
_DISPLAY_LIMIT: Final = 60


def display(value: object) -> str:
    """Show a value of the input inside a sentence, cut where it is long."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        # In one order, whatever that of the inventory: the same input gives the same sentence.
        value = {key: value[key] for key in sorted(value, key=str)}
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= _DISPLAY_LIMIT else text[: _DISPLAY_LIMIT - 3] + "..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Suggest the nearest known word: ``' (did you mean "memory"?)'``, or nothing."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.7)
    return f' (did you mean "{near[0]}"?)' if near else ""


class Reader:
    """Reads one mapping of the input."""

    def __init__(self, data: object, path: tuple[str, ...], namer: Namer, problems: Problems) -> None:
        """Take a mapping; anything else is noted once and read as empty."""
        self._path = path
        self._namer = namer
        self._problems = problems
        self._known: list[str] = []
        self.usable = isinstance(data, Mapping)
        self._data: Mapping[str, object] = data if isinstance(data, Mapping) else {}
        if not self.usable:
            self._problems.add(f"{namer(path)} is {display(data)}, which is not a mapping: write keys and values below it.")

    def name(self, key: str) -> str:
        """Give the name of a key as an operator finds it."""
        return self._namer((*self._path, key))

    def complain(self, key: str, rest: str) -> None:
        """Note a problem of a key: its name, its value, and the rest of the sentence."""
        value = self._data.get(key)
        self._problems.add(f"{self.name(key)} is {display(value)}, which {rest}.")

    def has(self, key: str) -> bool:
        """Tell whether a key is there and not empty."""
        return self._data.get(key) is not None

    def present(self, key: str) -> bool:
        """Tell whether a key is there, be it empty."""
        return key in self._data

    def _take(self, key: str, *, required: bool) -> object:
        self._known.append(key)
        value = self._data.get(key, _MISSING)
        if value is _MISSING and required and self.usable:
            near = sorted(str(word) for word in self._data if word not in self._known)
            typo = difflib.get_close_matches(key, near, n=1, cutoff=0.75)
            hint = f' (there is a "{typo[0]}": is that a misspelling?)' if typo else ""
            self._problems.add(f"{self.name(key)} is missing{hint}: set it.")
        return value

    def _absent(self, key: str, *, required: bool) -> object:
        """Take a key whose empty value means the same as no value."""
        value = self._take(key, required=required)
        if value is None and not required:
            return _MISSING
        return value

    def optional_integer(self, key: str, *, low: int, high: int, way_out: str = "") -> int | None:
        """Read a whole number within limits, or None where it is absent or empty."""
        value = self._absent(key, required=False)
        return None if value is _MISSING else self._integer(key, value, low, high, way_out)

    def integer(self, key: str, *, low: int, high: int, default: int | None = None, way_out: str = "") -> int:
        """Read a whole number within limits."""
        value = self._absent(key, required=default is None)
        if value is _MISSING:
            return low if default is None else default
        return self._integer(key, value, low, high, way_out)

    def _integer(self, key: str, value: object, low: int, high: int, way_out: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            self.complain(key, "is not a whole number: write it without quotes, unit or fraction")
            return low
        if not low <= value <= high:
            self.complain(key, f"is not between {low} and {high}{': ' + way_out if way_out else ''}")
            return low
        return value

    def size(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        """Read a size such as "90GiB" into bytes."""
        value = self._absent(key, required=default is None)
        if value is _MISSING:
            return low if default is None else default
        return self._size(key, value, low, high)

    def optional_size(self, key: str, *, low: int, high: int) -> int | None:
        """Read a size, or None where it is absent or empty."""
        value = self._absent(key, required=False)
        return None if value is _MISSING else self._size(key, value, low, high)

    def _size(self, key: str, value: object, low: int, high: int) -> int:
        try:
            size = parse_size(value)
        except ValueError as error:
            self.complain(key, str(error))
            return low
        if not low <= size <= high:
            self.complain(key, f"is not between {gib(low)} and {gib(high)}")
            return low
        return size

    def text(self, key: str, *, default: str | None = None, pattern: re.Pattern[str] | None = None, rule: str = "") -> str:
        """Read a string that is not empty."""
        return self.optional_text(key, pattern=pattern, rule=rule, required=default is None) or default or ""

    def optional_text(self, key: str, *, pattern: re.Pattern[str] | None = None, rule: str = "", required: bool = False) -> str | None:
        """Read a string, or None where it is absent or empty."""
        value = self._absent(key, required=required)
        if value is _MISSING:
            return None
        if not isinstance(value, str) or not value.strip():
            self.complain(key, "is not a text: write a word in quotes")
            return None
        if pattern is not None and pattern.fullmatch(value) is None:
            self.complain(key, rule)
            return None
        return value

    def choice(self, key: str, choices: Sequence[str], *, default: str | None = None) -> str:
        """Read one of a few words."""
        value = self._absent(key, required=default is None)
        if value is _MISSING:
            return choices[0] if default is None else default
        if not isinstance(value, str) or value not in choices:
            hint = did_you_mean(value, choices) if isinstance(value, str) else ""
            self.complain(key, f"is not one of {', '.join(choices)}{hint}")
            return choices[0]
        return value

    def optional_flag(self, key: str) -> bool | None:
        """Read true or false, or None where it is absent or empty."""
        value = self._absent(key, required=False)
        if value is _MISSING:
            return None
        if not isinstance(value, bool):
            self.complain(key, "is neither true nor false: write it without quotes")
            return None
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Read true or false."""
        value = self.optional_flag(key)
        return default if value is None else value

    def texts(self, key: str, *, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Read a list of strings."""
        value = self._absent(key, required=default is None)
        if value is _MISSING:
            return () if default is None else default
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            self.complain(key, "is not a list of texts: write one per line, each after a dash")
            return ()
        return tuple(value)

    def items(self, key: str, *, required: bool = True) -> tuple[object, ...]:
        """Read a list whose items the caller reads."""
        value = self._absent(key, required=required)
        if value is _MISSING:
            return ()
        if not isinstance(value, list | tuple):
            self.complain(key, "is not a list")
            return ()
        return tuple(value)

    def raw(self, key: str, *, required: bool = True) -> object:
        """Hand out a value as it stands; None where it is absent."""
        value = self._absent(key, required=required)
        return None if value is _MISSING else value

    def child(self, key: str, *, required: bool = True) -> Reader:
        """Read a mapping inside this one; an absent one that may be absent reads as empty."""
        value = self._absent(key, required=required)
        child = Reader({} if value is _MISSING else value, (*self._path, key), self._namer, self._problems)
        child.usable = child.usable and value is not _MISSING
        return child

    def finish(self) -> None:
        """Note every key that nothing has asked for."""
        for key in sorted(self._data, key=str):
            if key not in self._known:
                spare = [word for word in self._known if word not in self._data] or self._known
                hint = did_you_mean(str(key), spare) or did_you_mean(str(key), self._known)
                known = "" if hint else f"; known here: {', '.join(sorted(self._known))}"
                self._problems.add(f"{self.name(str(key))} is not a key that is known here{hint}{known}.")
