"""A supervisor and what it runs, with the test in systemd's place: it listens to sd_notify and counts the time."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from citadel_supervise import Process, session_processes
from rendering import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PATIENCE_SECONDS = 30.0
"""How long a test waits for what comes at once on a machine that is well; one that is stopped for seconds is no failure."""

SUPERVISOR = PROJECT / "roles" / "service_framework" / "files" / "citadel_supervise.py"

_numbers = itertools.count()


@dataclass
class Supervised:
    """Runs `command`, which begins with the supervisor as in ExecStart; use it as a context manager.

    Everything that it has started is gone afterwards. `output` takes what it and the service write: the journal's part.
    """

    command: Sequence[str]
    output: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    messages: list[tuple[float, str]] = field(default_factory=list)
    _session: int = 0

    def __enter__(self) -> Self:
        name = f"citadel-test-{os.getpid()}-{next(_numbers)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{name}")
        environment = {**self.environment, "NOTIFY_SOCKET": f"@{name}"}
        self.began = time.monotonic()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(self.command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        return self

    def __exit__(self, *_: object) -> None:
        """End it in order; kill what does not."""
        self.processes()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        if self._session:
            for process in session_processes(self._session):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._socket.close()

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.began

    def read(self) -> list[str]:
        """Take what has been said since; returns everything that was."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.messages.append((self.seconds, self._socket.recv(4096).decode()))
        return [message for _, message in self.messages]

    def until(self, condition: Callable[[], object], *, seconds: float = PATIENCE_SECONDS, what: str) -> float:
        """Wait until `condition` holds; the seconds that it took. Fails, saying `what` did not happen and what was said instead."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > seconds:
                pytest.fail(f"not within {seconds} s: {what}\n{self.read()}\n{self.written()[-4000:]}")
            select.select([self._socket], [], [], 0.05)
            self.read()
        return time.monotonic() - start

    def until_ready(self, *, seconds: float = PATIENCE_SECONDS) -> float:
        """Wait for READY=1; fails when it ends before."""

        def ready_or_ended() -> bool:
            return self.ready or self.process.poll() is not None

        took = self.until(ready_or_ended, seconds=seconds, what="READY=1")
        assert self.ready, f"it ended with {self.process.returncode}: {self.status}\n{self.written()[-4000:]}"
        return took

    def until_ended(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; its exit status."""
        self.until(lambda: self.process.poll() is not None, seconds=seconds, what="it ends")
        self.read()
        return int(self.process.returncode)

    @property
    def ready(self) -> bool:
        """Whether it has said READY=1."""
        return any("READY=1" in message.splitlines() for message in self.read())

    @property
    def statuses(self) -> list[str]:
        """Every status text so far."""
        lines = (line for message in self.read() for line in message.splitlines())
        return [line.removeprefix("STATUS=") for line in lines if line.startswith("STATUS=")]

    @property
    def status(self) -> str:
        """What `systemctl status` would show now."""
        return self.statuses[-1] if self.statuses else ""

    def written(self) -> str:
        """What it and the service have written."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def main_process(self) -> int:
        """Process id of the service's own main process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii").split()
        assert len(children) == 1, children
        return int(children[0])

    def processes(self) -> list[Process]:
        """List the processes of the service that live; those that nobody has fetched are dead."""
        if not self._session and self.process.poll() is None:
            with contextlib.suppress(AssertionError, OSError):
                self._session = self.main_process()
        return [process for process in session_processes(self._session) if process.state != "Z"] if self._session else []

    def kill(self, title: str, number: signal.Signals) -> None:
        """Send a signal to the one process of the service whose title begins so."""
        (pid,) = [process.pid for process in self.processes() if process.title.startswith(title)]
        os.kill(pid, number)


def state_of(port: int) -> tuple[int, dict[str, Any]]:
    """Ask as the edge asks: status and content of GET /state; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/state", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}
