"""Waiting for a unit, as an operator sees it: the role's task and the module, with a mock of systemctl that tells a story."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from playing import local_play, place_program, run_playbook

UNIT = "citadel-llm@hermes-2.service"
LOADED = {"LoadState": "loaded", "NeedDaemonReload": "no", "ExecMainStartTimestamp": "", "Job": "0", "Result": "success"}
STARTING = LOADED | {"ActiveState": "activating", "SubState": "start", "Job": "7"}
RUNNING = LOADED | {"ActiveState": "active", "SubState": "running", "StatusText": "generating since 09:19:02"}
FAILED = LOADED | {
    "ActiveState": "activating",
    "SubState": "auto-restart",
    "Result": "exit-code",
    "StatusText": "failed at 09:18:40 while loading weights 3/12: VLLM::Worker (process 12) ended",
}

# Each `show` tells the next page and stays on the last one.
SYSTEMCTL = """#!{python}
import json, pathlib, sys
story = pathlib.Path(sys.argv[0]).with_name("story.json")
pages = json.loads(story.read_text())
for name, value in pages[0].items():
    print(f"{{name}}={{value}}")
story.write_text(json.dumps(pages[1:] or pages))
"""
JOURNALCTL = "#!/bin/sh\necho 'the last words of vLLM'\n"
PLAY = local_play(
    {
        "ansible.builtin.include_role": {"name": "model_service", "tasks_from": "ready"},
        "vars": {
            "model_service_plan": {"name": "hermes-2", "unit": UNIT, "load_timeout_seconds": 600},
            "model_service_python": "/nowhere/python",
        },
    }
)


def wait(folder: Path, story: list[dict[str, Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("systemctl", SYSTEMCTL.format(python=sys.executable)), ("journalctl", JOURNALCTL)):
        place_program(folder / name, text)
    (folder / "story.json").write_text(json.dumps(story), encoding="utf-8")
    return run_playbook(PLAY, *arguments, folder=folder, path=folder)


def test_what_it_waits_for_is_shown_line_by_line_until_it_generates(tmp_path: Path) -> None:
    phases = ["starting the engine since 09:18:05", "loading weights 1/12 since 09:18:20", "loading weights 3/12 since 09:18:31"]
    story = [STARTING | {"StatusText": phase} for phase in phases for _ in range(12)] + [RUNNING]
    finished = wait(tmp_path, story)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    shown = [line for line in finished.stdout.splitlines() if " => (item=" in line]
    assert shown == [f"ok: [localhost] => (item={text})" for text in [*phases, RUNNING["StatusText"]]]


def test_a_unit_that_runs_already_takes_one_look(tmp_path: Path) -> None:
    finished = wait(tmp_path, [RUNNING])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count(" => (item=") == 1


def test_a_failed_start_ends_the_wait_with_the_reason_and_the_last_words(tmp_path: Path) -> None:
    story = [STARTING | {"StatusText": "loading weights 3/12 since 09:18:31"}] * 2 + [FAILED]
    finished = wait(tmp_path, story)
    assert finished.returncode != 0
    assert f"{UNIT} did not start (exit-code): {FAILED['StatusText']}" in finished.stdout + finished.stderr
    assert "the last words of vLLM" in finished.stdout + finished.stderr
    assert (finished.stdout + finished.stderr).count("failed: [localhost]") == 1, "it does not go on after that"


def test_a_start_that_is_tried_again_has_failed(tmp_path: Path) -> None:
    """The number of the time before is still there when the wait begins; after that each restart counts, also between two looks."""
    again = STARTING | {
        "NRestarts": "1",
        "StatusText": "waiting 5 s after 1 failure in a row; the last: failed at 09:18:40 while warming up: x",
    }
    silent, warming = (STARTING | {"NRestarts": "0", "StatusText": text} for text in ("", "warming up"))
    story = [silent | {"NRestarts": "3"}, *[silent] * 12, warming, warming, again]
    finished = wait(tmp_path, story)
    assert finished.returncode != 0
    assert f"{UNIT} did not start: {again['StatusText']}" in finished.stdout + finished.stderr
    assert "the last words of vLLM" in finished.stdout + finished.stderr


def test_a_unit_that_nobody_has_started_is_not_waited_for(tmp_path: Path) -> None:
    finished = wait(tmp_path, [LOADED | {"ActiveState": "inactive", "SubState": "dead"}])
    assert finished.returncode != 0
    assert f"{UNIT} is inactive and nobody has started it." in finished.stdout + finished.stderr


def test_check_mode_waits_for_nothing(tmp_path: Path) -> None:
    finished = wait(tmp_path, [STARTING], "--check")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "skipped=1" in finished.stdout


def test_check_mode_fails_for_nothing_that_a_run_would_start(tmp_path: Path) -> None:
    play = local_play({"citadel_unit": {"name": UNIT, "state": "active"}})
    for name, text in (("systemctl", SYSTEMCTL.format(python=sys.executable)), ("journalctl", JOURNALCTL)):
        place_program(tmp_path / name, text)
    for unit in (FAILED, LOADED | {"ActiveState": "failed", "SubState": "failed", "Result": "exit-code"}):
        (tmp_path / "story.json").write_text(json.dumps([unit]), encoding="utf-8")
        assert run_playbook(play, folder=tmp_path, path=tmp_path).returncode != 0
        finished = run_playbook(play, "--check", folder=tmp_path, path=tmp_path)
        assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_start_that_outlasts_the_wait_has_failed(tmp_path: Path) -> None:
    place_program(tmp_path / "systemctl", SYSTEMCTL.format(python=sys.executable))
    (tmp_path / "story.json").write_text(json.dumps([STARTING | {"StatusText": "warming up"}]), encoding="utf-8")
    play = local_play({"citadel_unit": {"name": UNIT, "state": "active", "timeout_seconds": 1}})
    finished = run_playbook(play, folder=tmp_path, path=tmp_path)
    assert finished.returncode != 0
    assert f"{UNIT} is still activating after 1 s: warming up" in finished.stdout + finished.stderr
