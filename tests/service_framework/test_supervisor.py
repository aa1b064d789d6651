"""The supervisor with a mock of vLLM (mock_engine.py): faults that the real one does not produce on command, and seconds made short."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from citadel_supervise import EX_CONFIG, STATES
from ports import free_port
from supervised import PATIENCE_SECONDS, SUPERVISOR, Supervised, state_of

MOCK = Path(__file__).with_name("mock_engine.py")
SHARDS = 12
READY = {"engine": True, "worker": True, "listen": True}

# What the tests shorten; the rest is as on a host.
QUICK = {"sample-seconds": 0.2, "idle-seconds": 1, "busy-seconds": 0.5, "asleep-seconds": 1.5, "stall-timeout-seconds": 3}


@dataclass
class Mock:
    """A mock engine under the real supervisor; `options` are the supervisor's, over QUICK."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.port, self.state_port = free_port(), free_port()
        self.orders = self.folder / "orders"
        weights, runtime = self.folder / "weights", self.folder / "runtime"
        weights.mkdir(exist_ok=True)
        runtime.mkdir(exist_ok=True)
        for number in range(1, SHARDS + 1):
            (weights / f"model-{number}-of-{SHARDS}.safetensors").write_bytes(b"0" * 4096)
        options = {
            "name": "mock",
            "port": self.port,
            "state-port": self.state_port,
            "weights": weights,
            "start-timeout-seconds": 60,
            **QUICK,
            **self.options,
        }
        command = ["/usr/bin/python3", "-I", str(SUPERVISOR), "model", *(f"--{name}={value}" for name, value in options.items())]
        self.supervised = Supervised(
            [*command, "--", sys.executable, str(MOCK), str(self.port), str(weights)],
            self.folder / "output",
            os.environ | {"MOCK_ORDERS": str(self.orders), "RUNTIME_DIRECTORY": str(runtime)} | self.environment,
        ).__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.order(completions=200)
        self.supervised.__exit__()

    def order(self, **orders: Any) -> None:  # noqa: ANN401  # what an order holds depends on it
        with self.orders.open("a", encoding="utf-8") as file:
            file.write(json.dumps(orders) + "\n")

    def until_status(self, beginning: str) -> float:
        return self.supervised.until(
            lambda: any(status.startswith(beginning) for status in self.supervised.statuses), what=f"status {beginning}"
        )

    def until_state(self, state: str) -> None:
        self.supervised.until(lambda: state_of(self.state_port)[1].get("state") == state, what=f"state {state}")

    def asked(self) -> int:
        """How many tokens the engine was asked for."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/asked", timeout=5) as answer:
            return int(answer.read())


@pytest.fixture
def mock(tmp_path: Path) -> Iterator[Mock]:
    with Mock(tmp_path) as running:
        yield running


@pytest.fixture
def ready(mock: Mock) -> Mock:
    mock.order(**READY)
    mock.supervised.until_ready()
    return mock


# --- readiness ---


def test_the_status_says_what_it_waits_for_and_ready_means_a_token(mock: Mock) -> None:
    mock.until_status("starting the API server since ")
    assert state_of(mock.state_port)[0] == 503
    mock.order(engine=True)
    mock.until_status("starting the engine since ")
    mock.order(worker=True)
    mock.until_status("starting the workers since ")
    for shard in (1, 3, SHARDS):
        mock.order(shard=shard)
        mock.until_status(f"loading weights {shard}/{SHARDS} since ")
    mock.order(shard=0)
    mock.until_status("warming up since ")
    assert ", given up at " in mock.supervised.status
    status, state = state_of(mock.state_port)
    assert (status, state["state"]) == (503, "process")

    mock.order(listen=True, health=503)
    mock.order(health=200, completions=0)
    mock.until_status("waiting for its first answer since ")
    status, state = state_of(mock.state_port)
    assert (status, state["state"]) == (503, "loaded")
    assert not mock.supervised.ready

    mock.order(completions=500)
    mock.until_status("trying again after a refusal (/v1/completions: 500 ")
    assert not mock.supervised.ready

    mock.order(completions=200)
    mock.supervised.until_ready()
    assert mock.supervised.status.startswith("generating since ")
    status, state = state_of(mock.state_port)
    assert (status, state["state"]) == (200, "generating")


def test_the_state_is_a_metric(ready: Mock) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{ready.state_port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        lines = answer.read().decode().splitlines()
    assert [f'citadel_service_state{{state="{state}"}} {int(state == "generating")}' for state in STATES] == [
        line for line in lines if line.startswith("citadel_service_state{")
    ]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{ready.state_port}/", timeout=5)


def test_what_systemd_tells_the_main_process_stays_with_it(ready: Mock) -> None:
    assert "mock: started" in ready.supervised.written()
    assert "NOTIFY_SOCKET" not in ready.supervised.written()


# --- ends that nobody asked for ---


@pytest.mark.parametrize("when", ["starting", "ready"])
@pytest.mark.parametrize("title", ["VLLM::Worker", "VLLM::EngineCore", sys.executable])
def test_a_process_that_is_killed_ends_the_unit_within_five_seconds(mock: Mock, title: str, when: str) -> None:
    mock.order(**READY, health=503 if when == "starting" else 200)
    if when == "starting":
        mock.until_status("starting the workers since ")
    else:
        mock.supervised.until_ready()
    mock.supervised.processes()
    mock.supervised.kill(title, signal.SIGKILL)
    killed = mock.supervised.seconds
    assert mock.supervised.until_ended() == 1
    assert mock.supervised.seconds - killed < 5
    assert mock.supervised.status.startswith("failed at ")
    doing = "generating" if when == "ready" else "starting the workers"
    assert f" while {doing}: {'its main process was killed by SIGKILL' if title == sys.executable else title}" in mock.supervised.status
    mock.supervised.until(lambda: mock.supervised.processes() == [], what="nothing is left")
    assert mock.supervised.ready is (when == "ready")
    assert mock.supervised.status.removeprefix("failed") in mock.supervised.written(), "the journal has it, too"


def test_what_a_worker_has_forked_may_end(mock: Mock) -> None:
    def workers() -> int:
        return sum(process.title == "VLLM::Worker" for process in mock.supervised.processes())

    mock.order(**READY, health=503, fork=True)
    mock.supervised.until(lambda: workers() == 2, what="it has forked")
    looked_at = mock.supervised.seconds
    mock.until_status("starting the workers since ")
    mock.supervised.until(lambda: mock.supervised.seconds - looked_at > 2, what="the supervisor has looked a few times")
    mock.order(fork=False)
    mock.supervised.until(lambda: workers() == 1, what="it has ended")
    mock.order(health=200)
    mock.supervised.until_ready()


def test_a_dying_engine_may_say_why(ready: Mock) -> None:
    ready.supervised.kill("VLLM::EngineCore", signal.SIGKILL)
    ready.until_status("failed at ")
    assert state_of(ready.state_port)[0] in {0, 503}, "the edge knows before the unit has ended"
    ready.order(exit=0)
    assert ready.supervised.until_ended() == 1, "a failure, although vLLM ends with 0"


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (1, 1), (EX_CONFIG, EX_CONFIG)])
def test_an_end_of_its_own_is_a_failure_whatever_it_says(mock: Mock, status: int, expected: int) -> None:
    mock.order(exit=status)
    assert mock.supervised.until_ended() == expected
    assert f" while starting the API server: its main process ended with status {status}" in mock.supervised.status


def test_a_credential_becomes_environment_and_shows_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_text("SOME_KEY sk-of-the-test\n")
    with Mock(tmp_path, {"credential": "gateway.key"}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) as mock:
        mock.until_status("starting the API server since ")
        process = mock.supervised.main_process()
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        assert b"SOME_KEY=sk-of-the-test" in environment
        assert not [entry for entry in environment if entry.startswith(b"CREDENTIALS_DIRECTORY=")]
        for pid in (process, mock.supervised.process.pid):
            assert b"sk-of-the-test" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"sk-of-the-test" not in Path(f"/proc/{mock.supervised.process.pid}/environ").read_bytes()
        assert "sk-of-the-test" not in mock.supervised.written() + "".join(mock.supervised.read())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        ("", "it must hold lines"),
        ("sk-of-the-test\n", "it must hold lines"),
        ("A b c\n", "it must hold lines"),
    ],
)
def test_a_credential_that_is_none_is_named_and_never_shown(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "gateway.key").write_text(content)
    with Mock(tmp_path, {"credential": "gateway.key"}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) as mock:
        assert mock.supervised.until_ended() == EX_CONFIG
        assert f"while starting: credential gateway.key: {reason}" in mock.supervised.status
        assert "sk-of-the-test" not in mock.supervised.written() + mock.supervised.status


def test_a_program_that_is_missing_is_named_and_not_tried_again(tmp_path: Path) -> None:
    command = ["/usr/bin/python3", "-I", SUPERVISOR, "http", "--name=x", "--port=1", "--ready-path=/", "--alive-path=/"]
    options = ["--start-timeout-seconds=60", "--stall-timeout-seconds=60", "--", "/nowhere/python"]
    with Supervised([*map(str, command), *options], tmp_path / "output") as supervised:
        assert supervised.until_ended() == EX_CONFIG
        assert supervised.status.endswith("while starting: /nowhere/python cannot be run: No such file or directory")
        assert "Traceback" not in supervised.written()


def test_a_state_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with Mock(tmp_path, {"state-port": port}) as mock:
            assert mock.supervised.until_ended() == 1
            assert mock.supervised.status.endswith(f"port {port} on 127.0.0.1 for its state: Address already in use")
            assert "mock:" not in mock.supervised.written(), "the service was not started"


# --- liveness ---


def hung(mock: Mock, *, seconds: float = PATIENCE_SECONDS) -> float:
    """Wait until the watchdog is triggered and all is gone; the seconds that it took."""
    took = mock.supervised.until(
        lambda: "WATCHDOG=trigger" in mock.supervised.read(), seconds=seconds, what="the supervisor calls for the watchdog"
    )
    assert mock.supervised.status.startswith("hung since ")
    assert mock.supervised.until_ended() == 1
    mock.supervised.until(lambda: mock.supervised.processes() == [], what="nothing is left")
    return took


def test_an_idle_service_is_asked_for_a_token_now_and_then_and_stays(ready: Mock) -> None:
    ready.supervised.processes()
    ready.supervised.until(lambda: ready.asked() >= 5, what="four questions after the first")
    assert state_of(ready.state_port)[0] == 200
    assert "WATCHDOG=1" in ready.supervised.read()


def test_a_busy_service_is_left_alone(ready: Mock) -> None:
    # Full: whatever it is asked waits for longer than all limits together.
    ready.order(running=9, moving=True, completions=0)
    with pytest.raises(pytest.fail.Exception):
        hung(ready, seconds=QUICK["stall-timeout-seconds"] + QUICK["busy-seconds"] + 3)
    assert state_of(ready.state_port)[0] == 200


def test_a_worker_that_is_stopped_is_found_and_named_long_before_a_step_is_too_long(tmp_path: Path) -> None:
    with Mock(tmp_path, {"stall-timeout-seconds": 120}) as mock:
        mock.order(**READY)
        mock.supervised.until_ready()
        mock.order(running=1, completions=0)
        mock.supervised.processes()
        mock.supervised.kill("VLLM::Worker", signal.SIGSTOP)
        assert hung(mock) < 4, "not as long as a step may take"
        assert "requests running: 1; its workers asleep" in mock.supervised.status
        assert "VLLM::Worker: state T" in mock.supervised.written()


def test_who_sleeps_over_its_work_is_sent_nobody_until_it_goes_on(tmp_path: Path) -> None:
    with Mock(tmp_path, {"suspect-seconds": 0.5, "asleep-seconds": 60, "stall-timeout-seconds": 60}) as mock:
        mock.order(**READY)
        mock.supervised.until_ready()
        mock.order(running=1, completions=0)
        mock.supervised.processes()
        mock.supervised.kill("VLLM::Worker", signal.SIGSTOP)
        mock.until_state("hung")
        assert state_of(mock.state_port)[0] == 503
        assert mock.supervised.status.startswith("asleep over an answer that it owes since ")
        mock.supervised.kill("VLLM::Worker", signal.SIGCONT)
        mock.order(running=1, moving=True)
        mock.until_state("generating")
        assert mock.supervised.status.startswith("generating since ")
        assert "given up" not in mock.supervised.status


def test_what_the_edge_says_of_its_requests_has_it_look_sooner(tmp_path: Path) -> None:
    with Mock(tmp_path, {"idle-seconds": 60}) as mock:
        mock.order(**READY)
        mock.supervised.until_ready()
        before = mock.asked()
        told = {"X-Haproxy-Server-State": "UP 2/3; name=model_m/model; node=a; weight=1/1; scur=1/1; qcur=0"}

        def looked() -> bool:
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{mock.state_port}/state", headers=told), timeout=5):
                return mock.asked() > before

        mock.supervised.until(looked, what="it is given work long before it counts as idle")


def test_a_long_step_has_until_the_stall_timeout(ready: Mock) -> None:
    ready.order(running=1, completions=0, busy=True)
    assert hung(ready) >= QUICK["stall-timeout-seconds"]
    assert "its workers using the CPU" in ready.supervised.status


def test_an_engine_that_refuses_everything_is_found(ready: Mock) -> None:
    ready.order(completions=500)
    hung(ready, seconds=10)


def test_a_server_that_does_not_answer_is_found(ready: Mock) -> None:
    ready.supervised.processes()
    ready.supervised.kill(sys.executable, signal.SIGSTOP)
    hung(ready)
    assert re.search(r"it has not answered for \d+ s \(/metrics: timed out\), ", ready.supervised.status)


# --- stop ---


def test_the_edge_hears_of_a_stop_before_the_service_does(tmp_path: Path) -> None:
    with Mock(tmp_path, {"stop-notice-seconds": 8, "drain-seconds": 5}) as mock:
        mock.order(**READY, drain=1)
        mock.supervised.until_ready()
        mock.supervised.process.send_signal(signal.SIGINT)
        mock.until_state("process")
        assert "mock: SIGINT" not in mock.supervised.written(), "so that it still answers what is on its way"
        mock.supervised.until(lambda: "mock: SIGINT" in mock.supervised.written(), what="the signal is handed on")
        assert state_of(mock.state_port)[1]["detail"] == "stopping"
        assert mock.supervised.until_ended() == 0
        assert any("STOPPING=1" in message.splitlines() for message in mock.supervised.read())
        assert mock.supervised.processes() == []


def test_a_stop_during_the_start_needs_neither_notice_nor_drain(tmp_path: Path) -> None:
    with Mock(tmp_path, {"stop-notice-seconds": 60, "drain-seconds": 60}) as mock:
        mock.order(drain=60)
        mock.until_status("starting the API server since ")
        mock.supervised.until(lambda: "mock: started" in mock.supervised.written(), what="the mock runs")
        mock.supervised.process.terminate()
        assert mock.supervised.until_ended() == 0
        assert "mock: SIGTERM" in mock.supervised.written()


def test_a_drain_is_bounded(tmp_path: Path) -> None:
    with Mock(tmp_path, {"drain-seconds": 1}) as mock:
        mock.order(**READY, drain=60)
        mock.supervised.until_ready()
        mock.supervised.processes()
        mock.supervised.process.send_signal(signal.SIGINT)
        began = mock.supervised.seconds
        assert mock.supervised.until_ended() == 0
        assert 6 <= mock.supervised.seconds - began < 9, "the drain and five seconds"
        assert "mock was killed" in mock.supervised.written()
        mock.supervised.until(lambda: mock.supervised.processes() == [], what="nothing is left")


# --- failures in a row; each Mock of a test is the next start of one instance, as systemd makes it: the folder is what it keeps ---

WAITING = {"restart-seconds": 1, "restart-longest-seconds": 3}
AT_ONCE = {"restart-seconds": 60}
"""A start that waits for anything does not come to its end within the test."""


def fail(folder: Path, **options: Any) -> tuple[int, list[tuple[float, str]]]:  # noqa: ANN401  # as the supervisor's
    """Start it and let it end by itself; its exit status and what it said when."""
    with Mock(folder, options) as mock:
        mock.order(exit=1)
        return mock.supervised.until_ended(), mock.supervised.messages


def seconds_waited(messages: list[tuple[float, str]]) -> float:
    waiting = [at for at, message in messages if message.startswith("STATUS=waiting ")]
    (start,) = [at for at, message in messages if message.startswith("STATUS=starting since ")]
    return start - waiting[0]


def started(mock: Mock) -> int:
    """How often the service has been started in this folder."""
    return mock.supervised.written().count("mock: started")


def test_the_wait_is_twice_as_long_after_each_failure_in_a_row_and_bounded_and_at_last_it_stays_failed(tmp_path: Path) -> None:
    statuses, said = zip(*(fail(tmp_path, **WAITING) for _ in range(5)), strict=True)
    assert statuses == (1, 1, 1, 1, EX_CONFIG)
    assert not any(message.startswith("STATUS=waiting ") for _, message in said[0])
    for messages, seconds in zip(said[1:], (1, 2, 3, 3), strict=True):
        assert any(message.startswith(f"STATUS=waiting {seconds} s after ") for _, message in messages)
        assert seconds_waited(messages) > seconds - 0.5, "half a second for the test to hear of it"
    waiting = next(message for _, message in said[2] if "waiting" in message)
    assert waiting.startswith("STATUS=waiting 2 s after 2 failures in a row; the last: failed at ")
    assert waiting.endswith(" while starting the API server: its main process ended with status 1")
    assert f"EXTEND_TIMEOUT_USEC={(2 + 60 + 10) * 10**6}" in [message for _, message in said[2]], "the wait is no part of TimeoutStartSec"
    assert not any("WATCHDOG=1" in message for messages in said for _, message in messages), (
        "it would arm the watchdog before the start is over"
    )
    last = said[4][-1][1]
    again = "start it again with systemctl start citadel-llm@mock"
    assert last.startswith(f"STATUS=given up after 5 failures in a row: {again}; the last: failed at ")
    assert last.endswith("its main process ended with status 1")


def test_a_stop_ends_the_wait_and_forgets(tmp_path: Path) -> None:
    fail(tmp_path)
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.until_status("waiting 60 s after 1 failure in a row; the last: failed at ")
        status, state = state_of(mock.state_port)
        assert (status, state["state"]) == (503, "process")
        mock.supervised.process.send_signal(signal.SIGINT)
        assert mock.supervised.until_ended() == 0
        assert any("STOPPING=1" in message.splitlines() for message in mock.supervised.read())
        assert started(mock) == 1
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.order(exit=None, **READY)
        mock.supervised.until_ready()


def test_a_stop_of_a_service_that_runs_is_no_failure(tmp_path: Path) -> None:
    for _ in range(2):
        with Mock(tmp_path, AT_ONCE) as mock:
            mock.order(**READY)
            mock.supervised.until_ready()
            mock.supervised.process.send_signal(signal.SIGINT)
            assert mock.supervised.until_ended() == 0


def test_the_death_of_the_supervisor_is_a_failure_too(tmp_path: Path) -> None:
    options = {**WAITING, "restart-failures": 2}
    killed = "it was killed, perhaps for its memory: see journalctl -u citadel-llm@mock"
    for _ in range(2):
        with Mock(tmp_path, options) as mock:
            mock.until_status("starting the API server since ")
            said = mock.supervised.statuses
            mock.supervised.processes()
            mock.supervised.process.kill()
            mock.supervised.until_ended()
    assert said[0] == f"waiting 1 s after 1 failure in a row; the last: {killed}"
    with Mock(tmp_path, options) as mock:
        assert mock.supervised.until_ended() == EX_CONFIG
        assert mock.supervised.status.startswith("given up after 2 failures in a row: ")
        assert mock.supervised.status.endswith(f"; the last: {killed}")


def test_a_death_that_systemd_answers_with_a_stop_is_a_failure(tmp_path: Path) -> None:
    """As it does for memory (OOMPolicy=stop): the signal is there before the supervisor has seen the death."""
    with Mock(tmp_path) as mock:
        mock.order(**READY)
        mock.supervised.until_ready()
        mock.supervised.processes()
        mock.supervised.process.send_signal(signal.SIGSTOP)
        mock.supervised.kill("VLLM::Worker", signal.SIGKILL)
        mock.supervised.process.send_signal(signal.SIGINT)
        mock.supervised.process.send_signal(signal.SIGCONT)
        assert mock.supervised.until_ended() == 0
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.until_status("waiting 60 s after 1 failure in a row; the last: it was killed, perhaps for its memory")


@pytest.mark.parametrize(("steady_seconds", "counted"), [(0.5, "1 failure"), (60, "2 failures")])
def test_who_was_ready_for_a_while_begins_to_count_anew(tmp_path: Path, steady_seconds: float, counted: str) -> None:
    fail(tmp_path)
    with Mock(tmp_path, {"restart-seconds": 0.1, "restart-steady-seconds": steady_seconds}) as mock:
        mock.order(exit=None, **READY)
        mock.supervised.until_ready()
        enough = mock.supervised.seconds + 2
        mock.supervised.until(lambda: mock.supervised.seconds > enough, what="it has been ready for two seconds")
        mock.supervised.processes()
        mock.supervised.kill("VLLM::Worker", signal.SIGKILL)
        assert mock.supervised.until_ended() == 1
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.until_status("waiting ")
        assert f" s after {counted} in a row; the last: failed at " in mock.supervised.status


def test_a_hang_is_a_failure(tmp_path: Path) -> None:
    with Mock(tmp_path) as mock:
        mock.order(**READY)
        mock.supervised.until_ready()
        mock.order(completions=500)
        hung(mock)
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.until_status("waiting 60 s after 1 failure in a row; the last: hung since ")


def test_a_start_that_takes_too_long_is_a_failure_and_no_stop(tmp_path: Path) -> None:
    with Mock(tmp_path, {"start-timeout-seconds": 1}) as mock:
        assert mock.supervised.until_ended() == 1
        assert mock.supervised.status.endswith(" while starting the API server: it was not ready within 1 s")
        # Before systemd ends it, without a reason and just as if it had been stopped.
        assert f"EXTEND_TIMEOUT_USEC={(1 + 10) * 10**6}" in mock.supervised.read()
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.until_status("waiting 60 s after 1 failure in a row; the last: failed at ")


def test_what_cannot_be_counted_keeps_nothing_from_running(tmp_path: Path) -> None:
    fail(tmp_path)
    (tmp_path / "runtime" / "failures.json").write_text('{"count": ', encoding="utf-8")
    (tmp_path / "runtime" / "failures.unfinished").mkdir()
    with Mock(tmp_path, AT_ONCE) as mock:
        mock.order(exit=None, **READY)
        mock.supervised.until_ready()
        assert "failures.json cannot be written, so that failures are not counted: Is a directory" in mock.supervised.written()
        assert "Traceback" not in mock.supervised.written()


# --- other services ---

WEB = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404 if self.path == "/alive" and os.path.exists(sys.argv[2]) else 200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_another_service_is_ready_and_alive_by_its_own_word(tmp_path: Path) -> None:
    port, ill = free_port(), tmp_path / "ill"
    options = {"name": "web", "port": port, "start-timeout-seconds": 60, "ready-path": "/ready", "alive-path": "/alive"} | QUICK
    command = ["/usr/bin/python3", "-I", str(SUPERVISOR), "http", *(f"--{name}={value}" for name, value in options.items())]
    with Supervised([*command, "--", sys.executable, "-c", WEB, str(port), str(ill)], tmp_path / "output") as supervised:
        supervised.until_ready()
        assert supervised.status.startswith("answering since ")
        waited = threading.Event()
        threading.Timer(QUICK["stall-timeout-seconds"] + 1, waited.set).start()
        supervised.until(waited.is_set, what="longer than any limit")
        assert supervised.process.poll() is None
        ill.touch()
        supervised.until(lambda: "WATCHDOG=trigger" in supervised.read(), what="the supervisor calls for the watchdog")
        assert supervised.until_ended() == 1


def test_a_wrong_command_line_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with Supervised(["/usr/bin/python3", "-I", str(SUPERVISOR), "model", "--name=x"], tmp_path / "output") as supervised:
        assert supervised.until_ended() == 2
        assert "the following arguments are required: --port" in supervised.written()
        assert "Traceback" not in supervised.written()
