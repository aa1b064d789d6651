"""Reads Prometheus' text format."""

from __future__ import annotations

import re

_SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def total(page: str, metric: str, **labels: str) -> float:
    """Add up all samples of `metric` that have these label values; 0 where there is none."""
    found = 0.0
    for line in page.splitlines():
        sample = _SAMPLE.match(line)
        if sample and sample["name"] == metric and labels.items() <= dict(_LABEL.findall(sample["labels"] or "")).items():
            found += float(sample["value"])
    return found
