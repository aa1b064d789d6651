"""The log file of a service, written by several processes at once as vLLM's do: none of it is lost, and it stays within its bound."""

from __future__ import annotations

import json
import logging.config
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rendering import PROJECT

WRITER = """
import json, logging.config, logging, os, sys
logging.config.dictConfig(json.loads(sys.argv[1]))
lines, forked = int(sys.argv[2]), sys.argv[3] == "forked"
if forked:
    # The handler and its open file are the parent's, as in vLLM's engine and workers.
    os.fork()
    os.fork()
for number in range(lines):
    logging.info("%d %d %s", os.getpid(), number, "." * 60)
if forked:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
"""


def configuration(file: Path, *, max_bytes: int, files_kept: int) -> dict[str, object]:
    """As in roles/model_service/vars/main.yml."""
    handler = {"class": "citadel_log_file.BoundedFileHandler", "filename": str(file), "max_bytes": max_bytes, "files_kept": files_kept}
    return {"version": 1, "handlers": {"file": handler}, "root": {"level": "INFO", "handlers": ["file"]}}


def write(file: Path, *, lines: int, writers: int, forked: bool, max_bytes: int, files_kept: int) -> None:
    given = json.dumps(configuration(file, max_bytes=max_bytes, files_kept=files_kept))
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "roles/service_framework/files")}
    command = [sys.executable, "-c", WRITER, given, str(lines), "forked" if forked else "alone"]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(writers)]
    for process in running:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0


def sizes(file: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in file.parent.iterdir()}


@pytest.mark.parametrize(("writers", "forked", "processes"), [(4, False, 4), (1, True, 4)], ids=["started", "forked"])
def test_no_line_is_lost_or_torn_however_many_write(tmp_path: Path, writers: int, forked: bool, processes: int) -> None:
    file = tmp_path / "log"
    write(file, lines=500, writers=writers, forked=forked, max_bytes=8000, files_kept=100)
    written = [line.split() for path in tmp_path.iterdir() for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({pid for pid, _, _ in written}) == processes
    assert len(written) == len({(pid, number) for pid, number, _ in written}) == processes * 500
    assert {text for _, _, text in written} == {"." * 60}


def test_all_files_together_stay_within_the_bound(tmp_path: Path) -> None:
    file = tmp_path / "log"
    write(file, lines=2000, writers=3, forked=False, max_bytes=8000, files_kept=3)
    found = sizes(file)
    assert set(found) == {"log", "log.1", "log.2", "log.3"}
    # Each writer may have looked before another wrote.
    assert max(found.values()) < 8000 + 3 * 100


def test_the_newest_lines_are_in_the_first_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    write(file, lines=1000, writers=1, forked=False, max_bytes=8000, files_kept=2)
    names = ["log.2", "log.1", "log"]
    numbers = [int(line.split()[1]) for name in names for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
    assert numbers == list(range(numbers[0], 1000))


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logger = logging.getLogger("test_log_file")
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": configuration(file, max_bytes=8000, files_kept=1)["handlers"],
            "loggers": {logger.name: {"level": "INFO", "handlers": ["file"], "propagate": False}},
        }
    )
    try:
        logger.info("before")
        file.rename(tmp_path / "elsewhere")
        logger.info("after")
        assert file.read_text(encoding="utf-8") == "after\n"
    finally:
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
