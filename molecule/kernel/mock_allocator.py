"""Stands in for vLLM on the virtual machine: two processes, as vLLM has (API server and worker), that do what a test asks them to.

``mock_allocator.py`` is the service: it says READY=1 and serves two sockets in its runtime folder, main.sock and worker.sock.
``mock_allocator.py ask SOCKET WORD…`` is the client: it prints the answer, or ``null`` where the asked process ended over it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Longer than an emulated processor needs under load.
CONNECT_SECONDS = 10
ANSWER_SECONDS = 300
PING_SECONDS = 10

held: list[bytearray] = []


def hold(mebibytes: str) -> object:
    """Take memory and write into every page of it."""
    block = bytearray(int(mebibytes) << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    held.append(block)
    return sum(len(part) for part in held) >> 20


def affinity(cpus: str) -> object:
    """Ask the kernel for CPUs; what it says, and what the process has now."""
    said = error_of(lambda: os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")}))
    return {"error": said, "cpus": sorted(os.sched_getaffinity(0))}


def connect(address: str, port: str) -> object:
    """Connect; the name of the error, or null."""
    return error_of(lambda: socket.create_connection((address, int(port)), timeout=CONNECT_SECONDS).close())


def fork(count: str) -> object:
    """Fork children that wait, until the kernel refuses."""
    for number in range(int(count)):
        if said := error_of(lambda: child(signal.pause)):
            return {"children": number, "error": said}
    return {"children": int(count), "error": None}


def burn(count: str, seconds: str) -> object:
    """Use as much CPU as children get."""

    def work() -> None:
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            pass

    return [child(work) for _ in range(int(count))]


def outlive() -> object:
    """Leave a child that does not want to end: a session of its own, deaf to every signal that can be ignored."""

    def work() -> None:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(60)

    return child(work)


COMMANDS = {command.__name__: command for command in (hold, affinity, connect, fork, burn, outlive)}


def child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def error_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except TimeoutError:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return None


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


def serve(listener: socket.socket, ping: Callable[[], None]) -> None:
    listener.settimeout(PING_SECONDS)
    while True:
        ping()
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection, connection.makefile("rw") as stream:
            name, *words = stream.readline().split()
            print(json.dumps(COMMANDS[name](*words)), file=stream)


def listen(path: Path) -> socket.socket:
    # The runtime folder may outlive a restart.
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def main() -> None:
    if sys.argv[1:2] == ["ask"]:
        ask(sys.argv[2], sys.argv[3:])
        return
    folder = Path(os.environ["RUNTIME_DIRECTORY"])
    listeners = [listen(folder / name) for name in ("main.sock", "worker.sock")]
    # As a service that ends when it is asked to; nobody waits for children, the kernel buries them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    child(lambda: serve(listeners[1], lambda: None))
    notify("READY=1")
    serve(listeners[0], lambda: notify("WATCHDOG=1"))


def ask(path: str, words: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(f"{' '.join(words)}\n".encode())
        connection.settimeout(ANSWER_SECONDS)
        try:
            # A line, not all there is: children of the asked process hold the connection open.
            print(connection.makefile().readline() or "null")
        except ConnectionResetError:
            print("null")


if __name__ == "__main__":
    main()
