"""Ports of this machine for what tests start."""

from __future__ import annotations

import random
import socket

import pytest

# Below those that Linux gives to outgoing connections (ip_local_port_range, from 32768), which could take one before its program does.
PORTS = range(12000, 32000)


def free_ports(count: int) -> list[int]:
    """Find so many ports that nobody has on any address of this machine, at random, so that two runs at once do not take the same."""
    ports: list[int] = []
    for port in random.sample(PORTS, 2000):
        if len(ports) == count:
            return ports
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        ports.append(port)
    pytest.fail("no free ports on this machine")


def free_port() -> int:
    """Find one."""
    return free_ports(1)[0]
