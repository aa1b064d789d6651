"""The module that lets clients in and out, with a real HAProxy; playbooks/keys.yml is tested with the playbooks."""

from __future__ import annotations

import hashlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from edge.haproxy import MODELS, STRANGER, Edge, ask, make_edge
from modules import run_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Clients:
    """One host: its edge, its files, and the module."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.keys = edge.directory / "client-keys.map"
        self.limits = edge.directory / "client-requests-per-minute.map"

    def call(self, *, check: bool = False, keys: Path | None = None, **arguments: object) -> dict[str, Any]:
        """Run the module; what it returned."""
        given = {"keys_file": str(keys or self.keys), "maps": [str(self.limits)], "socket": str(self.edge.directory / "stats")}
        return run_module("citadel_edge_clients", check=check, **given | arguments)

    def add(self, name: str, key: str, **arguments: object) -> dict[str, Any]:
        return self.call(state="present", name=name, key_sha256=digest(key), **arguments)

    def revoke(self, name: str, **arguments: object) -> dict[str, Any]:
        return self.call(state="absent", name=name, **arguments)

    def status(self, key: str) -> int:
        return ask(self.edge.gateway_port, "/v1/models", source=STRANGER, headers={"Authorization": f"Bearer {key}"}).status


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Run an edge."""
    edge = make_edge(tmp_path_factory.mktemp("clients"))
    try:
        edge.start()
        yield Clients(edge)
    finally:
        edge.stop()


def test_a_key_is_in_force_at_once_and_after_a_reload_until_it_is_revoked(clients: Clients) -> None:
    assert clients.add("app-1", "key-1")["actions"] == ["app-1 got a key"]
    assert clients.status("key-1") == 200
    assert clients.keys.stat().st_mode & 0o777 == 0o640
    assert clients.add("app-1", "key-1")["changed"] is False
    clients.edge.reload()
    assert clients.status("key-1") == 200
    assert clients.revoke("app-1")["actions"] == ["app-1 lost a key"]
    assert clients.status("key-1") == 401
    assert clients.revoke("app-1")["changed"] is False
    clients.edge.reload()
    assert clients.status("key-1") == 401


def test_a_client_may_have_two_keys_while_it_changes_them(clients: Clients) -> None:
    clients.add("app-2", "key-old")
    clients.add("app-2", "key-new")
    assert (clients.status("key-old"), clients.status("key-new")) == (200, 200)
    clients.revoke("app-2", fingerprint=digest("key-old")[:8])
    assert (clients.status("key-old"), clients.status("key-new")) == (401, 200)


def test_what_each_client_does_is_told_by_its_name(clients: Clients) -> None:
    clients.add("app-3", "key-3")
    (entry,) = [entry for entry in clients.call()["clients"] if entry["name"] == "app-3"]
    assert entry == {"name": "app-3", "fingerprint": digest("key-3")[:8], "usage": {}}
    assert clients.status("key-3") == 200
    (entry,) = [entry for entry in clients.call()["clients"] if entry["name"] == "app-3"]
    assert entry["usage"] == {"requests": 1, "refused": 0, "last_minute": 1, "now": 0}
    assert f"app-3 ({digest('key-3')[:8]}): 1 requests, 0 refused, 1 in the last minute, 0 now" in clients.call()["summary"]
    assert digest("key-3") not in json.dumps(clients.call()), "the sum of a key is not told"


def test_nobody_gets_anothers_key(clients: Clients) -> None:
    clients.add("app-4", "key-4")
    answer = clients.add("app-5", "key-4")
    assert (answer["failed"], answer["msg"]) == (True, "This key is app-4's: give app-5 one of its own.")


def test_a_run_that_was_killed_before_haproxy_was_told_is_mended_by_the_next(clients: Clients) -> None:
    clients.add("app-6", "key-6")
    line = f"{digest('key-6')} app-6\n"
    clients.keys.write_text(clients.keys.read_text().replace(line, ""))  # a revocation
    assert clients.status("key-6") == 200
    assert clients.call(check=True)["changed"] is True
    assert clients.status("key-6") == 200
    assert clients.call()["actions"] == [f"HAProxy is told of {clients.keys}"]
    assert clients.status("key-6") == 401
    clients.keys.write_text(clients.keys.read_text() + line)  # an addition
    assert clients.call()["changed"] is True
    assert (clients.status("key-6"), clients.call()["changed"]) == (200, False)


def test_a_run_that_was_killed_while_it_wrote_leaves_the_file_whole(clients: Clients) -> None:
    unfinished = clients.keys.with_name("client-keys.map.unfinished")
    unfinished.write_text("0123")
    clients.add("app-7", "key-7")
    assert (unfinished.exists(), clients.status("key-7")) == (False, 200)


def test_what_somebody_added_to_haproxy_alone_is_gone_after_a_run(clients: Clients) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(clients.edge.directory / "stats"))
        connection.sendall(f"add map {clients.keys} {digest('key-8')} app-8\n".encode())
        connection.recv(100)
    assert clients.status("key-8") == 200
    clients.call()
    assert clients.status("key-8") == 401


def test_limits_that_changed_in_their_file_are_in_force_without_a_reload(clients: Clients) -> None:
    clients.add("app-9", "key-9")
    kept = clients.limits.read_text()
    for text, expected in (("app-9 1\n", [200, 429]), ("app-9 3\n", [200, 200]), ("", [200])):
        clients.limits.write_text(kept + text)
        clients.call()
        assert [clients.status("key-9") for _ in expected] == expected


def test_check_mode_says_what_would_be_done_and_does_nothing(clients: Clients) -> None:
    clients.add("app-10", "key-10")
    before = clients.keys.read_text()
    assert clients.revoke("app-10", check=True)["actions"] == ["app-10 lost a key"]
    assert clients.add("app-11", "key-11", check=True)["actions"] == ["app-11 got a key"]
    assert (clients.keys.read_text(), clients.status("key-10"), clients.status("key-11")) == (before, 200, 401)


def test_the_file_is_made_and_kept_from_others(clients: Clients, tmp_path: Path) -> None:
    keys = tmp_path / "client-keys.map"
    assert clients.call(check=True, keys=keys)["actions"] == [f"{keys} is made"]
    assert not keys.exists()
    assert clients.call(keys=keys)["changed"] is True
    keys.chmod(0o644)
    assert clients.call(keys=keys)["actions"] == [f"{keys} is kept from others"]
    assert keys.stat().st_mode & 0o777 == 0o640
    assert clients.call(keys=keys)["changed"] is False, "HAProxy does not have this map, which is no difference"
    missing = clients.call(keys=tmp_path / "missing" / "client-keys.map")
    assert "the edge has not been deployed here" in missing["msg"]


def test_a_haproxy_that_does_not_run_reads_the_file_when_it_starts(clients: Clients, tmp_path: Path) -> None:
    answer = clients.add("app-12", "key-12", socket=str(tmp_path / "nobody"))
    assert answer["actions"] == ["app-12 got a key"]
    assert clients.status("key-12") == 401
    clients.edge.reload()
    assert clients.status("key-12") == 200


@pytest.mark.parametrize("line", ["nonsense app-1", "0123456789 app-1", f"{digest('x')} two words"])
def test_a_file_that_somebody_has_broken_is_refused(clients: Clients, line: str) -> None:
    kept = clients.keys.read_text()
    try:
        clients.keys.write_text(f"{kept}{line}\n")
        assert "has 1 lines that are no key of a client" in clients.call()["msg"]
    finally:
        clients.keys.write_text(kept)


def test_many_clients_are_taken_in_one_run(clients: Clients) -> None:
    kept = clients.keys.read_text()
    clients.keys.write_text(kept + "".join(f"{digest(f'key-many-{number}')} many-{number}\n" for number in range(300)))
    assert clients.call()["changed"] is True
    assert [clients.status(f"key-many-{number}") for number in (0, 299)] == [200, 200]
    assert MODELS[0] in clients.edge.health().json["models"]
    clients.keys.write_text(kept)
    clients.call()
    assert clients.status("key-many-299") == 401
