"""Each unit is kept to what is its own, and the key is nowhere to be had."""

from __future__ import annotations

from typing import Any

import cgroups
import pytest
from exposure import BOUNDS, overall
from probes import succeeding
from testinfra.host import Host

KEY_FILE = "/opt/citadel/secrets/gateway.key"
OTHERS = [
    "haproxy.service",
    "prometheus.service",
    "prometheus-node-exporter.service",
    "prometheus-alertmanager.service",
    "citadel-exporter.service",
]


def attempt_to_write(folder: str) -> str:
    return f"echo x > {folder}/lab-probe && rm {folder}/lab-probe"


def attempts_on(plan: dict[str, Any], *, but: str = "") -> dict[str, str]:
    """What nobody may: write where nothing is its own, read the key, and touch what belongs to any service ``but`` one."""
    attempts = {
        f"write {folder}": attempt_to_write(folder)
        for folder in ("/etc", "/opt", "/opt/citadel", "/usr", "/run", "/var/log/citadel-llm", "/var/lib")
    }
    attempts["read the key"] = f"cat {KEY_FILE}"
    attempts["read the plan"] = "cat /opt/citadel/config/plan.json"
    for other in [*plan["services"], plan["gateway"]]:
        name = other["name"]
        attempts[f"read the env file of {name}"] = f"cat /opt/citadel/config/services/{name}.env"
        if name != but:
            attempts[f"write the log of {name}"] = attempt_to_write(f"/var/log/citadel-llm/{name}")
            attempts[f"write the cache of {name}"] = attempt_to_write(f"/var/cache/citadel-llm/{name}")
            attempts[f"read the environment of {name}"] = f"cat /proc/$(cat /run/citadel-llm/{name}.pid)/environ"
        if name not in {but, plan["gateway"]["name"]}:
            attempts[f"read the weights of {name}"] = f"cat /opt/models/{name}/config.json"
    return attempts


def test_exposure_is_within_bounds(server: Host, unit: dict[str, Any], plan: dict[str, Any]) -> None:
    kind = "gateway" if unit["name"] == plan["gateway"]["name"] else "model (CUDA)" if plan["device"] == "cuda" else "model"
    assert overall(server.check_output("systemd-analyze security --no-pager %s", unit["unit"])) <= BOUNDS[kind]


@pytest.mark.parametrize("name", OTHERS)
def test_exposure_of_the_distributions_units_is_within_bounds(server: Host, name: str) -> None:
    assert overall(server.check_output("systemd-analyze security --no-pager %s", name)) <= BOUNDS[name]


def test_a_unit_does_what_is_its_own_and_nothing_else(server: Host, unit: dict[str, Any], plan: dict[str, Any]) -> None:
    name = unit["name"]
    own = {
        "write its log": attempt_to_write(f"/var/log/citadel-llm/{name}"),
        "write its cache": attempt_to_write(f"/var/cache/citadel-llm/{name}"),
        "write its folder in /run": attempt_to_write(f"/run/citadel-llm/{name}"),
        "write /dev/shm": attempt_to_write("/dev/shm"),  # noqa: S108 - a folder of the unit's own
    }
    if name == plan["gateway"]["name"]:
        own["read its configuration"] = "cat /opt/citadel/config/gateway/config.yaml"
    else:
        own["read its weights"] = f"cat /opt/models/{name}/config.json"
        own["read its logging configuration"] = f"cat /opt/citadel/config/services/{name}.logging.json"
    assert succeeding(server, unit["unit"], own | attempts_on(plan, but=name)) == set(own)


@pytest.mark.parametrize("name", OTHERS)
def test_a_unit_of_the_distribution_does_nothing_else_either(server: Host, plan: dict[str, Any], name: str) -> None:
    allowed = {
        # Its master reads the key; the worker that clients talk to has neither its rights nor its view.
        "haproxy.service": {"read the key"},
        "prometheus.service": set(),
        "prometheus-alertmanager.service": set(),
        # Whose key it is, it may read: it tells its age. It talks to nobody outside.
        "citadel-exporter.service": {"read the key", "read the plan"},
        # It measures file systems wherever they are mounted, so it sees what everybody on the host may see.
        "prometheus-node-exporter.service": {"read the plan", *(f"read the weights of {service['name']}" for service in plan["services"])},
    }
    assert succeeding(server, name, attempts_on(plan)) == allowed[name]


def holders_of_the_key(server: Host, as_user: str = "") -> set[int]:
    """Process ids in whose environment the key is found, by root or by a user; grep is given the key on an open file."""
    found = server.run(f"cut -d' ' -f2 {KEY_FILE} | {as_user} grep -lsFf - /proc/[0-9]*/environ")
    return {int(path.split("/")[2]) for path in found.stdout.split()}


@pytest.mark.parametrize("user", ["agent0", "haproxy", "prometheus", "nobody"])
def test_nobody_else_reads_the_key_in_an_environment(server: Host, user: str) -> None:
    assert holders_of_the_key(server, f"setpriv --reuid {user} --regid $(id -g {user}) --clear-groups") == set()


def test_only_litellm_has_the_key_in_its_environment(server: Host, plan: dict[str, Any]) -> None:
    holders = holders_of_the_key(server)
    supervisor = int(server.check_output("systemctl show --property=MainPID --value %s", plan["gateway"]["unit"]))
    assert holders
    assert holders <= cgroups.process_ids(server, plan["gateway"]["unit"]) - {supervisor}


def test_the_configuration_of_services_is_roots(server: Host) -> None:
    assert server.file("/opt/citadel/config/services").mode == 0o700
    assert server.check_output("find /opt/citadel/config/services -name '*.env' -perm /077") == ""
