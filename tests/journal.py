"""A real systemd-journald that keeps its entries in a folder of the test: what it says of a record is what a host's journal would say."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

# In a mount namespace of its own, with the two folders of the test where it has its sockets and its entries. It takes nothing else in:
# neither the kernel's messages nor the configuration of this machine's journal count.
_START = """
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d
mount --bind "$1/sockets" /run/systemd/journal
mount --bind "$1/entries" /run/log/journal
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\nRateLimitIntervalSec=0\\n' > /run/systemd/journald.conf.d/99-test.conf
exec /lib/systemd/systemd-journald
"""


@dataclass(frozen=True)
class Entry:
    """One entry: its syslog priority (3: error, 4: warning, 6: information), who it says has written it, and its text."""

    priority: int
    identifier: str
    text: str


class Journal:
    """Takes records at `socket`; use it as a context manager."""

    def __enter__(self) -> Self:
        # A short path: a socket's has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="citadel-journal-"))
        (self._folder / "sockets").mkdir()
        (self._folder / "entries").mkdir()
        self.socket = self._folder / "sockets" / "dev-log"
        self._output = self._folder / "output"
        command = ["unshare", "--map-root-user", "--mount", "sh", "-ec", _START, "sh", str(self._folder)]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"systemd-journald did not start: {self._said}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        self._said = self._output.read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(self._folder)

    def entries(self) -> list[Entry]:
        """Read everything that it was given so far, in order."""
        command = ["journalctl", f"--directory={self._folder / 'entries'}", "--output=json", "--all", "--quiet", "_TRANSPORT=syslog"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        fields = [json.loads(line) for line in lines]
        return [Entry(int(each["PRIORITY"]), _text(each["SYSLOG_IDENTIFIER"]), _text(each["MESSAGE"])) for each in fields]

    def text(self) -> str:
        """Read the texts of all entries."""
        return "\n".join(entry.text for entry in self.entries())


def _text(value: Any) -> str:  # noqa: ANN401 - journalctl writes what is not plain text as a list of bytes
    return bytes(value).decode(errors="replace") if isinstance(value, list) else str(value)
