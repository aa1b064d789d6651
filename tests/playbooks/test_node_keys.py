"""The key of a gateway's host to the models of others: made once, where it is, told by its sum alone, and changed without a gap."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from playing import changed_tasks, local_play, run_playbook

if TYPE_CHECKING:
    from pathlib import Path

LINE = r"CITADEL_NODE_KEY (sk-node-[0-9a-f]{64})\n"


def run(folder: Path, *, new: bool = False) -> tuple[int, str, list[str]]:
    """Run the role's tasks as root of a namespace of its own: changed tasks (-1: it failed), what was shown, the sums told to others."""
    play = local_play(
        {"ansible.builtin.import_role": {"name": "edge", "tasks_from": "node_key"}},
        {
            "ansible.builtin.copy": {"content": "{{ citadel_node | to_json }}", "dest": str(folder / "told.json"), "mode": "0600"},
            "diff": False,
        },
    )
    given = {
        "edge_node_hosts": ["localhost"],
        "edge_node_key_file": str(folder / "node.key"),
        "edge_node_new_key": new,
        "citadel_server_address": "192.168.10.29",
    }
    finished = run_playbook(play, "-vvv", "--diff", folder=folder, variables=given, as_root=True)
    told: dict[str, Any] = json.loads((folder / "told.json").read_text()) if finished.returncode == 0 else {}
    if told:
        assert (told["name"], told["address"]) == ("localhost", "192.168.10.29")
    return changed_tasks(finished), finished.stdout + finished.stderr, told.get("key_sha256s", [])


def key(file: Path) -> str:
    assert file.stat().st_mode & 0o777 == 0o600
    match = re.fullmatch(LINE, file.read_text())
    assert match
    return match[1]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_it_is_made_once_and_told_by_its_sum(tmp_path: Path) -> None:
    changed, shown, sums = run(tmp_path)
    made = key(tmp_path / "node.key")
    # The key itself, and this test's own file.
    assert (changed, sums) == (2, [digest(made)])
    assert made not in shown
    changed, _, again = run(tmp_path)
    assert (changed, again) == (0, sums)
    assert key(tmp_path / "node.key") == made
    assert sorted(path.name for path in tmp_path.glob("node.key*")) == ["node.key"]


def test_a_second_one_is_told_beside_the_first_until_it_takes_its_place(tmp_path: Path) -> None:
    run(tmp_path)
    changed, shown, sums = run(tmp_path, new=True)
    first, second = key(tmp_path / "node.key"), key(tmp_path / "node.key.next")
    assert changed > 0
    assert sums == [digest(first), digest(second)]
    assert second not in shown
    # A run that was interrupted here: both stay good, and the next one goes on with the same.
    assert run(tmp_path)[2] == sums
    assert run(tmp_path, new=True)[2] == sums
    # As playbooks/rotate-node-keys.yml does it. Nobody knows whether HAProxy has read the second one: the first stays good until that is
    # known, however often a run is interrupted here.
    old = tmp_path / "node.key.old"
    old.touch(mode=0o600)
    old.write_text((tmp_path / "node.key").read_text())
    (tmp_path / "node.key.next").replace(tmp_path / "node.key")
    assert run(tmp_path)[2] == [digest(second), digest(first)]
    third = run(tmp_path, new=True)[2][1]
    assert run(tmp_path)[2] == [digest(second), third, digest(first)]
    old.write_text(old.read_text() + (tmp_path / "node.key").read_text())
    (tmp_path / "node.key.next").replace(tmp_path / "node.key")
    assert run(tmp_path)[2] == [third, digest(first), digest(second)]
    old.unlink()
    assert run(tmp_path)[2] == [third]


def test_what_is_no_key_or_open_to_others_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "node.key").chmod(0o640)
    changed, shown, _ = run(tmp_path)
    assert changed == -1
    assert "must hold one line, CITADEL_NODE_KEY sk-node-" in " ".join(shown.split())
    (tmp_path / "node.key").write_text("CITADEL_NODE_KEY sk-short\n")
    (tmp_path / "node.key").chmod(0o600)
    assert run(tmp_path)[0] == -1
