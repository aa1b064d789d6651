"""Everything is pinned, and nothing tells where it came from."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LOCKS = sorted((CHECKOUT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_requirement_is_exact_and_hashed(lock: Path) -> None:
    entries = re.split(r"^(?=\S)", re.sub(r"^#.*\n", "", lock.read_text(), flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(entries) > 30
    for entry in entries:
        assert re.match(r"[\w.\[\]-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_no_lock_holds_an_address(lock: Path) -> None:
    assert re.findall(r"https?://|file:|^-", lock.read_text(), re.MULTILINE) == []


def test_lab_names_the_hosts_of_the_inventory() -> None:
    listed = subprocess.run([CHECKOUT / "lab/host.py", "status"], capture_output=True, text=True, check=True).stdout
    host_vars = {path.stem: path.read_text() for path in (CHECKOUT / "inventory/host_vars").glob("*.yml")}
    lab = {line.split()[0]: line.split()[1] for line in listed.splitlines()}
    for host, text in host_vars.items():
        assert f"ansible_host: {lab[host]}" in text
