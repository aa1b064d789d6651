"""Run in a network namespace of its own: starts the gateway, has it answer, and counts what tried to leave.

Prints one JSON object: `answers` (HTTP statuses), `attempts` (packets and look-ups of the gateway that were not for loopback TCP) and
`instrument` (the same after this program has tried to leave itself, to show that an attempt would be seen).
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

from gateway.backend import Backend
from gateway.harness import Gateway, upstream

SECOND = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}


def attempts() -> int:
    """Count since the namespace was made: destinations that the kernel knew no way to, and datagrams (look-ups of names)."""
    rows = [line.split() for line in Path("/proc/net/snmp").read_text(encoding="ascii").splitlines()]
    counters: dict[str, int] = {}
    for names, values in zip(rows[::2], rows[1::2], strict=True):
        counters |= {f"{names[0]}{name}": int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    snmp6 = Path("/proc/net/snmp6")
    newer = dict(line.split() for line in snmp6.read_text(encoding="ascii").splitlines()) if snmp6.exists() else {}
    return (
        counters["Ip:OutNoRoutes"]
        + counters["Udp:OutDatagrams"]
        + int(newer.get("Ip6OutNoRoutes", 0))
        + int(newer.get("Udp6OutDatagrams", 0))
    )


def main() -> None:
    """See the module."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = Path(sys.argv[1])
    before = attempts()
    with Backend("hermes-2") as backend, Gateway(folder, [upstream(backend)]) as gateway:
        answers = [
            gateway.get("/v1/models").status,
            gateway.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}).status,
            gateway.post("/v1/chat/completions", SECOND).status,
            gateway.post("/v1/completions", {"prompt": "Hello"}).status,
            gateway.get("/metrics/").status,
        ]
    after = attempts()
    with contextlib.suppress(OSError), socket.socket() as outward:
        outward.connect(("192.0.2.1", 80))  # TEST-NET-1: nobody's
    print(json.dumps({"answers": answers, "attempts": after - before, "instrument": attempts() - after}))


if __name__ == "__main__":
    main()
