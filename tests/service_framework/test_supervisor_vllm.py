"""The supervisor with the real vLLM, started as a host starts it: the role's rendered command and environment, a tiny model."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader

from citadel_supervise import mapped_files
from journal import Journal
from ports import free_port
from rendering import PROJECT, render, role_defaults
from runtimes import vllm_python
from supervised import SUPERVISOR, Supervised, state_of
from templates.inventories import planned

MODEL = "hermes-2"
ROLE = PROJECT / "roles" / "model_service"
START_SECONDS = 240
NOTICE_SECONDS = 15
PHASES = ["starting the API server", "starting the engine", "starting the workers", "loading weights 1/1", "warming up"]

# What the tests shorten. The longest step of a tiny model takes milliseconds.
QUICK = {"sample-seconds": 0.5, "idle-seconds": 3, "busy-seconds": 1, "asleep-seconds": 4}


# A user namespace and a /dev/shm of its own, as the unit gives it: what a killed vLLM leaves there goes with it.
ALONE = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]


@dataclass(frozen=True)
class Vllm:
    """A vLLM of the lab's plan on other ports, under its supervisor."""

    supervised: Supervised
    port: int
    state_port: int
    log_file: Path
    journal: Journal

    def send(self, path: str, body: object, **headers: str) -> int:
        """Post JSON, or bytes as they are; the status of the answer, which is read to its end."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, body=payload, headers={"Content-Type": "application/json"} | headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def ask(self, tokens: int, *, stream: bool = False, seconds: float = 120) -> tuple[int, str]:
        """Ask for so many tokens; status and body, 0 and nothing where the connection broke."""
        body = {"model": MODEL, "prompt": "The plan says", "max_tokens": tokens, "ignore_eos": True}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("POST", "/v1/completions", body=json.dumps(body), headers={"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def count(self, metric: str) -> float:
        """Read one figure of vLLM's."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{metric}{{"))

    def state(self) -> tuple[int, str | None]:
        status, content = state_of(self.state_port)
        return status, content.get("state")

    def until_running(self) -> None:
        self.supervised.until(lambda: self.count("vllm:num_requests_running") > 0, what="a request runs")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(PROJECT / "lab" / "tiny_models.py"), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    services = planned("lab", tmp_path_factory.mktemp("plan"))["plan"]["services"]
    return next(service for service in services if service["name"] == MODEL)


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every program of this machine but its compilers: the packages of role host hold none."""
    folder = tmp_path_factory.mktemp("bin")
    for program in (path for place in os.environ["PATH"].split(":") if Path(place).is_dir() for path in Path(place).iterdir()):
        if not re.search(r"^cc$|^c\+\+|gcc|g\+\+|clang", program.name):
            with contextlib.suppress(FileExistsError):
                (folder / program.name).symlink_to(program)
    return folder


@pytest.fixture
def journal() -> Iterator[Journal]:
    with Journal() as running:
        yield running


@pytest.fixture
def vllm(service: dict[str, Any], models: Path, journal: Journal, no_compiler: Path, tmp_path: Path) -> Iterator[Vllm]:
    port, state_port = free_port(), free_port()
    (tmp_path / "libexec").symlink_to(SUPERVISOR.parent)
    (tmp_path / "config" / "services").mkdir(parents=True)
    (tmp_path / "log" / MODEL).mkdir(parents=True)
    variables = (
        role_defaults("model_service")
        | dict(DataLoader().load_from_file(str(ROLE / "vars" / "main.yml"), trusted_as_template=True))
        | {
            # A small pool: what is tested does not need a large one.
            "model_service_plan": service | {"api_port": port, "state_port": state_port, "kv_cache_bytes": 2**26},
            "model_service_python": vllm_python(),
            "model_service_root_folder": str(tmp_path),
            "model_service_models_folder": str(models),
            "model_service_log_folder": str(tmp_path / "log"),
            "model_service_journal_socket": str(journal.socket),
            # Time for a machine that is busy with something else: a stop takes no longer than what is running.
            "model_service_stop_notice_seconds": NOTICE_SECONDS,
            "model_service_drain_seconds": 120,
        }
    )
    text = {name: render(ROLE / "templates" / f"{name}.j2", variables) for name in ("10-exec.conf", "service.env", "logging.json")}
    (tmp_path / "config" / "services" / f"{MODEL}.logging.json").write_text(text["logging.json"], encoding="utf-8")
    settings = (line.partition("=") for line in text["service.env"].splitlines() if line and not line.startswith("#"))
    # What the unit gives to write to lies in the test's folder here.
    environment = {"PATH": str(no_compiler), "TMPDIR": str(tmp_path)} | {
        name: value.replace("/var/cache/citadel-llm", str(tmp_path / "cache")) for name, _, value in settings
    }
    words = shlex.split(text["10-exec.conf"].replace("\\\n", " ").split("ExecStart=")[-1])
    words[words.index("--") : words.index("--")] = [f"--{name}={value}" for name, value in QUICK.items()]
    with Supervised([*ALONE, *words], tmp_path / "output", environment) as supervised:
        yield Vllm(supervised, port, state_port, tmp_path / "log" / MODEL / f"{MODEL}.log", journal)


def nothing_is_left(vllm: Vllm) -> None:
    vllm.supervised.until(lambda: vllm.supervised.processes() == [], what="no process is left")


def test_ready_is_a_token_work_is_no_hang_and_a_hang_is_found(vllm: Vllm) -> None:
    assert vllm.state() in {(0, None), (503, "process")}
    vllm.supervised.until_ready(seconds=START_SECONDS)
    assert vllm.count("vllm:generation_tokens_total") == 1, "the one that the supervisor asked for"
    assert vllm.state() == (200, "generating")
    told = [status.partition(" since ")[0] for status in vllm.supervised.statuses]
    assert [phase for phase in told if phase in PHASES] == [phase for phase in PHASES if phase in told], "in order"
    assert set(PHASES[:3]) <= set(told)
    assert told[-2:] == ["waiting for its first answer", "generating"]

    # Nobody asks for anything.
    before = vllm.count("vllm:generation_tokens_total")
    vllm.supervised.until(lambda: vllm.count("vllm:generation_tokens_total") >= before + 2, what="two tokens while idle")

    # One request after another, for longer than an engine may be still.
    end = time.monotonic() + QUICK["busy-seconds"] + 2 * QUICK["asleep-seconds"]
    while time.monotonic() < end:
        assert vllm.ask(1500)[0] == 200
    assert vllm.state() == (200, "generating")

    # A client that gives up leaves nothing behind that looks like work.
    vllm.ask(8000, seconds=1)
    vllm.supervised.until(lambda: vllm.count("vllm:num_requests_running") == 0, what="the request is given up")

    client = threading.Thread(target=vllm.ask, args=(8000,))
    client.start()
    vllm.until_running()
    vllm.supervised.processes()
    vllm.supervised.kill("VLLM::Worker", signal.SIGSTOP)
    took = vllm.supervised.until(lambda: "WATCHDOG=trigger" in vllm.supervised.read(), what="the supervisor calls for the watchdog")
    assert took >= QUICK["asleep-seconds"]
    assert "requests running: 1; its workers asleep" in vllm.supervised.status
    assert vllm.supervised.until_ended() == 1
    client.join(10)
    nothing_is_left(vllm)


def test_a_stop_lets_what_is_running_finish_and_refuses_nothing_before_the_edge_knows(vllm: Vllm) -> None:
    vllm.supervised.until_ready(seconds=START_SECONDS)
    answers: list[tuple[int, str]] = []

    def ask_until_refused() -> None:
        """One is always running, however fast the machine is."""
        while not answers or answers[-1][0] == 200:
            answers.append(vllm.ask(1500, stream=True))

    client = threading.Thread(target=ask_until_refused)
    client.start()
    vllm.until_running()
    vllm.supervised.processes()
    vllm.supervised.process.send_signal(signal.SIGINT)
    vllm.supervised.until(lambda: vllm.state() == (503, "process"), seconds=NOTICE_SECONDS - 5, what="the edge is told")
    status, body = vllm.ask(1)
    assert status == 200, f"on its way when the edge was told: {body}"
    client.join(180)
    *answered, _came_too_late = answers
    assert answered
    for status, body in answered:
        assert status == 200
        assert '"completion_tokens":1500' in body
        assert body.rstrip().endswith("data: [DONE]")
    assert vllm.supervised.until_ended(seconds=30) == 0
    assert "draining in-flight requests count=1" in vllm.journal.text(), "it was still running when vLLM was told to end"
    nothing_is_left(vllm)


def test_a_worker_that_dies_while_it_starts_fails_the_start_within_five_seconds(vllm: Vllm) -> None:
    vllm.supervised.until(
        lambda: any(status.startswith("starting the workers") for status in vllm.supervised.statuses),
        seconds=START_SECONDS,
        what="the worker begins",
    )
    vllm.supervised.processes()
    vllm.supervised.kill("VLLM::Worker", signal.SIGKILL)
    killed = vllm.supervised.seconds
    assert vllm.supervised.until_ended() == 1
    assert vllm.supervised.seconds - killed < 5
    assert " while starting the workers: VLLM::Worker (process " in vllm.supervised.status
    assert not vllm.supervised.ready
    nothing_is_left(vllm)


MARKER = "vermilion"
CHAT: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": MARKER}]}
TEXT: dict[str, Any] = {"model": MODEL, "max_tokens": 4, "prompt": MARKER}
TOOL = {"type": "function", "function": {"name": MARKER, "description": MARKER, "parameters": {"type": "object", "properties": {}}}}


CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
# Status of the answer, path and body. What a client can say reaches parts of vLLM that nothing else does.
REQUESTS: list[tuple[int, str, object]] = [
    (200, CHAT_PATH, CHAT),
    (200, CHAT_PATH, CHAT | {"stream": True}),
    (200, CHAT_PATH, CHAT | {MARKER: MARKER}),
    (200, CHAT_PATH, CHAT | {"tools": [TOOL], "tool_choice": "none"}),
    (200, CHAT_PATH, CHAT | {"logprobs": True, "top_logprobs": 3, "temperature": 1.3, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "n": 2}),
    (200, CHAT_PATH, CHAT | {"presence_penalty": 1, "repetition_penalty": 1.2, "logit_bias": {"5": 10}, "min_tokens": 2}),
    (200, CHAT_PATH, CHAT | {"response_format": {"type": "json_object"}}),
    (200, TEXT_PATH, TEXT | {"logprobs": 1, "stop": [MARKER], "user": MARKER}),
    (200, TEXT_PATH, TEXT | {"echo": True}),
    (400, TEXT_PATH, TEXT | {"echo": True, "logprobs": 1}),
    (400, TEXT_PATH, TEXT | {"prompt_logprobs": 2}),
    (200, TEXT_PATH, TEXT | {"structured_outputs": {"choice": [MARKER]}}),
    (400, CHAT_PATH, CHAT | {"tools": [TOOL]}),
    (400, CHAT_PATH, CHAT | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": MARKER}}}),
    (400, CHAT_PATH, CHAT | {"tools": [{"type": MARKER}]}),
    (400, CHAT_PATH, CHAT | {"messages": MARKER}),
    (400, CHAT_PATH, CHAT | {"messages": [{"role": "user", "content": MARKER * 4000}]}),
    (400, CHAT_PATH, CHAT | {"messages": [{"role": "user", "content": [{"type": MARKER, MARKER: MARKER}]}]}),
    (400, CHAT_PATH, CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": MARKER}}]}]}),
    (400, CHAT_PATH, CHAT | {"max_tokens": MARKER}),
    (400, CHAT_PATH, CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": MARKER, "schema": {"type": MARKER}}}}),
    (400, TEXT_PATH, TEXT | {"structured_outputs": {"regex": f"({MARKER}"}}),
    (400, TEXT_PATH, TEXT | {"structured_outputs": {"grammar": MARKER}}),
    (400, TEXT_PATH, TEXT | {"prompt": MARKER * 4000}),
    (400, TEXT_PATH, TEXT | {"prompt": {MARKER: MARKER}}),
    (400, TEXT_PATH, TEXT | {"prompt": [[10**6, 3]]}),
    (400, TEXT_PATH, f'{{"prompt": "{MARKER}'.encode()),
    (404, TEXT_PATH, TEXT | {"model": MARKER}),
]


def test_nothing_that_a_client_sends_is_logged_or_needs_a_compiler(vllm: Vllm) -> None:
    vllm.supervised.until_ready(seconds=START_SECONDS)
    answers = [(vllm.send(path, body, Authorization=f"Bearer sk-{MARKER}"), path, body) for _, path, body in REQUESTS]
    assert answers == REQUESTS

    # The error that most likely quotes what it was about: the engine dies while it works.
    def until_it_dies() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            vllm.send(CHAT_PATH, CHAT | {"max_tokens": 5000, "ignore_eos": True})

    client = threading.Thread(target=until_it_dies)
    client.start()
    vllm.until_running()
    vllm.supervised.processes()
    vllm.supervised.kill("VLLM::Worker", signal.SIGKILL)
    vllm.supervised.until_ended()
    client.join(10)

    entries = vllm.journal.entries()
    assert {entry.identifier for entry in entries} == {f"citadel-llm@{MODEL}"}
    assert {entry.priority for entry in entries if "Application startup complete" in entry.text} == {6}
    assert {entry.text.partition(" ")[0] for entry in entries if entry.priority == 3} == {"ERROR"}
    log = vllm.log_file.read_text(encoding="utf-8")
    for status, path in sorted({(status, path) for status, path, _ in REQUESTS}):
        line = f'"POST {path} HTTP/1.1" {status}'
        assert log.count(line) >= [request[:2] for request in REQUESTS].count((status, path)), "it is the requests that are logged"
        assert line not in vllm.journal.text(), "those lines are for the file"
    for written in (vllm.supervised.written(), log, vllm.journal.text()):
        assert MARKER not in written


LOADER = """
import sys
import torch
from safetensors import safe_open
from safetensors.torch import save_file
folder = sys.argv[1]
for number in range(1, 4):
    save_file({"weight": torch.zeros(1000)}, f"{folder}/model-{number}-of-3.safetensors")
for number in range(1, 4):
    with safe_open(f"{folder}/model-{number}-of-3.safetensors", framework="pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            print(number, flush=True)
            sys.stdin.readline()
tensor = file = None
print("done", flush=True)
sys.stdin.readline()
"""


def test_the_shard_that_the_loaders_library_reads_is_seen(tmp_path: Path) -> None:
    """As vLLM's safetensors_weights_iterator does it (vllm/model_executor/model_loader/weight_utils.py)."""
    loader = subprocess.Popen([vllm_python(), "-c", LOADER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with loader:
        assert loader.stdin is not None
        assert loader.stdout is not None
        seen = []
        for line in loader.stdout:
            seen.append((line.strip(), sorted(mapped_files(loader.pid, tmp_path))))
            loader.stdin.write("\n")
            loader.stdin.flush()
    assert seen[:3] == [(str(number), [f"model-{number}-of-3.safetensors"]) for number in (1, 2, 3)]
    assert seen[3] == ("done", [])
