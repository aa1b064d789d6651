"""The real LiteLLM on loopback, started from what the role gateway renders: the tests' stand-in for systemd.

Command, with the supervisor in it, and environment come from the rendered files, so what is tested is what a host runs.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ansible.parsing.dataloader import DataLoader

from journal import Entry, Journal
from ports import free_port
from rendering import PROJECT, render, role_defaults
from runtimes import litellm_environment
from supervised import SUPERVISOR, Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.backend import Backend

ROLE = PROJECT / "roles" / "gateway"
INSTANCE = "unified-api-gateway"
MASTER_KEY = "sk-0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"

# What the catalogue says of each model, as the filter `citadel_upstreams` hands it to the role.
MODELS: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": {"context_tokens": 32768, "specialisation": ["reasoning", "long-form"], "description": "Mixture of experts"},
    "hermes-2": {"context_tokens": 8192, "specialisation": ["dialogue"], "description": "Conversations: dialogue # coherence"},
    "openchat-3.5": {"context_tokens": 4096, "specialisation": ["streaming"], "description": "Interactive"},
    "phi-3-mini": {"context_tokens": 2048, "specialisation": ["efficiency"], "description": "Small and quick"},
}


def upstream(backend: Backend) -> dict[str, Any]:
    """One entry of `gateway_upstreams` for a backend that stands for the model of its name."""
    model = MODELS[backend.name]
    return {
        "service": backend.name,
        "model": backend.name,
        "host": "hx-llm-server-01",
        "api_base": f"http://127.0.0.1:{backend.port}/v1",
        "context_tokens": model["context_tokens"],
        "max_output_tokens": model["context_tokens"],
        "modes": ["chat", "completion"],
        "specialisation": model["specialisation"],
        "description": model["description"],
        "max_num_seqs": 4,
    }


@dataclass(frozen=True)
class Response:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> dict[str, Any]:
        """Read the body as a JSON object."""
        document: dict[str, Any] = json.loads(self.text)
        return document

    def events(self) -> list[dict[str, Any]]:
        """Read the JSON events of a stream, which must have ended with [DONE]."""
        data = [line.removeprefix("data: ") for line in self.text.splitlines() if line.startswith("data: ")]
        assert data, self.text
        assert data[-1] == "[DONE]", self.text
        return [json.loads(line) for line in data[:-1]]


@dataclass
class Gateway:
    """A LiteLLM that serves `upstreams`, under its supervisor; use it as a context manager.

    `variables` are role variables over the role's defaults. Starting fails with the end of the output when LiteLLM does not answer.
    """

    folder: Path
    upstreams: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    worker_memory_max_bytes: int = 2**30

    def __enter__(self) -> Self:
        self._journal = Journal().__enter__()
        try:
            self._start()
        except BaseException:
            self._journal.__exit__()
            raise
        return self

    def _start(self) -> None:
        self.port = free_port()
        self.log_file = self.folder / "log" / INSTANCE / f"{INSTANCE}.log"
        self.output_file = self.folder / "output"
        self._render()
        service = directives((self.folder / "10-exec.conf").read_text(encoding="utf-8"))
        environment = _environment(self.folder / f"{INSTANCE}.env") | {"CREDENTIALS_DIRECTORY": str(self.folder / "credentials")}
        self.supervised = Supervised(shlex.split(service["ExecStart"][-1]), self.output_file, environment).__enter__()
        self.process = self.supervised.process
        try:
            self.supervised.until_ready(seconds=float(service["TimeoutStartSec"][-1]))
        except BaseException:
            self.supervised.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.supervised.__exit__()
        self._journal.__exit__()

    def output(self) -> str:
        """Read what LiteLLM wrote to its standard output and error, which systemd hands to the journal line by line."""
        return self.output_file.read_text(encoding="utf-8", errors="replace")

    def journal(self) -> list[Entry]:
        """Read what LiteLLM gave to the journal itself."""
        return self._journal.entries()

    def log(self) -> str:
        """Read what LiteLLM wrote to its log file."""
        return self.log_file.read_text(encoding="utf-8")

    def request(
        self, method: str, path: str, body: object = None, *, key: str | None = MASTER_KEY, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request on a connection of its own; `body` is sent as JSON, or as it is where it is bytes."""
        sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key is not None else {}) | dict(headers or {})
        payload = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        # Its supervisor waits until somebody has heard what it says, and holds no more than ten signs of life back.
        self.supervised.read()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=payload, headers=sent)
            answer = connection.getresponse()
            text = answer.read().decode()
            return Response(status=answer.status, headers={name.lower(): value for name, value in answer.getheaders()}, text=text)
        finally:
            connection.close()

    def post(self, path: str, body: object) -> Response:
        """Send a POST with the master key."""
        return self.request("POST", path, body)

    def get(self, path: str) -> Response:
        """Send a GET with the master key."""
        return self.request("GET", path)

    def _render(self) -> None:
        config = self.folder / "config"
        for folder in (config, self.folder / "cache", self.folder / "run", self.log_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        models = dict.fromkeys(place["model"] for place in self.upstreams)
        variables: dict[str, Any] = (
            role_variables()
            | {
                "gateway_plan": plan(self.port, self.workers) | {"worker_memory_max_bytes": self.worker_memory_max_bytes},
                "gateway_state_port": free_port(),
                "gateway_stop_notice_seconds": 0,
                "gateway_upstreams": list(self.upstreams),
                "gateway_routing_rules": [{"name": "otherwise", "models": sorted(models, key=lambda name: name != "hermes-2")}],
                "gateway_runtime_path": str(litellm_environment()),
                "gateway_config_directory": str(config),
                "gateway_cache_directory": str(self.folder / "cache"),
                "gateway_runtime_directory": str(self.folder / "run"),
                "gateway_log_directory": str(self.folder / "log"),
                "gateway_supervisor": str(SUPERVISOR),
                "gateway_log_handler": str(SUPERVISOR.with_name("citadel_log_file.py")),
                "gateway_journal_socket": str(self._journal.socket),
            }
            | dict(self.variables)
        )
        for template, target in (
            ("config.yaml", config / "config.yaml"),
            ("routing.json", config / "routing.json"),
            ("logging.yaml", config / "logging.yaml"),
            ("environment.env", self.folder / f"{INSTANCE}.env"),
            ("10-exec.conf", self.folder / "10-exec.conf"),
        ):
            target.write_text(render(ROLE / "templates" / f"{template}.j2", variables), encoding="utf-8")
        for module in (ROLE / "files").glob("*.py"):
            shutil.copy(module, config)
        credentials = self.folder / "credentials"
        credentials.mkdir(exist_ok=True)
        (name, _) = directives((self.folder / "10-exec.conf").read_text(encoding="utf-8"))["LoadCredential"][0].split(":")
        (credentials / name).write_text(f"LITELLM_MASTER_KEY {MASTER_KEY}\n", encoding="utf-8")


def role_variables() -> dict[str, Any]:
    """Read the role's defaults and its own variables, as Ansible does for a host that sets none of them."""
    return role_defaults("gateway") | dict(DataLoader().load_from_file(str(ROLE / "vars" / "main.yml"), trusted_as_template=True))


def plan(port: int, workers: int) -> dict[str, Any]:
    """Write the gateway's slice of a plan that shares all CPUs of this machine."""
    cpus = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    return {
        "name": INSTANCE,
        "unit": f"citadel-llm@{INSTANCE}.service",
        "port": port,
        "workers": workers,
        "worker_memory_max_bytes": 1073741824,
        "memory_max_bytes": 2147483648,
        "cpu_set": cpus,
        "cpu_quota_percent": None,
        "cpu_weight": 400,
        "io_weight": 100,
        "tasks_max": 512,
    }


def directives(unit: str) -> dict[str, list[str]]:
    """Read all values of each directive of a unit file, continued lines joined; an empty value resets the list, as systemd does."""
    found: dict[str, list[str]] = {}
    for line in unit.replace("\\\n", " ").splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found[name] = [*found.get(name, []), value] if value else []
    return found


def _environment(file: Path) -> dict[str, str]:
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)
