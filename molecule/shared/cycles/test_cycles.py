"""Start and stop, again and again: each start ends in an answer, and nothing is left behind that was not there after the first.

CITADEL_CYCLES says how many (5 unless set; `make soak` takes 100): of each of the four services in turn, two at the same time.
"""

from __future__ import annotations

import os
from typing import Any

import cgroups
from lab_host import ask, health, until
from testinfra.host import Host
from traces import traces

CYCLES = int(os.environ.get("CITADEL_CYCLES", "5"))
AT_ONCE = 2
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
    for number in range(0, CYCLES, AT_ONCE):
        chosen = [services[each % len(services)] for each in range(number, min(number + AT_ONCE, CYCLES))]
        units = [service["unit"] for service in chosen]
        server.check_output(f"systemctl stop {' '.join(units)}")
        lost = left - traces(server)
        assert all(any(unit in trace for trace in lost) for unit in units), "a stopped service has no cgroup"
        server.check_output(f"systemctl start {' '.join(units)}")
        assert traces(server) == left
        for service in chosen:
            name, unit = service["name"], service["unit"]
            files = open_files(server, unit)
            assert files <= before.setdefault(unit, files) + FILES_MARGIN, (
                f"{unit} has {files} open files, {before[unit]} after its first start"
            )
            assert until(lambda name=name: health(gateway_port)[name] == "healthy", BREAKER_SECONDS) is not None
            assert ask(service["api_port"], "/v1/completions", {"model": name, "prompt": "again", "max_tokens": 4}).status == 200
            print(f"cycles: {unit}, {files} open files", flush=True)
        print(f"cycles: {number + len(chosen)} of {CYCLES}", flush=True)
    assert int(server.check_output(MANAGER_FILES)) <= manager + FILES_MARGIN
