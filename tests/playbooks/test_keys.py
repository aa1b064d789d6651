"""The keys of clients: made, listed, revoked, in force at once in a HAProxy that runs, and nowhere to be seen."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from edge.haproxy import LOOPBACK, MODELS, STRANGER, Edge, ask, make_edge
from playing import run_playbook
from rendering import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = r"sk-[A-Za-z0-9]{48}"


@dataclass
class Hosts:
    """Two hosts, each a folder of maps and a HAProxy on this machine, and what an operator runs for them."""

    folder: Path
    edges: list[Edge]

    def run(self, *arguments: str, rc: int = 0, **variables: object) -> str:
        """Run playbooks/keys.yml as root of a namespace of its own; all that was shown."""
        hosts = {
            f"host-{number}": {
                "ansible_connection": "local",
                "ansible_host": LOOPBACK,
                "edge_configuration_directory": str(edge.directory),
                "edge_stats_socket": str(edge.directory / "stats"),
            }
            for number, edge in enumerate(self.edges)
        }
        inventory = self.folder / "inventory"
        groups = PROJECT / "inventory" / "group_vars"
        inventory.mkdir(exist_ok=True)
        if not (inventory / "group_vars").exists():
            (inventory / "group_vars").symlink_to(groups)
        (inventory / "hosts.json").write_text(json.dumps({"llm_servers": {"hosts": hosts}, "gateways": {"hosts": hosts}}))
        finished = run_playbook(
            PROJECT / "playbooks" / "keys.yml",
            "-vvv",
            "--diff",
            *arguments,
            folder=self.folder,
            inventory=inventory,
            variables={"ansible_become": False, **variables},
            as_root=True,
        )
        shown = finished.stdout + finished.stderr
        assert finished.returncode == rc, shown
        return shown

    def make(self, name: str, **variables: object) -> str:
        """Add a key and return it, from the only line that shows it."""
        shown = self.run(keys_add=name, **variables)
        found = set(re.findall(rf"The key of {name}, which nobody can show again: ({KEY})", shown))
        assert len(found) == 1
        (key,) = found
        assert shown.count(key) == 1, "once, and in no other line"
        assert hashlib.sha256(key.encode()).hexdigest() not in shown
        return key

    def statuses(self, key: str) -> list[int]:
        """What each host says to whoever brings the key."""
        headers = {"Authorization": f"Bearer {key}"}
        return [ask(edge.gateway_port, "/v1/models", source=STRANGER, headers=headers).status for edge in self.edges]

    def contents(self) -> list[str]:
        return [(edge.directory / "client-keys.map").read_text() for edge in self.edges]


def changed(shown: str) -> int:
    return sum(int(count) for count in re.findall(r"changed=(\d+)", shown))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Run both hosts' edges."""
    folder = tmp_path_factory.mktemp("keys")
    edges = []
    try:
        for number in range(2):
            (folder / str(number)).mkdir()
            edges.append(make_edge(folder / str(number)))
            edges[-1].start()
        yield Hosts(folder, edges)
    finally:
        for edge in edges:
            edge.stop()


def test_a_key_is_in_force_on_all_hosts_until_it_is_revoked(hosts: Hosts) -> None:
    processes = [edge.log().count("forked") for edge in hosts.edges]
    key = hosts.make("app-1")
    assert hosts.statuses(key) == [200, 200]
    for edge in hosts.edges:
        file = edge.directory / "client-keys.map"
        assert f"{hashlib.sha256(key.encode()).hexdigest()} app-1\n" in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o640
        assert key not in edge.log()
        for other in edge.directory.iterdir():
            assert other.is_dir() or other.name == "stats" or key not in other.read_text(errors="replace")

    shown = hosts.run()
    assert changed(shown) == 0
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:8]
    assert f"app-1 ({fingerprint}): 1 requests, 0 refused, 1 in the last minute, 0 now" in shown

    shown = hosts.run(keys_revoke="app-1")
    assert "app-1 lost a key" in shown
    assert fingerprint not in "".join(hosts.contents())
    assert hosts.statuses(key) == [401, 401]
    shown = hosts.run(keys_revoke="app-1", rc=2)
    assert changed(shown) == 0
    assert "No host has a key of app-1: nothing was revoked now." in " ".join(shown.split())
    assert [edge.log().count("forked") for edge in hosts.edges] == processes, "nothing was reloaded"
    for edge in hosts.edges:
        edge.reload()
    assert hosts.statuses(key) == [401, 401]


def test_a_key_in_a_file_is_its_owners_and_can_be_added_again(hosts: Hosts, tmp_path: Path) -> None:
    file = tmp_path / "app-3.key"
    shown = hosts.run(keys_add="app-3", keys_file=str(file))
    key = file.read_text().strip()
    assert re.fullmatch(KEY, key)
    assert file.stat().st_mode & 0o777 == 0o600
    assert key not in shown
    assert hosts.statuses(key) == [200, 200]
    assert changed(hosts.run(keys_add="app-3", keys_file=str(file))) == 0
    assert "This key is app-3's" in " ".join(hosts.run(keys_add="app-4", keys_file=str(file), rc=2).split())
    weak = tmp_path / "weak.key"
    weak.write_text("sk-weak\n")
    assert "must hold one line, the key" in " ".join(hosts.run(keys_add="app-4", keys_file=str(weak), rc=2).split())


def test_a_revocation_that_reached_one_host_is_done_on_the_other_by_the_next_run(hosts: Hosts) -> None:
    key = hosts.make("app-5")
    hosts.run("--limit", "host-1", keys_revoke="app-5")
    assert hosts.statuses(key) == [200, 401]
    assert changed(hosts.run(keys_revoke="app-5")) == 1
    assert hosts.statuses(key) == [401, 401]


def test_limits_come_into_force_with_the_key_and_without_a_reload(hosts: Hosts) -> None:
    limits = {"app-8": {"models": [MODELS[1]], "requests_per_minute": 2}}
    key = hosts.make("app-8", edge_client_limits=limits)
    headers = {"Authorization": f"Bearer {key}"}
    edge = hosts.edges[0]
    found = [ask(edge.api_ports[model], "/v1/models", source=STRANGER, headers=headers).status for model in MODELS[:3]]
    assert found == [404, 200, 429]
    shown = hosts.run("--check", keys_add="app-9")
    assert re.findall(KEY, shown) == []
    assert "app-9" not in "".join(hosts.contents())
    assert ask(edge.api_ports[MODELS[1]], "/v1/models", source=STRANGER, headers=headers).status == 429


@pytest.mark.parametrize(
    "limits", [{"model": ["phi-3-mini"]}, {"models": []}, {"requests_per_minute": "60/min"}, {"concurrent_requests": 1.5}], ids=str
)
def test_limits_that_are_none_are_refused_before_anything_is_written(hosts: Hosts, limits: dict[str, object]) -> None:
    """HAProxy would not start from such a file, or let the client do anything."""
    maps = [{file.name: file.read_text() for file in edge.directory.glob("client-*.map")} for edge in hosts.edges]
    assert "edge_client_limits is" in hosts.run(rc=2, keys_add="app-10", edge_client_limits={"app-10": limits})
    assert [{file.name: file.read_text() for file in edge.directory.glob("client-*.map")} for edge in hosts.edges] == maps


@pytest.mark.parametrize(
    "variables",
    [{"keys_add": "Web Shop"}, {"keys_add": "a", "keys_revoke": "b"}, {"keys_add": "a", "keys_file": "a.key"}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(hosts: Hosts, variables: dict[str, str]) -> None:
    before = hosts.contents()
    assert "Nothing was changed." in hosts.run(rc=2, **variables)
    assert hosts.contents() == before
