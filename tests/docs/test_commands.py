"""What the pages tell an operator to type exists, and their examples are accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from citadel_plan.__main__ import main
from unit.plan_examples import PROJECT, host_facts, production_plan

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```([a-z]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for kind, text in fenced if kind == language]


def commands(page: Path) -> list[list[str]]:
    lines = [line.split("#")[0].split() for block in blocks(page, "") for line in block.splitlines()]
    return [words for words in lines if words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_and_playbook_that_is_named_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(page) if words[0] == "make" and len(words) > 1}
    assert named <= targets
    for words in commands(page):
        if words[0].endswith("/ansible-playbook"):
            assert [word for word in words[1:] if word.endswith(".yml") and not (PROJECT / word.lstrip("@")).exists()] == []
    assert named or page.name not in {"README.md", "plan.md", "models.md"}


def test_the_example_of_an_override_plans() -> None:
    (example,) = blocks(PROJECT / "docs" / "models.md", "yaml")
    overrides = yaml.safe_load(example)["citadel_model_overrides"]
    services = {service.name: service for service in production_plan(facts=host_facts(memory_gib=256), overrides=overrides).services}
    assert services["hermes-2"].memory_requested_bytes == 20 * 2**30
    assert services["hermes-2"].source.revision == "0123456789abcdef0123456789abcdef01234567"


def test_make_model_takes_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = (words for words in commands(PROJECT / "docs" / "models.md") if words[:2] == ["make", "model"])
    given = dict(word.split("=") for word in words[2:])
    assert set(given) == {"FOLDER", "NAME", "PORT"}
    assert main([given["FOLDER"], "--name", given["NAME"], "--port", given["PORT"]]) == 1
    assert capsys.readouterr().err == f"{given['FOLDER']} is no folder.\n"
