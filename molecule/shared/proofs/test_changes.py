"""A second run changes nothing; a change restarts exactly what it concerns; one that outgrows its memory takes nobody with it."""

from __future__ import annotations

import json
from collections.abc import Callable

import cgroups
from testinfra.host import Host

UNITS = [
    *(f"citadel-llm@{name}.service" for name in ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "unified-api-gateway")),
    "haproxy.service",
    "prometheus.service",
    "prometheus-node-exporter.service",
    "prometheus-alertmanager.service",
    "citadel-exporter.service",
]
GATEWAY = "citadel-llm@unified-api-gateway.service"
HERMES = "citadel-llm@hermes-2.service"
Deploy = Callable[..., dict[str, int]]


def runs(server: Host) -> dict[str, str]:
    """The id of each unit's current run; another one after every restart."""
    return {unit: server.check_output("systemctl show --property=InvocationID --value %s", unit) for unit in UNITS}


def restarted(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {unit for unit in UNITS if before[unit] != after[unit]}


def test_second_run_changes_nothing(server: Host, deployed: Deploy) -> None:
    before = runs(server)
    assert deployed()["changed"] == 0
    assert deployed("--check", "--diff")["changed"] == 0
    assert restarted(before, runs(server)) == set()


def test_check_mode_says_what_a_shared_file_restarts(server: Host, deployed: Deploy) -> None:
    before = runs(server)
    environment = json.dumps({"host_environment": {"CITADEL_ENV": "development", "LAB": "another"}})
    assert deployed("--check", "--extra-vars", environment)["changed"] == 1 + 4 + 1, ".env, the models and the gateway, which read it"
    assert restarted(before, runs(server)) == set()


def test_model_option_restarts_that_model_only(server: Host, deployed: Deploy) -> None:
    before = runs(server)
    deployed(change={"hermes-2": {"engine": {"max_num_batched_tokens": 1024}}})
    assert restarted(before, runs(server)) == {HERMES}


def test_context_restarts_the_model_and_who_tells_it_to_clients(server: Host, deployed: Deploy) -> None:
    before = runs(server)
    deployed(change={"hermes-2": {"request": {"context_tokens": 4096}}})
    assert restarted(before, runs(server)) == {HERMES, GATEWAY}


def test_limits_apply_to_the_running_service(server: Host, deployed: Deploy) -> None:
    before = runs(server)
    limits = {"cpu_quota_percent": 110, "cpu_weight": 333, "io_weight": 77, "tasks_max": 400}
    deployed(change={"hermes-2": {"request": limits}})
    assert restarted(before, runs(server)) == set()
    assert cgroups.cpu_quota_percent(server, HERMES) == 110
    assert cgroups.tasks_limit(server, HERMES) == 400
    assert server.check_output("systemctl show --property=CPUWeight --value %s", HERMES) == "333"


def test_killed_for_its_own_memory_alone(server: Host, deployed: Deploy) -> None:
    """A process in the cgroup of one service takes more than the service may; the kernel ends what is in there and nothing else."""
    before = runs(server)
    limit = cgroups.memory_limit_bytes(server, HERMES)
    tasks = (
        "/sys/fs/cgroup{}/cgroup.procs"
        if server.file("/sys/fs/cgroup/cgroup.controllers").exists
        else "/sys/fs/cgroup/memory{}/cgroup.procs"
    )
    group = server.check_output("systemctl show --property=ControlGroup --value %s", HERMES)
    grow = f"echo $$ > {tasks.format(group)}; exec python3 -c 'block = bytearray({limit}); print(len(block))'"
    assert server.check_output("sh -c %s; echo $?", grow) == "137", "killed by the kernel"
    after = runs(server)
    assert restarted(before, after) <= {HERMES}
    others = [unit for unit in UNITS if unit != HERMES]
    assert {unit: server.service(unit).is_running for unit in others} == dict.fromkeys(others, True)
