"""What is measured: LiteLLM as its documentation has it started, LiteLLM as the role gateway runs it, and the edge, all on loopback."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PROJECT: Final = Path(__file__).resolve().parent.parent.parent
for _folder in ("src", "tests", "roles/service_framework/files"):
    sys.path.insert(0, str(PROJECT / _folder))

import yaml  # noqa: E402 - the project's own code is used from the checkout
from backend import MODELS  # noqa: E402 - beside this file

from citadel_supervise import Process, session_processes  # noqa: E402 - from the checkout
from edge.haproxy import SERVER, TRUSTED, make_edge, tool, write_configuration  # noqa: E402 - from the checkout
from gateway.harness import MASTER_KEY, Gateway, upstream  # noqa: E402 - from the checkout
from ports import free_port  # noqa: E402 - from the checkout
from runtimes import litellm_environment  # noqa: E402 - from the checkout

START_SECONDS: Final = 180
MIB: Final = 2**20
UNBOUNDED: Final = 2**40


@dataclass(frozen=True)
class Place:
    """Where a model is served, in the words of the tests."""

    name: str
    port: int


@dataclass
class System:
    """A running gateway, or the model server itself. `leaders` lead the sessions of its processes."""

    name: str
    port: int
    leaders: Sequence[int]
    key: str | None = None
    address: str = "127.0.0.1"
    source: str = "127.0.0.1"

    def processes(self) -> list[Process]:
        """List its processes that live."""
        return [process for leader in self.leaders for process in session_processes(leader) if process.state != "Z"]

    def cpu_seconds(self) -> float:
        """CPU time of its processes together."""
        return sum(process.cpu_seconds for process in self.processes())

    def memory(self) -> dict[str, Any]:
        """Resident and anonymous bytes: of every process, the largest first, and together."""
        held = sorted((memory_of(process.pid) for process in self.processes()), key=lambda each: -each["anonymous_bytes"])
        return {"processes": held, **{name: sum(each[name] for each in held) for name in ("resident_bytes", "anonymous_bytes")}}


def memory_of(pid: int) -> dict[str, int]:
    """Read what a process holds."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) * 1024
    return {"resident_bytes": fields["Rss:"], "anonymous_bytes": fields["Anonymous:"]}


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], *, port: int, path: str, output: Path) -> Iterator[int]:
    """Run a command in a session of its own until the end of the block; gives the session's leader once `path` is answered."""
    with output.open("ab") as file:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(port, path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer: {output.read_text(encoding='utf-8', errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@contextlib.contextmanager
def model_server(folder: Path) -> Iterator[System]:
    """Run the model server."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("backend.py")), str(port)]
    with running(command, os.environ, port=port, path="/state", output=folder / "backend.log") as leader:
        yield System("backend", port, [leader])


@contextlib.contextmanager
def edge(folder: Path, backend: System) -> Iterator[System]:
    """Run HAProxy from what the role edge renders, without limits per client; the model server stands where the gateway does."""
    folder.mkdir()
    made = make_edge(folder, edge_keyless_requests_per_minute=0, edge_keyless_concurrent_requests=0)
    # The edge listens on the gateway's port as well, on its own address, and asks the gateway's supervisor how it is.
    made.gateway_port = made.gateway.state_port = backend.port
    configuration = write_configuration(folder, made.variables)
    command = [tool("haproxy"), "-db", "-f", str(configuration)]
    with running(command, os.environ, port=made.exporter_port, path="/metrics", output=folder / "log") as leader:
        yield System("edge", backend.port, [leader], address=SERVER, source=TRUSTED)


@contextlib.contextmanager
def stock(folder: Path, backend: System, *, workers: int, settings: Mapping[str, Any] | None = None) -> Iterator[System]:
    """Run LiteLLM as its documentation says: models, a master key and nothing else."""
    folder.mkdir()
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": f"http://127.0.0.1:{backend.port}/v1", "api_key": "none"},
        }
        for name in MODELS
    ]
    document = {"model_list": models, "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"}, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    port = free_port()
    command = [str(litellm_environment() / "bin" / "litellm"), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", str(workers)]
    # The map of prices from the package: without this the start waits for a download that the network may not let through.
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LITELLM_MASTER_KEY": MASTER_KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    with running(command, environment, port=port, path="/health/readiness", output=folder / "log") as leader:
        yield System("stock", port, [leader], MASTER_KEY)


@contextlib.contextmanager
def ours(
    folder: Path,
    backend: System,
    *,
    workers: int,
    variables: Mapping[str, Any] | None = None,
    worker_memory_max_bytes: int = UNBOUNDED,
) -> Iterator[System]:
    """Run LiteLLM from what the role gateway renders."""
    folder.mkdir()
    places = [upstream(Place(model, backend.port)) for model in MODELS]
    given = {"gateway_edge_state_url": f"http://127.0.0.1:{backend.port}/state", **(variables or {})}
    with Gateway(folder, places, given, workers=workers, worker_memory_max_bytes=worker_memory_max_bytes) as gateway:
        yield System("ours", gateway.port, [gateway.supervised.main_process()], MASTER_KEY)
