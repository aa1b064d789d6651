"""Prometheus and Alertmanager as they are, run on loopback while a test looks at them."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.haproxy import tool, until


@contextmanager
def running(folder: Path, program: str, port: int, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program from when it answers at the port until the end; its output is in `folder`, PROGRAM.log."""
    with (folder / f"{program}.log").open("wb") as log:
        process = subprocess.Popen(
            [tool(program), *words, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: answers(port), what=f"{program} answers")
        yield process
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2).status == 200)
    except OSError:
        return False
