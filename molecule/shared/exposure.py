"""What `systemd-analyze security` may say at most, and how it is read: for the rendered units and for those of a host."""

from __future__ import annotations

import re

BOUNDS = {
    "model": 1.5,
    "model (CUDA)": 1.7,
    "gateway": 1.5,
    "haproxy.service": 2.5,
    "prometheus.service": 1.5,
    "prometheus-node-exporter.service": 1.5,
    "prometheus-alertmanager.service": 1.5,
    "citadel-exporter.service": 1.5,
}


def overall(output: str) -> float:
    """Read the exposure from the last line of the report."""
    return float(re.findall(r"Overall exposure level for \S+: ([0-9.]+)", output)[-1])
