"""The gateway's own decisions, apart from LiteLLM."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest

from rendering import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

MODULE = PROJECT / "roles" / "gateway" / "files" / "citadel_routing.py"


@pytest.fixture(scope="module")
def routing() -> Iterator[ModuleType]:
    """Load the module as it is copied to a host: it belongs to no package."""
    spec = importlib.util.spec_from_file_location("citadel_routing", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("requested", [None, "", "auto"])
def test_the_choice_is_open(routing: ModuleType, requested: object) -> None:
    assert routing.leaves_choice_open(requested)


@pytest.mark.parametrize("requested", ["hermes-2", "AUTO", "automatic", " ", 0, False, [], {}])
def test_the_choice_is_made(routing: ModuleType, requested: object) -> None:
    assert not routing.leaves_choice_open(requested)


@pytest.mark.parametrize(
    ("status", "is_verdict"),
    [(400, True), (413, True), (422, True), (401, False), (404, False), (429, False), (500, False), (None, False)],
)
def test_only_faults_of_the_request_are_verdicts(routing: ModuleType, status: object, is_verdict: bool) -> None:
    assert routing.is_verdict_on_request(status) is is_verdict


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "Exception occured - id=7 - litellm.BadRequestError: OpenAIException - {'input': 'secret'}\nsecret",
            "OpenAIException - (the model's own words are not logged)",
        ),
        ("Hosted_vllmException - secret", "Hosted_vllmException - (the model's own words are not logged)"),
        (
            "400: {'error': '/completions: Invalid model name passed in model=secret. Call `/v1/models`'}",
            "Invalid model name passed in (what clients write is not logged)",
        ),
        ("Uvicorn running on http://127.0.0.1:8000", "Uvicorn running on http://127.0.0.1:8000"),
    ],
)
def test_what_a_model_answered_and_a_client_wrote_is_cut_out(routing: ModuleType, text: str, kept: str) -> None:
    shown = routing.without_quotations(text)
    assert shown.endswith(kept)
    assert "secret" not in shown


def test_rules_are_read_from_the_file(routing: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "routing.json"
    file.write_text('{"default_model": "hermes-2"}', encoding="utf-8")
    assert routing.load_rules(file).default_model == "hermes-2"


@pytest.mark.parametrize("content", ["{}", "[]", '{"default_model": ""}', '{"default_model": 7}', "{"])
def test_rules_that_make_no_sense_stop_the_start(routing: ModuleType, tmp_path: Path, content: str) -> None:
    file = tmp_path / "routing.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"default_model must be the name of a model|Expecting"):
        routing.load_rules(file)
