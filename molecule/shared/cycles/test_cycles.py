"""Start and stop, again and again: each start ends in an answer, and nothing is left behind that was not there after the first.

CITADEL_CYCLES says how often (5 unless set; `make soak` takes 100), each time the next of the four services.
"""

from __future__ import annotations

import os
from typing import Any

import cgroups
from lab_host import ask, health, until
from testinfra.host import Host
from traces import traces

CYCLES = int(os.environ.get("CITADEL_CYCLES", "5"))
FILES_MARGIN = 8
"""Open files differ by what happens to be asked at the moment; a leak of one a cycle is more after a soak."""

BREAKER_SECONDS = 20

MANAGER_FILES = "ls /proc/1/fd | wc -l"


def open_files(server: Host, unit: str) -> int:
    return len(server.run(" ; ".join(f"ls /proc/{process}/fd" for process in cgroups.process_ids(server, unit))).stdout.split())


def test_nothing_is_left_of_a_start(server: Host, plan: dict[str, Any]) -> None:
    services, gateway_port = plan["services"], plan["gateway"]["port"]
    before: dict[str, int] = {}
    left = traces(server)
    manager = int(server.check_output(MANAGER_FILES))
    for number in range(CYCLES):
        service = services[number % len(services)]
        unit = service["unit"]
        server.check_output("systemctl stop %s", unit)
        lost = left - traces(server)
        assert any(unit in trace for trace in lost), "a stopped service has no cgroup"
        server.check_output("systemctl start %s", unit)
        files = open_files(server, unit)
        assert files <= before.setdefault(unit, files) + FILES_MARGIN, (
            f"{unit} has {files} open files, {before[unit]} after its first start"
        )
        assert traces(server) == left
        assert until(lambda name=service["name"]: health(gateway_port)[name] == "healthy", BREAKER_SECONDS) is not None
        body = {"model": service["name"], "prompt": "again", "max_tokens": 4}
        assert ask(service["api_port"], "/v1/completions", body).status == 200
        print(f"cycles: {number + 1} of {CYCLES}: {unit}, {files} open files", flush=True)
    assert int(server.check_output(MANAGER_FILES)) <= manager + FILES_MARGIN
