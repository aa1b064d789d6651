"""The host's own authority and its certificate, with the real openssl. How the edge serves it is tested with the edge."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from edge.haproxy import tool
from modules import run_module

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["192.168.10.29", "2001:db8::29", "hx-llm-server-01"]


def have(folder: Path, *, check: bool = False, names: list[str] = NAMES, **arguments: object) -> list[str]:
    """Run the module; its reasons for what it made."""
    answer = run_module("citadel_local_certificate", check=check, folder=str(folder), names=names, **arguments)
    assert answer["changed"] == bool(answer["reasons"])
    return list(answer["reasons"])


def openssl(*arguments: object) -> str:
    command = [tool("openssl"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_is_made_once_and_names_what_clients_call_the_server(tmp_path: Path) -> None:
    assert have(tmp_path, check=True) == ["there is no authority", "the certificate is of another authority"]
    assert contents(tmp_path) == {}
    have(tmp_path)
    made = contents(tmp_path)
    assert set(made) == {"ca.key", "ca.pem", "server.pem"}
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "ca.key": 0o600,
        "ca.pem": 0o644,
        "server.pem": 0o600,
    }
    assert have(tmp_path) == []
    assert contents(tmp_path) == made
    for name in NAMES:
        option = "-verify_hostname" if name == NAMES[-1] else "-verify_ip"
        openssl("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", tmp_path / "ca.pem", option, name, tmp_path / "server.pem")
    assert b"PRIVATE KEY" not in made["ca.pem"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"renew_days": 397}, "the certificate ends within 397 days"),
        ({"names": [*NAMES, "llm.example.org"]}, "the certificate bears other names"),
        ({"names": NAMES[:-1]}, "the certificate bears other names"),
    ],
)
def test_another_one_is_made_in_time_and_where_names_change_by_the_same_authority(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    have(tmp_path, valid_days=396)
    before = contents(tmp_path)
    assert have(tmp_path, valid_days=396, check=True, **changes) == [reason]
    assert contents(tmp_path) == before
    assert have(tmp_path, **({"valid_days": 398} | changes)) == [reason]
    after = contents(tmp_path)
    assert (after["ca.pem"], after["ca.key"]) == (before["ca.pem"], before["ca.key"])
    assert after["server.pem"] != before["server.pem"]
    assert have(tmp_path, valid_days=398, names=changes.get("names", NAMES)) == []


def test_an_order_of_names_is_no_change(tmp_path: Path) -> None:
    have(tmp_path)
    assert have(tmp_path, names=NAMES[::-1]) == []


@pytest.mark.parametrize(
    ("lost", "reasons"),
    [
        ("server.pem", ["there is no certificate"]),
        ("ca.pem", ["there is no authority", "the certificate is of another authority"]),
        ("ca.key", ["there is no authority", "the certificate is of another authority"]),
    ],
)
def test_what_a_killed_run_left_is_mended(tmp_path: Path, lost: str, reasons: list[str]) -> None:
    have(tmp_path)
    (tmp_path / lost).unlink()
    assert have(tmp_path) == reasons
    assert have(tmp_path) == []


def test_a_certificate_of_another_authority_is_made_anew(tmp_path: Path) -> None:
    """What a run leaves that was killed after it had made a new authority."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        have(tmp_path / name)
    for file in ("ca.pem", "ca.key"):
        (tmp_path / "other" / file).replace(tmp_path / "one" / file)
    (tmp_path / "one" / ".unfinished").mkdir()
    assert have(tmp_path / "one") == ["the certificate is of another authority"]
    assert have(tmp_path / "one") == []
    assert set(contents(tmp_path / "one")) == {"ca.key", "ca.pem", "server.pem"}


def test_half_a_certificate_is_made_anew(tmp_path: Path) -> None:
    have(tmp_path)
    server = tmp_path / "server.pem"
    server.write_bytes(server.read_bytes()[:600])
    assert have(tmp_path) == ["the certificate and its key do not belong together"]
    assert have(tmp_path) == []


def test_an_authority_that_ends_too_soon_is_made_anew(tmp_path: Path) -> None:
    have(tmp_path)
    assert have(tmp_path, valid_days=3651)[0] == "the authority ends before a new certificate would"
