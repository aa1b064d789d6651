"""The key between edge and gateway: made, given, renewed, refused, and never shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edge.refusals import refusals
from gateway.harness import plan
from playing import changed_tasks, local_play, run_playbook

if TYPE_CHECKING:
    from pathlib import Path

GIVEN = "sk-given-by-the-vault-0123456789abcdef"
ANOTHER = "sk-another-of-the-vault-0123456789abcdef"
LINE = r"LITELLM_MASTER_KEY (sk-[A-Za-z0-9_-]{32,})\n"


def run(folder: Path, tasks_from: str, *arguments: str, **variables: object) -> tuple[int, str]:
    """Run tasks of the role as root of a namespace of its own; changed tasks and all that was shown. Changed is -1 where it failed."""
    play = local_play({"ansible.builtin.import_role": {"name": "gateway", "tasks_from": tasks_from}})
    given = {"gateway_secret_file": str(folder / "gateway.key"), **variables}
    finished = run_playbook(play, "-vvv", "--diff", *arguments, folder=folder, variables=given, as_root=True)
    return changed_tasks(finished), finished.stdout + finished.stderr


def key(folder: Path) -> str:
    file = folder / "gateway.key"
    assert file.stat().st_mode & 0o777 == 0o600
    match = re.fullmatch(LINE, file.read_text())
    assert match
    return match[1]


def test_it_is_made_once(tmp_path: Path) -> None:
    assert run(tmp_path, "secret")[0] == 1
    made = key(tmp_path)
    changed, shown = run(tmp_path, "secret")
    assert (changed, key(tmp_path)) == (0, made)
    assert made not in shown


def test_one_that_is_given_takes_its_place_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text(f"LITELLM_MASTER_KEY {ANOTHER}\n")
    changed, shown = run(tmp_path, "secret", gateway_master_key=GIVEN)
    assert (changed, key(tmp_path)) == (1, GIVEN)
    assert (GIVEN in shown, ANOTHER in shown) == (False, False)
    assert run(tmp_path, "secret", gateway_master_key=GIVEN)[0] == 0


def test_it_is_not_shown_where_other_arguments_are_wrong(tmp_path: Path) -> None:
    changed, shown = run(tmp_path, "main", gateway_master_key=GIVEN, gateway_plan="no plan")
    assert changed == -1
    assert "gateway_plan" in shown
    assert GIVEN not in shown


def test_renewing_makes_another(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text(f"LITELLM_MASTER_KEY {GIVEN}\n")
    (tmp_path / "gateway.key").chmod(0o600)
    assert (run(tmp_path, "renew", "--check")[0], key(tmp_path)) == (1, GIVEN)
    changed, shown = run(tmp_path, "renew")
    assert changed > 0
    assert key(tmp_path) != GIVEN
    assert (GIVEN in shown, key(tmp_path) in shown) == (False, False)


def test_renewing_leaves_no_moment_without_a_key(tmp_path: Path) -> None:
    """Neither edge nor gateway starts without one. A run that cannot write another leaves the one in use."""
    (tmp_path / "gateway.key").write_text(f"LITELLM_MASTER_KEY {GIVEN}\n")
    (tmp_path / "gateway.key").chmod(0o600)
    (tmp_path / "gateway.key.unfinished").mkdir()
    changed, shown = run(tmp_path, "renew")
    assert (changed, key(tmp_path)) == (-1, GIVEN)
    assert "gateway.key.unfinished" in shown, "the reason is shown"
    assert GIVEN not in shown


def test_renewing_refuses_the_key_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text(f"LITELLM_MASTER_KEY {GIVEN}\n")
    (tmp_path / "gateway.key").chmod(0o600)
    changed, shown = run(tmp_path, "renew", gateway_master_key=GIVEN)
    assert (changed, key(tmp_path)) == (-1, GIVEN)
    assert "gateway_master_key is the key in use already" in shown
    assert GIVEN not in shown
    # A rotation that was interrupted has written it, and is gone on with.
    assert run(tmp_path, "renew", gateway_master_key=GIVEN, gateway_secret_unread=True)[0] == 0


def test_a_file_that_holds_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text("LITELLM_MASTER_KEY sk-short\n")
    changed, shown = run(tmp_path, "secret")
    assert changed == -1
    assert "must hold one line, LITELLM_MASTER_KEY sk-" in " ".join(shown.split())


def test_a_weak_one_is_refused_before_anything_changes(tmp_path: Path) -> None:
    upstream: dict[str, Any] = dict.fromkeys(
        ["service", "model", "host", "context_tokens", "max_output_tokens", "modes", "specialisation", "description"], "x"
    )
    good = {
        "gateway_plan": plan(8000, 1),
        "gateway_routing_rules": [{"name": "otherwise", "models": ["x"]}],
        "gateway_upstreams": [upstream | {"api_base": "http://127.0.0.1:31401/v1"}],
        "gateway_master_key": GIVEN,
    }
    cases = {
        "nothing wrong": good,
        "weak": good | {"gateway_master_key": "sk-weak"},
    }
    said = refusals("gateway", cases, tmp_path)
    assert set(said) == {"weak"}
    assert said["weak"].startswith("gateway_master_key must be sk- and at least 32")
