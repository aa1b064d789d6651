"""Which series an expression of Prometheus' asks for."""

from __future__ import annotations

import re

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABEL_LIST = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(\s*\{[^{}]*\})?(?![\w:])(?!\s*\()")
_WORDS = frozenset({"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "inf", "nan"})


def selectors(expression: str) -> set[str]:
    """Find the metrics that an expression names, each with its conditions on labels."""
    # Braces in a string are none, and units of times no names.
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f'"{len(strings) - 1}"'

    text = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", _LABEL_LIST.sub(" ", _STRING.sub(keep, expression)))
    found = {name + (labels or "").strip() for name, labels in _SELECTOR.findall(text) if name.lower() not in _WORDS}
    return {re.sub(r'"(\d+)"', lambda place: strings[int(place[1])], selector) for selector in found}
