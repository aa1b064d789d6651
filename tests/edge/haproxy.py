"""A real HAProxy with the role's own templates, on loopback addresses and free ports."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from ansible.parsing.dataloader import DataLoader

from edge.backends import LOOPBACK, Backend
from ports import free_ports
from rendering import PROJECT, render, role_defaults
from supervised import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

TEMPLATES = PROJECT / "roles" / "edge" / "templates"
MODELS = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")

# All of 127.0.0.0/8 is this machine. The services listen on 127.0.0.1; "the server's address" and everybody's are others.
SERVER = "127.0.20.1"
TRUSTED = "127.0.20.17"
TRUSTED_NETWORK = "127.0.20.16/28"
MONITOR = "127.0.20.33"
STRANGER = "127.0.30.1"
# Programs that are not called as their Debian package.
PACKAGES = {"amtool": "prometheus-alertmanager", "promtool": "prometheus", "ss": "iproute2", "systemd-analyze": "systemd"}
KEY = "sk-test-key-of-the-gateway"
ROLE = DataLoader().load_from_file(str(PROJECT / "roles" / "edge" / "vars" / "main.yml"))

# Clients by name, and their keys.
CLIENT_KEYS = {name: f"sk-test-key-of-{name}" for name in ("web-shop", "hasty", "greedy", "picky")}


def tool(name: str) -> str:
    """Find a program, Debian's directories for root included; fail with a sentence where it is missing."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    if path is None:
        pytest.fail(f"{name} is not installed here: install the distribution's package {PACKAGES.get(name, name)}")
    return path


def until(condition: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS, what: str) -> float:
    """Wait until `condition` holds and return the seconds that it took. Fails, saying `what` did not happen, after `seconds`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - start


def write_configuration(directory: Path, variables: Mapping[str, Any]) -> Path:
    """Render the role's files into `directory` as tasks/configure.yml places them on a host; the path of haproxy.cfg.

    What only root may do (chroot, another user) is left out, and the key of the gateway is KEY, so the tests need no rights.
    """
    values = (
        role_defaults("edge")
        | {"edge_configuration_directory": str(directory), "edge_stats_socket": str(directory / "stats")}
        | dict(variables)
        | {"edge_gateway_secret_file": str(directory / "gateway.key")}
    )
    write_key(directory)
    for name in ("api", "metrics"):
        entry = {"name": f"{name}-ports.map", "ports": values[f"edge_{name}_ports"]}
        (directory / entry["name"]).write_text(render(TEMPLATES / "ports.map.j2", values | {"__edge_map": entry}), encoding="utf-8")
    for limit in ROLE["__edge_limits"]:
        text = render(TEMPLATES / "clients.map.j2", values | {"__edge_limit": limit})
        (directory / f"client-{limit.replace('_', '-')}.map").write_text(text, encoding="utf-8")
    (directory / "client-node-keys.map").write_text(render(TEMPLATES / "node-keys.map.j2", values), encoding="utf-8")
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} {name}\n" for name, key in CLIENT_KEYS.items()]
    (directory / "client-keys.map").write_text("".join(lines), encoding="utf-8")
    (directory / "client-keys.map").chmod(0o640)
    text = render(TEMPLATES / "haproxy.cfg.j2", values)
    configuration = directory / "haproxy.cfg"
    configuration.write_text(re.sub(r"^ +(chroot|user|group) .*\n", "", text, flags=re.MULTILINE), encoding="utf-8")
    return configuration


def write_key(directory: Path, key: str = KEY) -> None:
    """Write the file of the gateway's key as the role gateway does."""
    (directory / "gateway.key").write_text(f"LITELLM_MASTER_KEY {key}\n", encoding="utf-8")


def bearer(name: str) -> dict[str, str]:
    """Give the header with which the client `name` brings its key."""
    return {"Authorization": f"Bearer {CLIENT_KEYS[name]}"}


@dataclass(frozen=True)
class Answer:
    """What a client got; header names in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON is of any type
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in the shape that OpenAI's clients read; fails where the body is another."""
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return dict(error)


def ask(
    port: int,
    target: str,
    *,
    method: str = "GET",
    source: str = TRUSTED,
    address: str = SERVER,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 20,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request from the address `source`; the target goes out exactly as given."""
    connection = http.client.HTTPConnection(address, port, source_address=(source, 0), timeout=timeout)
    if tls is not None:
        connection = http.client.HTTPSConnection(address, port, source_address=(source, 0), timeout=timeout, context=tls)
    try:
        connection.request(method, target, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Answer(status=response.status, headers={name.lower(): value for name, value in response.getheaders()}, body=response.read())
    finally:
        connection.close()


@dataclass
class Edge:
    """A running HAProxy, the services behind it and the ports of both."""

    directory: Path
    gateway_port: int
    prometheus_port: int
    exporter_port: int
    state_port: int
    api_ports: dict[str, int]
    metrics_ports: dict[str, int]
    upstream_ports: dict[str, int]
    models: dict[str, Backend]
    gateway: Backend
    prometheus: Backend
    process: subprocess.Popen[bytes] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the playbook would hand to the role. The metrics ports are chained as the plan chains them."""
        return {
            "edge_server_addresses": [SERVER],
            "edge_monitoring_networks": [f"{MONITOR}/32"],
            "edge_trusted_networks": [TRUSTED_NETWORK],
            "edge_environment": "development",
            "edge_services": [
                {
                    "name": name,
                    "api_port": self.api_ports[name],
                    "state_port": model.state_port,
                    "upstream_port": self.upstream_ports[name],
                    "max_num_seqs": 2,
                    "max_waiting": 8,
                }
                for name, model in self.models.items()
            ],
            "edge_api_ports": [{"port": port, "service": name} for name, port in self.api_ports.items()],
            "edge_metrics_ports": [{"port": self.api_ports[MODELS[0]], "service": MODELS[0]}]
            + [{"port": port, "service": name} for name, port in self.metrics_ports.items()],
            "edge_gateway_port": self.gateway_port,
            "edge_prometheus_port": self.prometheus_port,
            "edge_exporter_port": self.exporter_port,
            "edge_state_port": self.state_port,
            "edge_gateway_state_port": self.gateway.state_port,
            "edge_gateway_hold_seconds": 60,
            "edge_check_interval_milliseconds": 200,
            "edge_check_fast_interval_milliseconds": 100,
            "edge_check_timeout_milliseconds": 1000,
            "edge_breaker_pause_seconds": 2,
            "edge_breaker_longest_pause_seconds": 4,
        } | self.options

    def start(self, *, source: str = TRUSTED) -> None:
        """Start every service and HAProxy; returns when all are healthy in its eyes, which `source` may ask about."""
        for backend in (*self.models.values(), self.gateway, self.prometheus):
            backend.start()
        self.start_haproxy()
        until(lambda: self.health(source).status == 200, what="the edge finds everything healthy")

    def start_haproxy(self) -> None:
        """Start HAProxy as the unit does, a master with a worker; returns when it answers."""
        configuration = write_configuration(self.directory, self.variables)
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [tool("haproxy"), "-W", "-f", str(configuration), "-p", str(self.directory / "pid")],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, what=f"HAProxy answers; its log says: {self.log()}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return ask(self.exporter_port, "/metrics", source=LOOPBACK, address=LOOPBACK).status == 200
        except OSError:
            return False

    def reload(self) -> None:
        """Reload HAProxy as the unit does; returns when the new worker has taken over and the old one takes nothing any more."""
        assert self.process is not None
        # The old one is told before the new one counts as loaded, and may hear of it afterwards where the processors are busy.
        signs = ("Loading success", "Proxy edge_gateway stopped")
        before = {sign: self.log().count(sign) for sign in signs}
        self.process.send_signal(signal.SIGUSR2)
        until(lambda: all(self.log().count(sign) > before[sign] for sign in signs), what="HAProxy has reloaded")

    def stop(self) -> None:
        """End HAProxy, by the pid of its master, and every service."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        for backend in (*self.models.values(), self.gateway, self.prometheus):
            backend.gate.set()
            backend.generation_gate.set()
            backend.chunks.release(30)
            backend.stop()

    def connection(self, way: str, model: str) -> http.client.HTTPConnection:
        """Prepare a connection of a client to the "gateway" or to the port of a "model", or of the gateway to the model ("upstream")."""
        address, port, source = {
            "gateway": (SERVER, self.gateway_port, TRUSTED),
            "model": (SERVER, self.api_ports[model], TRUSTED),
            "upstream": (LOOPBACK, self.upstream_ports[model], LOOPBACK),
        }[way]
        return http.client.HTTPConnection(address, port, source_address=(source, 0), timeout=10)

    def log(self) -> str:
        """Read what HAProxy has written so far."""
        path = self.directory / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def health(self, source: str = TRUSTED) -> Answer:
        """GET /health of the gateway."""
        return ask(self.gateway_port, "/health", source=source, tls=self.tls)


def make_edge(directory: Path, **options: Any) -> Edge:  # noqa: ANN401  # role variables are of any type
    """Prepare an edge with four models, a gateway and a Prometheus, none of them started yet; `options` are role variables."""
    numbers = iter(free_ports(22))
    gateway, prometheus, exporter, state = (next(numbers) for _ in range(4))
    api_ports = {name: next(numbers) for name in MODELS}
    # As on the real host: the metrics of each model on the API port of the next one, the last on a port without an API.
    metrics_ports = dict(zip(MODELS, [*list(api_ports.values())[1:], next(numbers)], strict=True))
    return Edge(
        directory=directory,
        gateway_port=gateway,
        prometheus_port=prometheus,
        exporter_port=exporter,
        state_port=state,
        api_ports=api_ports,
        metrics_ports=metrics_ports,
        upstream_ports={name: next(numbers) for name in MODELS},
        models={name: Backend(name, port, state_port=next(numbers)) for name, port in api_ports.items()},
        gateway=Backend("gateway", gateway, state_port=next(numbers)),
        prometheus=Backend("prometheus", prometheus),
        options=options,
    )
