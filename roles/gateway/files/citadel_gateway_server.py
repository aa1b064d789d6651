"""Runs LiteLLM in workers of uvicorn, and replaces a worker that has grown.

LiteLLM's own command does the same, except for what follows:

* the parent process imports nothing of LiteLLM, which would cost as much memory as a worker: that room is a replacement's;
* a worker that holds more memory than it may is replaced: another one starts, warms up (`citadel_gateway_app`) and takes its place, then
  the first finishes what it is doing. There are as many workers as before all the time, also where that is one;
* a worker that is to end waits a moment for the requests on connections that it has accepted but not yet read from: uvicorn would close
  those, and who had sent a request would never know whether somebody worked on it;
* with the last worker's end in sight nobody accepts connections any more, so that the edge holds what comes instead of waiting for an
  answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from typing import Final

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors.multiprocess import Multiprocess, Process

# From the connection to the request: HAProxy sends it at once, but a busy worker may be busy for as long.
_FIRST_REQUEST_SECONDS: Final = 5.0

# After a replacement that did not start.
_AGAIN_SECONDS: Final = 60.0

_PING_SECONDS: Final = 1.0

_log: Final = logging.getLogger("uvicorn.error")


class Connection(HttpToolsProtocol):
    """One connection to a worker."""

    def shutdown(self) -> None:
        """End it when what is on it has been answered; where nothing has come yet, a little later."""
        if self.cycle is None:
            asyncio.get_running_loop().call_later(_FIRST_REQUEST_SECONDS, super().shutdown)
        else:
            super().shutdown()


class Settings(Config):
    """uvicorn's settings."""

    def load(self) -> None:
        """Load the application, and set up logging again: LiteLLM gives its loggers handlers of its own when it is imported."""
        super().load()
        self.configure_logging()


class Workers(Multiprocess):
    """uvicorn's workers, each with a bound on its memory."""

    def __init__(self, config: Config, sockets: list[socket], *, worker_memory_max_bytes: int) -> None:
        super().__init__(config, sockets)
        self._worker_memory_max_bytes = worker_memory_max_bytes
        self._replacement: Process | None = None
        self._leaving: list[Process] = []
        self._not_before = 0.0

    def keep_subprocess_alive(self) -> None:
        """Called twice a second."""
        super().keep_subprocess_alive()
        # Asking a process whether it is alive also buries it.
        self._leaving = [worker for worker in self._leaving if worker.process.is_alive()]
        if self._replacement is None:
            if not self._leaving and time.monotonic() >= self._not_before and self._largest_bytes() > self._worker_memory_max_bytes:
                self._replacement = Process(self.config, self.sockets)
                self._replacement.start()
        elif not self._replacement.process.is_alive():
            _log.error("The replacement of a worker did not start; it is tried again in %d s.", _AGAIN_SECONDS)
            self._replacement, self._not_before = None, time.monotonic() + _AGAIN_SECONDS
        elif self._replacement.is_ready(_PING_SECONDS):
            grown = max(self.processes, key=_held_bytes)
            _log.info("Worker [%s] holds %d bytes; [%s] takes its place.", grown.pid, _held_bytes(grown), self._replacement.pid)
            self.processes[self.processes.index(grown)] = self._replacement
            self._replacement = None
            grown.terminate()
            self._leaving.append(grown)

    def terminate_all(self) -> None:
        """Have everybody finish; new connections are refused as soon as the last worker has heard of it."""
        for each in self.sockets:
            each.close()
        super().terminate_all()
        if self._replacement is not None:
            self._replacement.terminate()
            self._leaving.append(self._replacement)

    def join_all(self) -> None:
        """Wait for everybody."""
        super().join_all()
        for worker in self._leaving:
            worker.join()

    def _largest_bytes(self) -> int:
        return max(map(_held_bytes, self.processes))


def _held_bytes(worker: Process) -> int:
    """Anonymous memory of a worker; 0 where it has just ended."""
    with contextlib.suppress(OSError):
        found = re.search(r"^RssAnon:\s*(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return 0


def _parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs LiteLLM with the config.yaml that CONFIG_FILE_PATH names.")
    parser.add_argument("--host", required=True, help="address to listen on")
    parser.add_argument("--port", required=True, type=int, help="port to listen on")
    parser.add_argument("--workers", required=True, type=int, help="processes that serve")
    parser.add_argument("--worker-memory-max-bytes", required=True, type=int, help="anonymous memory at which a worker is replaced")
    parser.add_argument("--worker-healthcheck-seconds", required=True, type=int, help="how long a worker may be silent before it is killed")
    parser.add_argument("--keepalive-seconds", required=True, type=int, help="how long an idle connection is kept")
    parser.add_argument("--log-config", required=True, help="configuration of Python's logging")
    return parser.parse_args(arguments)


def main() -> None:
    """See the module."""
    options = _parse_arguments()
    metrics = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    # It need not be there; what cannot be removed, mkdir tells.
    shutil.rmtree(metrics, ignore_errors=True)
    metrics.mkdir(parents=True)
    config = Settings(
        "citadel_gateway_app:app",
        host=options.host,
        port=options.port,
        workers=options.workers,
        loop="uvloop",
        http="citadel_gateway_server:Connection",
        timeout_keep_alive=options.keepalive_seconds,
        timeout_worker_healthcheck=options.worker_healthcheck_seconds,
        log_config=options.log_config,
    )
    Workers(config, [config.bind_socket()], worker_memory_max_bytes=options.worker_memory_max_bytes).run()


if __name__ == "__main__":
    main()
