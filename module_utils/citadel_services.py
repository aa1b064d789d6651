"""What systemd and the services on loopback tell of themselves, read in one place: for the status and for the metrics of a host."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

LOOPBACK = "127.0.0.1"
INSTANCES = "citadel-llm@*.service"
SLICE = "citadel-llm.slice"
STATES = ("process", "loaded", "generating", "hung")

_RUNTIME = re.compile(r"/(?P<runtime>vllm|litellm)/(?P<version>[^/\s]+)/bin/")
_SAMPLE = re.compile(r"([a-z_:]+)(?:\{(.*)\})? (-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def show_command(names: list[str], properties: tuple[str, ...]) -> list[str]:
    """Build the question for all instances of the platform and for other units by name; :func:`read_units` reads the answer."""
    return ["systemctl", "show", INSTANCES, *names, *(f"--property={key}" for key in properties)]


def read_units(text: str) -> dict[str, dict[str, str]]:
    """Properties of each unit, by its name."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
    return {block["Id"]: block for block in blocks if "Id" in block}


def unplanned_units(units: Mapping[str, Mapping[str, str]], planned: list[str]) -> list[str]:
    """Name the instances that run and are not in the plan."""
    return sorted(
        name
        for name, unit in units.items()
        if name.startswith("citadel-llm@") and name not in planned and unit.get("ActiveState") not in {"inactive", "failed"}
    )


def runtime_of(unit: Mapping[str, str]) -> tuple[str, str] | None:
    """Name and version of the runtime that the process of a unit runs from, or that the unit would start."""
    command = unit.get("ExecStart", "")
    with contextlib.suppress(OSError):  # it is not running
        command = Path(f"/proc/{unit.get('MainPID')}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found = _RUNTIME.search(command)
    return (found["runtime"], found["version"]) if found else None


def get(port: int, path: str, seconds: float) -> tuple[int, str]:
    """Status and text that a service on loopback answers; 0 where it does not."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def samples(answer: tuple[int, str]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Metrics in Prometheus' text format: name, labels and value of each."""
    for line in answer[1].splitlines() if answer[0] == http.client.OK else ():
        if found := _SAMPLE.fullmatch(line):
            yield found[1], dict(_LABEL.findall(found[2] or "")), float(found[3])
