"""The plan's memory is neither lax nor wasteful: its limit holds a full load, and little less does not.

A full load is one request that fills as many sequences as the plan allows to their full context.
"""

from __future__ import annotations

import http.client
import json
import subprocess
from typing import Any

import cgroups
from lab_host import CHECKOUT, ask, health, until
from module_utils.citadel_full_load import full_load
from testinfra.host import Host

MEBIBYTE = 2**20
ERROR_PERCENT = 15
STEP = 0.02
LOWEST = 0.6
START_SECONDS = 120


def answers_a_full_load(service: dict[str, Any]) -> bool:
    body = full_load(service["name"], service["context_tokens"], service["max_num_seqs"])
    try:
        return ask(service["api_port"], "/v1/completions", body, timeout=600).status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_predictions_are_right(server: Host, plan: dict[str, Any]) -> None:
    """Predicted against measured at rest and under a full load, by the playbook that an operator uses."""
    units = [service["unit"] for service in plan["services"]]
    show = "systemctl show --property=InvocationID --value %s"
    before = [server.check_output(show, unit) for unit in units]
    command = [CHECKOUT / ".venv/bin/ansible-playbook", "-i", "inventory", "-i", "lab/inventory", "playbooks/compare.yml"]
    result = subprocess.run(
        [*command, "--extra-vars", json.dumps({"compare_num_seqs": 10**6})], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    print(result.stdout[-2000:])
    rows = [line.strip(" -'").split() for line in result.stdout.splitlines() if "%" in line]
    errors = {row[0]: [float(cell.rstrip("%")) for cell in row if cell.endswith("%")][:2] for row in rows}
    assert set(errors) == {service["name"] for service in plan["services"]}
    assert {name: found for name, found in errors.items() if max(map(abs, found)) > ERROR_PERCENT} == {}
    assert [server.check_output(show, unit) for unit in units] == before, "a full load within the plan ends no service"


def restarts(server: Host, unit: str) -> int:
    return int(server.check_output("systemctl show --property=NRestarts --value %s", unit))


def survives(server: Host, gateway_port: int, service: dict[str, Any], limit_bytes: int) -> bool:
    """Start the service with another limit and put a full load on it; the first kill decides, whatever systemd does after it."""
    unit = service["unit"]
    # Killed, because a vLLM that has lost its worker while it started may wait for it without end.
    # A stop at the moment of a death need not forget the failures before it.
    forget = f"rm -f /run/citadel-llm/{service['name']}/failures.json"
    end = f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}; systemctl reset-failed {unit}; {forget}"
    change = f"systemctl set-property --runtime {unit} MemoryMax={limit_bytes}"
    if server.run(f"{end}; {change} && timeout {START_SECONDS} systemctl start {unit}").rc != 0:
        return False

    def admitted_or_dead() -> bool:
        # As the breaker sees it, which lets nothing through before it has seen two good answers.
        return health(gateway_port).get(service["name"]) == "healthy" or restarts(server, unit) > 0

    return until(admitted_or_dead, START_SECONDS) is not None and answers_a_full_load(service) and restarts(server, unit) == 0


def test_share_of_the_limit_at_which_it_first_dies(server: Host, plan: dict[str, Any], service: dict[str, Any]) -> None:
    """By bisection, to two hundredths of the planned limit."""
    unit, limit, gateway_port = service["unit"], service["memory_max_bytes"], plan["gateway"]["port"]
    assert cgroups.memory_limit_bytes(server, unit) == limit
    dies, lives = LOWEST, 1.0
    try:
        assert survives(server, gateway_port, service, limit), "a service given exactly its plan survives a full load"
        while lives - dies > STEP:
            share = (dies + lives) / 2
            if survives(server, gateway_port, service, int(limit * share) // MEBIBYTE * MEBIBYTE):
                lives = share
            else:
                dies = share
    finally:
        server.run(f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}; rm -rf /run/systemd/system.control/{unit}.d")
        server.check_output(f"systemctl daemon-reload; systemctl reset-failed {unit}; systemctl start {unit}")
    print(f"{service['name']}: dies at {dies:.2f} of its planned {limit / MEBIBYTE:.0f} MiB, lives at {lives:.2f}")
    assert dies > LOWEST, "much less than what was planned would have been enough"
