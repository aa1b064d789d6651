"""The breaker of each model under load: seconds until it opens and closes, what clients saw meanwhile, and that no generation ran twice.

What vLLM can be made to do is done to vLLM; what it cannot be told to do comes from mock_model.py, which the edge is told to take for the
model's port, while the supervisor goes on saying of the real one that it generates. The rows go to build/breaker.json and build/breaker.md.

CITADEL_BREAKER names some of the faults, with commas between; all are tried without it.
"""

from __future__ import annotations

import collections
import csv
import io
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults.test_faults import API_SERVER, ENGINE, process, send, short_memory  # noqa: F401  # a fixture for the whole module
from lab_host import ask, until
from rows import keep_row
from steady_load import SteadyLoad
from testinfra.host import Host

TARGET = "hermes-2"
# As in the faults: small cores must have time for a service that starts.
EVERY_SECONDS = 3.0
OPEN_SECONDS = 150
CLOSE_SECONDS = 900
STATE = "http://127.0.0.1:8406"
MOCK_PORT, NOBODYS_PORT = 11990, 11991
MOCK = Path(__file__).with_name("mock_model.py")


@contextmanager
def in_the_place_of_the_model(server: Host, port: int, *arguments: str) -> Iterator[None]:
    """Have the edge send to `port` what is for the model, to mock_model.py where it is told how to fail."""
    own = next(line.split()[18] for line in edge_says(server, f"show servers state model_{TARGET}").splitlines() if " model " in line)
    if arguments:
        server.check_output("printf %%s %s > /run/lab-mock-model.py", MOCK.read_text())
        run = f"systemd-run --quiet --collect --unit=lab-mock-model python3 /run/lab-mock-model.py {port} {' '.join(arguments)}"
        server.check_output(f"{run} && until curl --silent 127.0.0.1:{port} > /dev/null; do sleep 0.1; done")
    edge_says(server, f"set server model_{TARGET}/model addr 127.0.0.1 port {port}")
    try:
        yield
    finally:
        edge_says(server, f"set server model_{TARGET}/model addr 127.0.0.1 port {own}")
        server.run("systemctl stop lab-mock-model; rm -f /run/lab-mock-model.py")


def edge_says(server: Host, command: str) -> str:
    """Ask HAProxy by its runtime socket."""
    script = (
        "import socket, sys\n"
        "with socket.socket(socket.AF_UNIX) as edge:\n"
        "    edge.connect('/run/citadel-edge/admin.sock')\n"
        "    edge.sendall(sys.argv[1].encode() + b'\\n')\n"
        "    print(b''.join(iter(lambda: edge.recv(65536), b'')).decode())\n"
    )
    return server.check_output("python3 -c %s %s", script, command)


@contextmanager
def signalled(server: Host, title: str) -> Iterator[None]:
    """Stop a process of the model for good; its supervisor has to find out, and to start it again."""
    send("KILL" if title == "killed" else "STOP", API_SERVER if title in {"killed", API_SERVER} else title)(server, TARGET)
    yield


@contextmanager
def stopping_and_going(server: Host, title: str, seconds: float) -> Iterator[None]:
    """Stop a process of the model for some seconds, let it go on for as many, and so on."""
    pid, end = process(server, TARGET, title), threading.Event()

    def flap() -> None:
        for signal in itertools.cycle(("STOP", "CONT")):
            server.run(f"kill -s {signal} {pid}")
            if end.wait(seconds):
                server.run(f"kill -s CONT {pid}")
                return

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@dataclass(frozen=True)
class Fault:
    """One way to fail. `begin` is left where the cause is taken away, after `lasts_seconds`, or when the breaker has opened.

    `times`: how often the breaker opens, at least and at most.
    """

    begin: Callable[[Host], Any]
    lasts_seconds: float | None = None
    times: tuple[int, int] = (1, 1)


FAULTS = {
    "refuses: API server killed": Fault(lambda server: signalled(server, "killed")),
    "refuses although called able": Fault(lambda server: in_the_place_of_the_model(server, NOBODYS_PORT), 30),
    "hangs: API server stopped (SIGSTOP)": Fault(lambda server: signalled(server, API_SERVER)),
    "only generation hangs: engine stopped (SIGSTOP)": Fault(lambda server: signalled(server, ENGINE)),
    "500s (mock)": Fault(lambda server: in_the_place_of_the_model(server, MOCK_PORT, "500"), 40),
    "slow: 10 s for each answer (mock)": Fault(lambda server: in_the_place_of_the_model(server, MOCK_PORT, "slow", "10"), 40, (0, 0)),
    "flaps: 3 s of answers, 3 s of 500s (mock)": Fault(
        lambda server: in_the_place_of_the_model(server, MOCK_PORT, "flap", "3"), 60, (0, 4)
    ),
    "flaps: engine stopped for 3 s, going for 3 s": Fault(lambda server: stopping_and_going(server, ENGINE, 3), 40, (0, 0)),
}


# --- what is seen ---


def states(server: Host, gateway_port: int) -> set[str]:
    """How the breaker is by /health, by the state in one query, and by the metrics."""
    page = server.check_output(f"curl --silent --fail {STATE}/metrics")
    prefix = f'citadel_edge_breaker_state{{model="{TARGET}",state="'
    (measured,) = [line.split('"')[3] for line in page.splitlines() if line.startswith(prefix) and line.endswith(" 1")]
    state = json.loads(server.check_output(f"curl --silent --fail {STATE}/state"))["models"][TARGET]["breaker"]
    return {breaker(gateway_port), state, measured}


def breaker(gateway_port: int) -> str:
    return str(ask(gateway_port, "/health", timeout=10).json()["breakers"][TARGET])


def good_answers(server: Host) -> int:
    """Count the good answers of all models together, by the edge's counters. What a supervisor asks does not go through it."""
    backends = csv.DictReader(io.StringIO(edge_says(server, "show stat").removeprefix("# ")))
    return sum(int(row["hrsp_2xx"]) for row in backends if row["svname"] == "BACKEND" and row["pxname"].startswith("model_"))


def looks(server: Host, since: str) -> int:
    """Count the good answers that are no generation, LiteLLM's few looks at a model's list, by the edge's log.

    Not the generations themselves: HAProxy leaves a line out rather than wait for a journal that is behind
    (haproxy_process_dropped_logs_total).
    """
    lines = server.check_output("journalctl --unit=haproxy --since=%s --output=cat --no-pager", since).splitlines()
    requests = [json.loads(line) for line in lines if line.startswith("{")]
    return sum(entry["method"] == "GET" and entry["status"] == 200 and entry["backend"].startswith("model_") for entry in requests)


def generations(server: Host, before: int, since: str) -> int:
    """Count the generations of all models together, since the moment `since`, at which there were `before` good answers."""
    return good_answers(server) - before - looks(server, since)


class Watch(threading.Thread):
    """Notes each change of the breaker, with its time, until it is stopped."""

    def __init__(self, gateway_port: int) -> None:
        super().__init__(daemon=True)
        self.changes: list[tuple[float, str]] = []
        self._port, self._end = gateway_port, threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.1):
            seen = breaker(self._port)
            if not self.changes or self.changes[-1][1] != seen:
                self.changes.append((time.monotonic(), seen))

    def stop(self) -> None:
        self._end.set()
        self.join()

    def first(self, state: str, after: float) -> float | None:
        return next((at - after for at, seen in self.changes if seen == state and at >= after), None)


def chosen() -> list[str]:
    some = os.environ.get("CITADEL_BREAKER")
    return [name for name in FAULTS if some is None or any(name.startswith(word) for word in some.split(","))]


@pytest.mark.parametrize("what", chosen())
def test_fault_under_load(server: Host, plan: dict[str, Any], what: str) -> None:
    fault, port = FAULTS[what], plan["gateway"]["port"]
    assert until(lambda: ask(port, "/health").status == 200, CLOSE_SECONDS) is not None
    before, since = good_answers(server), server.check_output("date +@%s.%N")
    ways: list[tuple[int, str | None]] = [(port, TARGET)] * 3 + [(port, None), (port, "openchat-3.5")]
    watch = Watch(port)
    with SteadyLoad(ways, every_seconds=EVERY_SECONDS, seconds=OPEN_SECONDS + CLOSE_SECONDS) as load:
        assert until(lambda: all(client.outcomes for client in load.clients), OPEN_SECONDS) is not None
        watch.start()
        try:
            with fault.begin(server):
                began = time.monotonic()
                if min(fault.times):
                    assert until(lambda: breaker(port) != "closed", OPEN_SECONDS) is not None, "the breaker opens"
                    until(lambda: len(states(server, port)) == 1, 10)
                    assert states(server, port) <= {"open", "half-open"}
                until(lambda: time.monotonic() - began >= (fault.lasts_seconds or 0.0), OPEN_SECONDS)
            ended = time.monotonic()
            assert until(lambda: ask(port, "/health").status == 200, CLOSE_SECONDS) is not None, "the breaker closes"
            counts = [len(client.outcomes) + 2 for client in load.clients]
            until(lambda: all(len(client.outcomes) >= count for client, count in zip(load.clients, counts, strict=True)), OPEN_SECONDS)
        finally:
            watch.stop()
    outcomes = load.outcomes()
    own = [outcome for outcome in load.outcomes(models=[TARGET]) if outcome.at + outcome.seconds >= began]
    good = sum(status == 200 for outcome in outcomes for status in outcome.statuses)
    until(lambda: generations(server, before, since) == good, 10)
    opened, closed = watch.first("open", began), watch.first("closed", ended)
    by_others = sum(outcome.answered_by not in {TARGET, "mock-model"} for outcome in own)
    row = {
        "fault": what,
        "opens after s": "-" if opened is None else f"{opened:.1f}",
        "statuses of its clients' requests": ", ".join(
            f"{count} x {'-'.join(map(str, statuses))}" for statuses, count in collections.Counter(item.statuses for item in own).items()
        ),
        "of these by other models": by_others,
        "p50 s": f"{statistics.median(outcome.seconds for outcome in own):.1f}",
        "longest s": f"{max(outcome.seconds for outcome in own):.1f}",
        "share answered": f"{100 * sum(not outcome.lost for outcome in own) / len(own):.0f} %",
        "closes after s": "-" if opened is None else f"{closed or 0.0:.1f}",
        "times opened": sum(one == "closed" != other for (_, one), (_, other) in itertools.pairwise(watch.changes)),
        "generations run twice": generations(server, before, since) - good,
    }
    keep_row("breaker", row)
    assert [outcome for outcome in outcomes if outcome.statuses != (200,)] == [], "nobody needs to try again"
    assert row["generations run twice"] == 0
    assert fault.times[0] <= row["times opened"] <= fault.times[1]
