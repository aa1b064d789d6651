#!/usr/bin/python3
"""Runs one service as the main process of its unit, and tells systemd, the edge and Prometheus the truth about it.

    citadel_supervise.py model --name NAME --port PORT --state-port PORT --weights FOLDER … -- COMMAND…
    citadel_supervise.py http  --name NAME --port PORT --ready-path PATH --alive-path PATH … -- COMMAND…

Ready (READY=1) is a model that has generated a token, and any other service that answers its ready path. Meanwhile the status
text says what it waits for. A process of the service that dies ends the unit at once; one that lives but gets nowhere is found
by what it counts, never by a request's duration, and ends the unit by the watchdog. After a failure it waits before the next try,
twice as long each time, and after a number of failures in a row it stays failed.

It runs under the distribution's Python, with the distribution's sd_notify: the same for every runtime, and still there to say
so when a runtime is broken. What it knows of the service comes from the kernel (/proc) and from HTTP; nothing of it runs inside
the service and no log line is parsed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

LOOPBACK = "127.0.0.1"
STATES = ("process", "loaded", "generating", "hung")
EX_CONFIG = 78

TICK_SECONDS = 0.5
PING_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long one answer to a question about health or metrics may take; the next one is asked after it."""
LAST_WORDS_SECONDS = 2.0
"""What vLLM gets to say why one of its processes died before the rest is killed."""
KILL_MARGIN_SECONDS = 5.0
"""What the service gets after its drain before it is killed: vLLM waits for clients that never hang up."""
START_MARGIN_SECONDS = 10.0
"""How much later than the supervisor systemd gives a start up: it could only say that there was a timeout."""

ENGINE_TITLES = "VLLM::"
WORKER_TITLES = "VLLM::Worker"
"""What vLLM calls its processes (vllm/utils/system_utils.py, set_process_title); the engine is its own worker on one GPU."""

CONNECTED_SECONDS = 5.0
"""How long what the edge says of its requests counts; it says so with each check, once a second."""

AWAKE_CPUS = 0.05
"""A process that uses less of a CPU than this is asleep."""

COUNTERS = (
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prefix_cache_queries_total",
    "vllm:prompt_tokens_total",
)
"""What vLLM's API server changes only when its engine has reported a step (vllm/v1/metrics/loggers.py, record): an engine that
is stuck moves none of them, whatever arrives. The KV cache is among them because a step of a long prompt counts no token."""

RESTART_OPTIONS = (
    ("restart-seconds", 5, "time before the first try after a failure, doubled for each further one in a row"),
    ("restart-longest-seconds", 300, "longest time before a try"),
    ("restart-failures", 5, "failures in a row after which it stays failed"),
    ("restart-steady-seconds", 300, "time after which a service that is ready has its failures forgotten"),
)
"""What the template unit sets for all instances, by its environment."""

T = TypeVar("T")


class UnansweredError(Exception):
    """The service did not answer, or refused; the text says how."""


# --- what the kernel knows ---


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the service; `state` is the kernel's letter, `cpu_seconds` what it has used since it began."""

    pid: int
    parent: int
    title: str
    state: str
    cpu_seconds: float


def session_processes(session: int) -> list[Process]:
    """List the processes of a session, the service's own: the supervisor makes one for it."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The second field is a name in parentheses that may hold anything.
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            title = (entry / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace").strip()
        except OSError:
            continue  # it ended while we looked
        if len(fields) < 13 or int(fields[3]) != session:
            continue
        cpu_seconds = (int(fields[11]) + int(fields[12])) / ticks
        found.append(Process(pid=int(entry.name), parent=int(fields[1]), title=title, state=fields[0], cpu_seconds=cpu_seconds))
    return found


def engine_processes(processes: Sequence[Process]) -> list[Process]:
    """Return vLLM's engine and workers among them.

    What one of these has forked goes by its name until it runs a program of its own, and its end, a moment later, is nobody's: vLLM and
    torch look at the machine that way (lscpu, ldconfig).
    """
    titles = {process.pid: process.title for process in processes}
    return [process for process in processes if process.title.startswith(ENGINE_TITLES) and titles.get(process.parent) != process.title]


def mapped_files(pid: int, folder: Path) -> set[str]:
    """Name the files directly in `folder` that a process has mapped into its memory."""
    prefix = f"{folder}/"
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()  # it ended while we looked
    paths = (line.split(maxsplit=5)[5] for line in lines if prefix in line)
    return {path.removeprefix(prefix) for path in paths if path.startswith(prefix)}


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which model-2-of-10 comes before model-10-of-10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def read_credential(name: str) -> dict[str, str]:
    """Read the variables of a credential of the unit: one a line, a name, a blank and the value.

    Raises OSError where systemd has handed over none of that name, ValueError where it holds anything else. Neither says what it holds.
    """
    text = (Path(os.environ.get("CREDENTIALS_DIRECTORY", "/run/credentials")) / name).read_text(encoding="utf-8")
    lines = [line.split(" ") for line in text.splitlines()]
    if not lines or any(len(words) != 2 or not all(words) for words in lines):
        raise ValueError("it must hold lines of a name, a blank and a value")
    return {variable: value for variable, value in lines}  # noqa: C416 - dict() of lists of any length is no dict of str for mypy


# --- what HTTP tells ---


def ask(where: tuple[str, int], path: str, *, seconds: float, body: object = None) -> str:
    """Send one request to an address and port, a POST where there is a body, and return the text of the answer.

    Raises UnansweredError where there is none within `seconds`, or another status than 200.
    """
    connection = http.client.HTTPConnection(*where, timeout=seconds)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, body=json.dumps(body), headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise UnansweredError(f"{path}: {error or type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise UnansweredError(f"{path}: {answer.status} {answer.reason}")
    return text


@dataclass(frozen=True, slots=True)
class Sample:
    """What a service counts. Where any of `counters` differs from the one before, the service got on."""

    running: float
    counters: tuple[float, ...]


def read_metrics(text: str) -> Sample:
    """Read vLLM's metrics in Prometheus' text format; those of several engines are added up."""
    sums = dict.fromkeys(COUNTERS, 0.0)
    for line in text.splitlines():
        name = line.partition("{")[0]
        if name in sums:
            sums[name] += float(line.rpartition(" ")[2])
    return Sample(running=sums["vllm:num_requests_running"], counters=tuple(sums.values()))


class Service(Protocol):
    """What differs between services. `answers`, `work` and `sample` may block, and raise UnansweredError."""

    works: str
    """What it does when it is ready."""

    def phase(self, processes: Sequence[Process]) -> str:
        """Say what it does before it answers."""

    def answers(self) -> None:
        """Return when it answers at all."""

    def work(self, seconds: float) -> None:
        """Do a smallest piece of what it is for; returns when that is done."""

    def sample(self) -> Sample:
        """Count."""


class ModelService:
    """vLLM: an API server, an engine and workers."""

    works = "generating"

    def __init__(self, *, name: str, where: tuple[str, int], weights: Path) -> None:
        self._name = name
        self._where = where
        self._weights = Path(os.path.realpath(weights))
        self._loading = False

    def phase(self, processes: Sequence[Process]) -> str:
        engine = engine_processes(processes)
        files = sorted((path.name for path in self._weights.glob("*.safetensors")), key=natural_order)
        mapped = {name for process in engine for name in mapped_files(process.pid, self._weights)}
        position = max((number for number, name in enumerate(files, start=1) if name in mapped), default=0)
        if position:
            self._loading = True
            return f"loading weights {position}/{len(files)}"
        if self._loading:
            return "warming up"
        if any(process.title.startswith(WORKER_TITLES) for process in engine):
            return "starting the workers"
        return "starting the engine" if engine else "starting the API server"

    def answers(self) -> None:
        ask(self._where, "/health", seconds=ANSWER_SECONDS)

    def work(self, seconds: float) -> None:
        # A token's number instead of a text: no tokenizer has a say in whether the engine lives.
        body = {"model": self._name, "prompt": [1], "max_tokens": 1, "temperature": 0}
        ask(self._where, "/v1/completions", seconds=seconds, body=body)

    def sample(self) -> Sample:
        return read_metrics(ask(self._where, "/metrics", seconds=ANSWER_SECONDS))


class HttpService:
    """Anything that tells by HTTP that it is well."""

    works = "answering"

    def __init__(self, *, where: tuple[str, int], ready_path: str, alive_path: str) -> None:
        self._where = where
        self._ready_path = ready_path
        self._alive_path = alive_path
        self._answered = 0

    def phase(self, processes: Sequence[Process]) -> str:
        return "starting"

    def answers(self) -> None:
        ask(self._where, self._ready_path, seconds=ANSWER_SECONDS)

    def work(self, seconds: float) -> None:
        ask(self._where, self._alive_path, seconds=seconds)

    def sample(self) -> Sample:
        self.work(ANSWER_SECONDS)
        self._answered += 1
        return Sample(running=0, counters=(self._answered,))


# --- whether it gets on ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a service that gets nowhere is hung.

    After `idle_seconds` without any count, or `busy_seconds` where requests are running, it is given a smallest piece of work.
    So long may those who owe the answer use no CPU: `asleep_seconds`; after `suspect_seconds` of it nobody is sent to them any more. So
    long may they use it: `stall_seconds`, which must be more than the longest step that can be.
    """

    idle_seconds: float
    busy_seconds: float
    suspect_seconds: float
    asleep_seconds: float
    stall_seconds: float


class CpuClock:
    """When some processes were last awake. What is not known counts as awake."""

    def __init__(self, now: float) -> None:
        self.awake_at = now
        self._seen: tuple[float, float] | None = None

    def update(self, now: float, cpu_seconds: float | None) -> None:
        if cpu_seconds is None or self._seen is None or cpu_seconds - self._seen[1] > AWAKE_CPUS * (now - self._seen[0]):
            self.awake_at = now
        self._seen = None if cpu_seconds is None else (now, cpu_seconds)


class Liveness:
    """Judges from counts and CPU time whether a service is hung; knows neither clock nor network.

    A service that counts nothing is given a smallest piece of work and is judged by what moves from then on, be it that work or
    any other. The number of running requests does not do for that: an engine stuck in its first step has not reported one, and who is
    connected may be sending still. But either is a reason to give it work sooner.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.moved_at = now
        self.probing = False
        self._limits = limits
        self._workers = CpuClock(now)
        self._server = CpuClock(now)
        self._sample: Sample | None = None
        self._connected = 0
        self._silence: str | None = None
        self._refused = False
        self._owed_at: float | None = None

    def observe(
        self,
        now: float,
        sample: Sample | None,
        *,
        workers_cpu_seconds: float | None,
        server_cpu_seconds: float | None,
        connected: int = 0,
        silence: str = "",
    ) -> None:
        """Take what the service counts, the CPU time of its processes, and how many the edge has sent it.

        `sample` is None where it did not answer; `silence` says how.
        """
        self._connected = connected
        self._workers.update(now, workers_cpu_seconds)
        self._server.update(now, server_cpu_seconds)
        self._silence = silence if sample is None else None
        if sample is not None:
            if self._sample is not None and sample.counters != self._sample.counters:
                self._moved(now)
            self._sample = sample
        self._account(now)

    def wants_work(self, now: float) -> bool:
        """Tell whether nothing has been counted for so long that the service should be given something to do."""
        patience = self._limits.busy_seconds if self._running or self._connected else self._limits.idle_seconds
        return not self.probing and self._silence is None and now - self.moved_at >= patience

    def given_work(self, now: float) -> None:
        self.probing = True
        self._account(now)

    def work_done(self, now: float) -> None:
        self.probing = False
        self._moved(now)
        self._account(now)

    def work_refused(self, now: float) -> None:
        """Take it as still owed: a service that refuses everything does not get on either."""
        self.probing = False
        self._refused = True
        self._account(now)

    def verdict(self, now: float) -> str | None:
        """Say why the service is hung, or None."""
        if self._owed_at is None:
            return None
        since = max(self.moved_at, self._owed_at)
        asleep = self._asleep_seconds(now) >= self._limits.asleep_seconds
        if not asleep and now - since < self._limits.stall_seconds:
            return None
        how = "asleep" if asleep else "using the CPU"
        if self._silence is not None:
            return f"it has not answered for {now - since:.0f} s ({self._silence}), {how}"
        return f"no token for {now - since:.0f} s, not even one that it was asked for; requests running: {self._running}; its workers {how}"

    def is_suspect(self, now: float) -> bool:
        """Tell whether it looks hung: too little to end it for, enough to send nobody to it meanwhile."""
        return self._owed_at is not None and self._asleep_seconds(now) >= self._limits.suspect_seconds

    def _asleep_seconds(self, now: float) -> float:
        """How long those who owe an answer have used no CPU."""
        clock = self._workers if self._silence is None else self._server
        return now - max(self.moved_at, self._owed_at or now, clock.awake_at)

    @property
    def _running(self) -> int:
        return 0 if self._sample is None else round(self._sample.running)

    def _moved(self, now: float) -> None:
        self.moved_at = now
        self._refused = False

    def _account(self, now: float) -> None:
        if not (self._silence is not None or self.probing or self._refused):
            self._owed_at = None
        elif self._owed_at is None:
            self._owed_at = now


# --- what is told ---


@dataclass(frozen=True, slots=True)
class State:
    """What the service is in: one of STATES, what exactly, and since when (seconds since 1970)."""

    name: str
    detail: str
    since: float


class StateServer(http.server.ThreadingHTTPServer):
    """Tells the state on 127.0.0.1: `GET /state` to the edge, 200 or 503, and `GET /metrics` to Prometheus."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.state = State("process", "starting", time.time())
        self.moved_at = 0.0
        self._connected = (0, -CONNECTED_SECONDS)
        super().__init__((LOOPBACK, port), StateHandler)

    def hear(self, edge: str | None) -> None:
        """Take what HAProxy tells of the server that it checks (`http-check send-state`)."""
        if edge and (found := re.search(r"\bscur=(\d+)/", edge)):
            self._connected = (int(found[1]), time.monotonic())

    @property
    def connected(self) -> int:
        """How many requests the edge has with the service; 0 where it has not said so of late."""
        count, at = self._connected
        return count if time.monotonic() - at < CONNECTED_SECONDS else 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up: the edge's checks read the status and are gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # typed as a socket, passed on as it came

    def metrics(self) -> str:
        state = self.state
        lines = [
            "# HELP citadel_service_state 1 for the state that the service is in.",
            "# TYPE citadel_service_state gauge",
            *(f'citadel_service_state{{state="{name}"}} {int(name == state.name)}' for name in STATES),
            "# HELP citadel_service_state_since_timestamp_seconds When it came into this state.",
            "# TYPE citadel_service_state_since_timestamp_seconds gauge",
            f"citadel_service_state_since_timestamp_seconds {state.since:.3f}",
            "# HELP citadel_service_progress_timestamp_seconds When it was last seen to get on; 0 before it was ready.",
            "# TYPE citadel_service_progress_timestamp_seconds gauge",
            f"citadel_service_progress_timestamp_seconds {self.moved_at:.3f}",
        ]
        return "\n".join(lines) + "\n"


class StateHandler(http.server.BaseHTTPRequestHandler):
    """Answers one connection to the StateServer."""

    server: StateServer

    def do_GET(self) -> None:
        if self.path == "/state":
            self.server.hear(self.headers.get("X-Haproxy-Server-State"))
            state = self.server.state
            content = {"state": state.name, "detail": state.detail, "since": _timestamp(state.since)}
            self._answer(http.client.OK if state.name == "generating" else http.client.SERVICE_UNAVAILABLE, json.dumps(content) + "\n")
        elif self.path == "/metrics":
            self._answer(http.client.OK, self.server.metrics(), "text/plain; version=0.0.4")
        else:
            self._answer(http.client.NOT_FOUND, "")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the edge asks every second."""

    def _answer(self, status: int, text: str, content_type: str = "application/json") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def log(level: int, text: str) -> None:
    """Write one line for the journal, with its priority as systemd reads it."""
    print(f"<{level}>{text}", file=sys.stderr, flush=True)


class Call:
    """A question that may block, asked in the background; the process does not wait for it when it ends."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.result: Any = None
        self.error: UnansweredError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except UnansweredError as error:
            self.error = error
        except Exception as error:  # whatever it was, it was no answer
            self.error = UnansweredError(f"{type(error).__name__}: {error}")

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()


# --- what outlives it ---


class Failures:
    """How often the service has failed in a row, and why the last time, in a file that is there after a restart only.

    systemd removes the file with its folder when the service is stopped or given up. As long as a run lasts the file says that it
    has failed as well: whatever kills the supervisor lets it write nothing.
    """

    def __init__(self, folder: str | None, *, killed: str) -> None:
        """Read what the runs before have left; without a folder nothing is kept."""
        self._path = None if folder is None else Path(folder) / "failures.json"
        self._killed = killed
        self.count, self.reason = 0, ""
        if self._path is None:
            return
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # no such file, or not all of it
            left = json.loads(self._path.read_text(encoding="utf-8"))
            self.count, self.reason = int(left["count"]), str(left["reason"])

    def run_begins(self) -> None:
        self._write(self.count + 1, self._killed)

    def run_is_steady(self) -> None:
        """Forget the failures before this run."""
        self.count = 0
        self.run_begins()

    def run_failed(self, reason: str) -> None:
        self.count, self.reason = self.count + 1, reason
        self._write(self.count, reason)

    def forget(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, count: int, reason: str) -> None:
        if self._path is None:
            return
        unfinished = self._path.with_suffix(".unfinished")
        try:
            unfinished.write_text(json.dumps({"count": count, "reason": reason}), encoding="utf-8")
            unfinished.replace(self._path)
        except OSError as error:
            log(4, f"{self._path} cannot be written, so that failures are not counted: {error.strerror}")


def _in_a_row(count: int) -> str:
    return f"{count} failure{'' if count == 1 else 's'} in a row"


# --- the supervisor ---


class Supervisor:
    """The main process of the unit."""

    def __init__(self, options: argparse.Namespace, service: Service, command: Sequence[str]) -> None:
        # Here and not above, so that what needs no systemd can be used where this package is not.
        from systemd import daemon  # noqa: PLC0415 # Debian's python3-systemd

        self._notify: Callable[[str], object] = daemon.notify
        self._unsaid: list[str] = []
        self._options = options
        self._service = service
        self._command = command
        self._limits = Limits(
            idle_seconds=options.idle_seconds,
            busy_seconds=options.busy_seconds,
            suspect_seconds=options.suspect_seconds,
            asleep_seconds=options.asleep_seconds,
            stall_seconds=options.stall_timeout_seconds,
        )
        self._state = State("process", "starting", time.time())
        self._server: StateServer | None = None
        self._deadline = time.time() + options.start_timeout_seconds
        self._give_up_at = 0.0
        self._ready = False
        self._failures = Failures(
            os.environ.get("RUNTIME_DIRECTORY"), killed=f"it was killed, perhaps for its memory: see journalctl -u {self._unit}"
        )
        self._stop_signal: signal.Signals | None = None
        self._poll = select.poll()
        self._watched: dict[int, tuple[int, str]] = {}
        self._pinged_at = 0.0

    def run(self) -> int:
        """Run the service to its end; returns the exit status for the unit."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if self._options.state_port is not None:
            try:
                self._server = StateServer(self._options.state_port)
            except OSError as error:
                return self._failed(1, f"port {self._options.state_port} on {LOOPBACK} for its state: {error.strerror}")
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
        if self._failures.count >= self._options.restart_failures:
            return self._given_up(self._failures.reason)
        if not self._wait_before_the_start():
            return 0
        self._failures.run_begins()
        # What is for the main process alone must not reach others.
        mine = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"}
        environment = {name: value for name, value in os.environ.items() if name not in mine}
        for name in self._options.credential:
            try:
                environment |= read_credential(name)
            except (OSError, ValueError) as error:
                return self._failed(EX_CONFIG, f"credential {name}: {getattr(error, 'strerror', None) or error}")
        try:
            self._child = subprocess.Popen(self._command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            # Trying again cannot help.
            return self._failed(EX_CONFIG, f"{self._command[0]} cannot be run: {error.strerror}")
        self._watch(self._child.pid, "its main process")
        try:
            return self._supervise()
        finally:
            # systemd kills what is left of the cgroup; this is for the time until then.
            with contextlib.suppress(ProcessLookupError):  # nothing is left
                os.killpg(self._child.pid, signal.SIGKILL)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stop_signal = self._stop_signal or signal.Signals(number)

    def _supervise(self) -> int:
        for step in (self._until_it_answers, self._until_it_works, self._while_it_gets_on):
            status = step()
            if status is not None:
                return status
        raise AssertionError("the last step ends with a status")

    @property
    def _unit(self) -> str:
        return f"citadel-llm@{self._options.name}"

    def _wait_before_the_start(self) -> bool:
        """Wait after failures; returns whether to start: a stop ends it at once."""
        count = self._failures.count
        seconds = min(self._options.restart_seconds * 2.0 ** (count - 1), self._options.restart_longest_seconds) if count else 0.0
        now = time.monotonic()
        self._say(f"EXTEND_TIMEOUT_USEC={round((seconds + self._options.start_timeout_seconds + START_MARGIN_SECONDS) * 1e6)}")
        self._deadline = time.time() + seconds + self._options.start_timeout_seconds
        self._give_up_at = now + seconds + self._options.start_timeout_seconds
        if count:
            text = f"waiting {seconds:g} s after {_in_a_row(count)}; the last: {self._failures.reason}"
            log(5, f"{self._options.name} is {text}")
            self._show("process", text, last=True)
        # Without a sign for the watchdog: the first one would have systemd expect them from here on, and a start gives none.
        while (left := now + seconds - time.monotonic()) > 0 and self._stop_signal is None:
            self._poll.poll(min(TICK_SECONDS, left) * 1000)
        if self._stop_signal is None:
            self._show("process", "starting")
            return True
        self._failures.forget()
        self._show("process", "stopping", also="STOPPING=1")
        return False

    # Each step returns the status for the unit, or None when the next one is due.

    def _until_it_answers(self) -> int | None:
        call = Call(self._service.answers)
        while True:
            processes = session_processes(self._child.pid)
            for process in engine_processes(processes):
                self._watch(process.pid, process.title)
            if call.done:
                if call.error is None:
                    return None
                call = Call(self._service.answers)
            self._show("process", self._service.phase(processes))
            if (status := self._pause()) is not None:
                return status

    def _until_it_works(self) -> int | None:
        seconds = max(ANSWER_SECONDS, self._deadline - time.time())
        called_at, call = time.monotonic(), Call(lambda: self._service.work(seconds))
        self._show("loaded", "waiting for its first answer")
        while True:
            if (status := self._pause()) is not None:
                return status
            if call.done:
                if call.error is None:
                    return None
                self._show("loaded", f"trying again after a refusal ({call.error})")
                if time.monotonic() - called_at >= self._options.sample_seconds:
                    called_at, call = time.monotonic(), Call(lambda: self._service.work(seconds))

    def _while_it_gets_on(self) -> int:
        self._show("generating", self._service.works, also="READY=1")
        self._ready = True
        now = time.monotonic()
        steady_at: float | None = now + self._options.restart_steady_seconds
        liveness = Liveness(self._limits, now)
        sampled_at, sampling, working = now, Call(self._service.sample), None
        while True:
            self._ping()
            if (status := self._pause()) is not None:
                return status
            now = time.monotonic()
            if steady_at is not None and now >= steady_at:
                self._failures.run_is_steady()
                steady_at = None
            if working is not None and working.done:
                liveness.work_done(now) if working.error is None else liveness.work_refused(now)
                working = None
            if sampling.done and now - sampled_at >= self._options.sample_seconds:
                self._observe(liveness, now, sampling)
                if working is None and liveness.wants_work(now):
                    working = Call(lambda: self._service.work(self._limits.stall_seconds + ANSWER_SECONDS))
                    liveness.given_work(now)
                sampled_at, sampling = now, Call(self._service.sample)
            if (reason := liveness.verdict(now)) is not None:
                return self._hung(reason)
            if liveness.is_suspect(now):
                self._show("hung", "asleep over an answer that it owes")
            else:
                self._show("generating", self._service.works)

    def _observe(self, liveness: Liveness, now: float, sampling: Call) -> None:
        processes = session_processes(self._child.pid)
        engine = engine_processes(processes)
        workers = [process for process in engine if process.title.startswith(WORKER_TITLES)] or engine
        liveness.observe(
            now,
            sampling.result,
            workers_cpu_seconds=_cpu_seconds(workers),
            server_cpu_seconds=_cpu_seconds(process for process in processes if process not in engine),
            connected=0 if self._server is None else self._server.connected,
            silence=str(sampling.error or ""),
        )
        if self._server is not None:
            self._server.moved_at = time.time() - (now - liveness.moved_at)

    def _pause(self) -> int | None:
        """Wait for a tick, or less where something happens; returns the unit's status when this is the end."""
        ended = {number for number, _ in self._poll.poll(TICK_SECONDS * 1000)}
        if self._stop_signal is not None:
            # A stop that follows a death is systemd's own, for memory, and counts as a failure.
            if not ended and self._child.poll() is None:
                self._failures.forget()
            return self._stop(self._stop_signal)
        if self._child.poll() is not None:
            return self._ended()
        if not self._ready and time.monotonic() >= self._give_up_at:
            return self._failed(1, f"it was not ready within {self._options.start_timeout_seconds:g} s")
        for number in ended:
            pid, title = self._watched[number]
            status = self._failed(1, f"{title} (process {pid}) ended")
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed
                self._child.wait(LAST_WORDS_SECONDS)
            return status
        return None

    def _watch(self, pid: int, title: str) -> None:
        if any(watched == pid for watched, _ in self._watched.values()):
            return
        try:
            number = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # it has just ended: vLLM ends with it, or the time for the start does
        self._watched[number] = (pid, title)
        self._poll.register(number, select.POLLIN)

    def _ended(self) -> int:
        """Fail, whatever the status: vLLM ends with 0 when its engine was killed, and nobody has asked it to end."""
        status = self._child.returncode
        if status < 0:
            return self._failed(1, f"its main process was killed by {signal.Signals(-status).name}")
        return self._failed(status or 1, f"its main process ended with status {status}")

    def _failed(self, status: int, reason: str) -> int:
        text = f"failed at {_clock(time.time())} while {self._state.detail}: {reason}"
        self._failures.run_failed(text)
        if status != EX_CONFIG and self._failures.count >= self._options.restart_failures:
            return self._given_up(text)
        log(3, f"{self._options.name} {text}")
        self._show("process", text, last=True)
        return status

    def _given_up(self, reason: str) -> int:
        text = f"given up after {_in_a_row(self._failures.count)}: start it again with systemctl start {self._unit}; the last: {reason}"
        log(3, f"{self._options.name} is {text}")
        self._show("process", text, last=True)
        return EX_CONFIG

    def _hung(self, reason: str) -> int:
        log(3, f"{self._options.name} is hung: {reason}. Its processes:")
        for process in session_processes(self._child.pid):
            log(3, f"  {process.pid} {process.title}: state {process.state}, {process.cpu_seconds:.1f} s of CPU")
        text = f"hung since {_clock(time.time())}: {reason}"
        self._failures.run_failed(text)
        self._show("hung", text, last=True)
        self._say("WATCHDOG=trigger")
        return 1

    def _stop(self, number: signal.Signals) -> int:
        """Let the edge send nothing more, let what is running finish, then end."""
        was_ready = self._state.name == "generating"
        self._show("process", "stopping", also="STOPPING=1")
        if was_ready:
            self._wait_for_end(self._options.stop_notice_seconds)
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            self._child.send_signal(number)
        drain = self._options.drain_seconds
        if drain is not None and not was_ready:
            drain = 0.0  # nothing is running yet; vLLM would take 20 s to notice
        if not self._wait_for_end(None if drain is None else drain + KILL_MARGIN_SECONDS):
            log(4, f"{self._options.name} was killed: it had not ended {KILL_MARGIN_SECONDS:g} s after its drain of {drain:g} s")
        return 0

    def _wait_for_end(self, seconds: float | None) -> bool:
        end = None if seconds is None else time.monotonic() + seconds
        while self._child.poll() is None:
            if end is not None and time.monotonic() >= end:
                return False
            self._ping()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(TICK_SECONDS if end is None else min(TICK_SECONDS, max(0.0, end - time.monotonic())))
        return True

    def _ping(self) -> None:
        if time.monotonic() - self._pinged_at >= PING_SECONDS:
            self._pinged_at = time.monotonic()
            self._say("WATCHDOG=1")

    def _show(self, name: str, detail: str, *, also: str = "", last: bool = False) -> None:
        """Tell everybody a state that is new. `also`: what systemd is told beside it. `last`: there is no waiting after it."""
        if (name, detail) == (self._state.name, self._state.detail):
            return
        if name != self._state.name and not last:
            log(6, f"{self._options.name}: {detail}")
        self._state = State(name, detail, time.time())
        if self._server is not None:
            self._server.state = self._state
        since = "" if last else f" since {_clock(self._state.since)}"
        until = "" if last or also or self._ready else f", given up at {_clock(self._deadline)}"
        self._say("\n".join(filter(None, (also, f"STATUS={detail}{since}{until}"))))

    def _say(self, message: str) -> None:
        """Tell systemd; what it cannot hear just now, because it is being exchanged, is said again later."""
        self._unsaid.append(message)
        with contextlib.suppress(OSError):
            while self._unsaid:
                self._notify(self._unsaid[0])
                self._unsaid.pop(0)


def _cpu_seconds(processes: Iterable[Process]) -> float | None:
    """CPU time of processes together; None where there are none, of which nothing can be said."""
    used = [process.cpu_seconds for process in processes]
    return sum(used) if used else None


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: the options, and the command after --; ends the program with a sentence where it is wrong."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", required=True, help="name of the service; vLLM's served model name")
    common.add_argument("--address", default=LOOPBACK, help="address that the service listens on")
    common.add_argument("--port", type=int, required=True, help="port that the service listens on")
    common.add_argument("--state-port", type=int, help="port on 127.0.0.1 for GET /state and /metrics of the supervisor")
    common.add_argument("--start-timeout-seconds", type=float, required=True, help="TimeoutStartSec of the unit, for the status text")
    common.add_argument("--stall-timeout-seconds", type=float, required=True, help="longest time without any result while it works")
    common.add_argument("--credential", action="append", default=[], help="credential of the unit whose lines NAME VALUE become variables")
    common.add_argument("--sample-seconds", type=float, default=5, help="time between two looks at what it counts")
    common.add_argument("--idle-seconds", type=float, default=30, help="time without any count after which it is given work")
    common.add_argument("--busy-seconds", type=float, default=10, help="the same while requests are running")
    common.add_argument("--asleep-seconds", type=float, default=30, help="longest time without CPU use while an answer is owed")
    common.add_argument("--suspect-seconds", type=float, default=10, help="the same, after which the edge is told to send it nobody")
    for name, default, text in RESTART_OPTIONS:
        variable = f"CITADEL_{name.upper().replace('-', '_')}"
        common.add_argument(f"--{name}", type=float, default=os.environ.get(variable, default), help=f"{text}; else {variable}")
    common.add_argument("--stop-notice-seconds", type=float, default=0, help="time for the edge to notice a stop before it begins")
    common.add_argument("--drain-seconds", type=float, help="time that a stop may take, a few seconds before it is killed")
    parser = argparse.ArgumentParser(description="Runs a service as the main process of its unit.", epilog="The service itself follows --.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    model = kinds.add_parser("model", parents=[common], help="vLLM")
    model.add_argument("--weights", type=Path, required=True, help="folder of the model")
    other = kinds.add_parser("http", parents=[common], help="anything that tells by HTTP that it is well")
    other.add_argument("--ready-path", required=True, help="answers 200 when it can serve")
    other.add_argument("--alive-path", required=True, help="answers 200 while it is well")
    own, command = list(arguments), []
    if "--" in own:
        own, command = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    if not command:
        parser.error("the command of the service is missing: write it after --")
    return options, command


def main() -> int:
    options, command = parse_arguments(sys.argv[1:])
    where = (options.address, options.port)
    service: Service
    if options.kind == "model":
        service = ModelService(name=options.name, where=where, weights=options.weights)
    else:
        service = HttpService(where=where, ready_path=options.ready_path, alive_path=options.alive_path)
    return Supervisor(options, service, command).run()


if __name__ == "__main__":
    sys.exit(main())
