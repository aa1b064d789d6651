"""The names that preflight knows are the names that the committed inventory sets."""

from __future__ import annotations

from pathlib import Path

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]


def test_known_names_are_those_of_the_inventory() -> None:
    files = sorted((CHECKOUT / "inventory/group_vars/all").glob("*.yml"))
    committed = {path.name: {name for name in yaml.safe_load(path.read_text()) if name.startswith("citadel_")} for path in files}
    known = yaml.safe_load((CHECKOUT / "playbooks/vars/names.yml").read_text())
    assert known["names_roles"] == sorted(path.name for path in (CHECKOUT / "roles").iterdir())
    assert {file: set(names) for file, names in known["names_operator"].items()} == {
        file: names for file, names in committed.items() if names
    }
