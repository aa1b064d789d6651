"""Every role declares its interface twice, for people (defaults) and for Ansible (argument_specs): the two must say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROLES = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "roles").glob("*/tasks"))


def options(role: Path) -> dict[str, dict[str, object]]:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return dict(specs["main"]["options"])


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_equal_argument_specs(role: Path) -> None:
    text = (role / "defaults/main.yml").read_text()
    defaults = yaml.safe_load(text) or {}
    declared = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert defaults == declared
    required = {name for name, option in options(role).items() if option.get("required")}
    shown = set(re.findall(rf"^# ({role.name}_\w+):", text, re.MULTILINE))
    assert required <= shown, "variables without a default stand commented in defaults/main.yml"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_public_names_carry_the_role(role: Path) -> None:
    assert [name for name in options(role) if not name.startswith(f"{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_role_names_another_roles_variables(role: Path) -> None:
    others = {name for other in ROLES if other != role for name in options(other)}
    for path in sorted(role.rglob("*")):
        if path.is_file() and path.suffix in {".yml", ".j2"} and path.parent.name in {"tasks", "templates", "handlers", "vars", "defaults"}:
            found = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", path.read_text())) & others
            assert found == set(), f"{path} names {found}"
