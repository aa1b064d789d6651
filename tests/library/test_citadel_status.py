"""What the module reads of a host: real services on loopback, the real HAProxy, this process's real cgroup, and a mock of systemctl."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from edge.haproxy import MODELS, Edge, make_edge, until
from modules import run_module
from playing import place_program
from ports import free_port

MIB = 2**20
READINESS = "/health/readiness"
GATEWAY = "citadel-llm@unified-api-gateway.service"
MOCK_SYSTEMCTL = """#!{python}
import fnmatch, json, pathlib, sys
assert sys.argv[1] == "show", sys.argv
story = json.loads(pathlib.Path(sys.argv[0]).with_name("units.json").read_text())
if "problem" in story:
    sys.exit(story["problem"])
names = [word for word in sys.argv[2:] if not word.startswith("-")]
wanted = {{word.removeprefix("--property=") for word in sys.argv[2:] if word.startswith("--property=")}}
found = [name for pattern in names for name in (fnmatch.filter(story, pattern) if "*" in pattern else [pattern])]
for name in found:
    unit = {{"Id": name}} | story.get(name, {{"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}})
    print("".join(f"{{key}}={{value}}\\n" for key, value in unit.items() if key in wanted))
"""
# As vLLM 0.32 writes them; two engines.
VLLM_METRICS = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="hermes-2"} 3.0
vllm:num_requests_running{engine="1",model_name="hermes-2"} 1.0
vllm:num_requests_waiting{engine="0",model_name="hermes-2"} 12.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="hermes-2",reason="capacity"} 12.0
vllm:kv_cache_usage_perc{engine="0",model_name="hermes-2"} 0.125
vllm:kv_cache_usage_perc{engine="1",model_name="hermes-2"} 6.25e-02
"""
PROMETHEUS_METRICS = """go_info{version="go1.19.8"} 1
prometheus_build_info{branch="debian/sid",goversion="go1.19.8",revision="2.42.0+ds-5",version="2.42.0+ds"} 1
"""
NODE_METRICS = 'node_exporter_build_info{branch="debian/sid",goversion="go1.19.3",revision="1.5.0-1",version="1.5.0"} 1\n'


class Service(ThreadingHTTPServer):
    """A service on loopback that answers given pages, or accepts and says nothing where `silent` is set."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, pages: dict[str, tuple[int, str]]) -> None:
        self.pages = pages
        self.answering = threading.Event()
        self.answering.set()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port = self.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answering.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.answering.wait(60)
        status, text = self.server.pages.get(self.path, (404, ""))
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except ConnectionError:
            pass  # whoever asked did not wait


def state(name: str, detail: str) -> dict[str, tuple[int, str]]:
    text = json.dumps({"state": name, "detail": detail, "since": "2026-11-24T02:05:10Z"})
    return {"/state": (200 if name == "generating" else 503, text)}


def unit(name: str, **properties: object) -> dict[str, dict[str, Any]]:
    running = {
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "NRestarts": 0,
        "ActiveEnterTimestamp": "Tue 2026-11-24 01:00:00 CET",
        "StateChangeTimestamp": "Tue 2026-11-24 01:00:01 CET",
        "MainPID": 0,
    }
    return {name: running | properties}


def plan(models: dict[str, tuple[int, int]], *, gateway_port: int, prometheus_port: int) -> dict[str, Any]:
    """The keys of a plan that the module reads; of each model API and state port."""
    return {
        "device": "cpu",
        "services": [
            {"name": name, "unit": f"citadel-llm@{name}.service", "api_port": api, "state_port": told, "memory_max_bytes": 1568 * MIB}
            for name, (api, told) in models.items()
        ],
        "gateway": {"name": "unified-api-gateway", "unit": GATEWAY, "port": gateway_port, "memory_max_bytes": 2048 * MIB},
        "monitoring": {"prometheus_port": prometheus_port},
        "slice": {"memory_max_bytes": 8000 * MIB},
    }


def look(
    folder: Path,
    deployed: dict[str, Any] | str | None,
    units: dict[str, Any] | None,
    **options: object,
) -> dict[str, Any]:
    """Run the module as Ansible does, `deployed` is the plan, its text or none; without `units` there is not even the mock of systemctl."""
    if units is not None:
        place_program(folder / "mock" / "systemctl", MOCK_SYSTEMCTL.format(python=sys.executable))
        (folder / "mock" / "units.json").write_text(json.dumps(units), encoding="utf-8")
    if deployed is not None:
        (folder / "plan.json").write_text(deployed if isinstance(deployed, str) else json.dumps(deployed), encoding="utf-8")
    environment = {"TZ": "Europe/Berlin", "PATH": str(folder / "mock")}
    found = run_module("citadel_status", environment=environment, plan_file=str(folder / "plan.json"), **options)
    assert found["changed"] is False, found
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {service["name"]: service for service in found["services"]}


def own_cgroup() -> str:
    """The cgroup that counts this process's memory."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    groups = {controllers: group for _, controllers, group in lines}
    return next((group for controllers, group in groups.items() if "memory" in controllers.split(",")), groups.get("", ""))


@pytest.fixture
def services() -> Iterator[dict[str, Service]]:
    """hermes-2, whose supervisor and vLLM listen on two ports, the gateway, Prometheus and the node exporter."""
    pages = {
        "state": state("generating", "generating"),
        "vllm": {"/metrics": (200, VLLM_METRICS)},
        "gateway": {READINESS: (200, '{"status": "healthy"}')},
        "prometheus": {"/metrics": (200, PROMETHEUS_METRICS)},
        "node": {"/metrics": (200, NODE_METRICS)},
    }
    running = {name: Service(answers).__enter__() for name, answers in pages.items()}
    yield running
    for service in running.values():
        service.__exit__()


def deployed(services: dict[str, Service]) -> dict[str, Any]:
    ports = {name: service.port for name, service in services.items()}
    return plan({"hermes-2": (ports["vllm"], ports["state"])}, gateway_port=ports["gateway"], prometheus_port=ports["prometheus"])


def test_everything_that_is_well(services: dict[str, Service], tmp_path: Path) -> None:
    command = "{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 -- /opt/citadel/runtime/vllm/0.32.0-1a2b3c4d5e6f/bin/python -m vllm ; }"
    units = (
        unit("citadel-llm@hermes-2.service", NRestarts=2, StatusText="generating since 03:05:10", ExecStart=command)
        | unit(GATEWAY)
        | unit("haproxy.service")
        | unit("prometheus.service")
        | unit("prometheus-node-exporter.service")
    )
    edge_port = free_port()
    found = look(tmp_path, deployed(services), units, edge_exporter_port=edge_port, node_exporter_port=services["node"].port)
    assert (found["plan"]["problem"], found["plan"]["device"], found["units_problem"], found["unplanned"]) == ("", "cpu", "", [])
    hermes, gateway, edge, prometheus, node = found["services"]
    assert (
        hermes
        | {
            "name": "hermes-2",
            "kind": "model",
            "state": "generating",
            "detail": "generating",
            "since": "2026-11-24 03:05:10",
            "restarts": 2,
            "result": "success",
            "running": 4,
            "waiting": 12,
            "kv_cache_percent": 12,
            "version": "0.32.0-1a2b3c4d5e6f",
            "planned_limit_bytes": 1568 * MIB,
            "asked": f"127.0.0.1:{services['state'].port}/state",
        }
        == hermes
    )
    assert (gateway["answers"], gateway["since"], gateway["workers_bytes"]) == (True, "2026-11-24 01:00:00", [])
    assert (edge["answers"], edge["version"], hermes["breaker"]) == (False, None, None), "no edge is a fact and no failure"
    assert (prometheus["answers"], prometheus["version"]) == (True, "2.42.0+ds")
    assert (node["answers"], node["version"]) == (True, "1.5.0")
    assert found["alerts"] == []


def test_alerts_that_fire(services: dict[str, Service], tmp_path: Path) -> None:
    def alert(name: str, state: str, began: str) -> dict[str, Any]:
        labels = {"alertname": name, "severity": "critical", "host": "a", "model": "hermes-2"}
        return {"labels": labels, "annotations": {"summary": f"{name} it is."}, "state": state, "activeAt": began, "value": "0e+00"}

    fired = [alert("OomKill", "firing", "2026-11-24T02:05:10.371Z"), alert("ModelDown", "firing", "2026-11-24T02:04:10Z")]
    pending = alert("BreakerOpen", "pending", "2026-11-24T02:04:10Z")
    answer = json.dumps({"status": "success", "data": {"alerts": [*fired, pending]}})
    services["prometheus"].pages |= {"/api/v1/alerts": (200, answer)}
    found = look(tmp_path, deployed(services), {})
    assert found["alerts"] == [
        {"name": "ModelDown", "severity": "critical", "summary": "ModelDown it is.", "since": "2026-11-24 03:04:10"},
        {"name": "OomKill", "severity": "critical", "summary": "OomKill it is.", "since": "2026-11-24 03:05:10"},
    ]


def test_alerts_that_cannot_be_read_are_said_to_be(services: dict[str, Service], tmp_path: Path) -> None:
    for answer, problem in (
        ((503, "Service Unavailable"), "it answers 503"),
        ((200, '{"data": {"alerts": [{"state": "firing"}]}}'), "its answer cannot be read, KeyError: 'activeAt'"),
    ):
        services["prometheus"].pages |= {"/api/v1/alerts": answer}
        found = look(tmp_path, deployed(services), {})
        assert (found["alerts"], found["alerts_problem"]) == ([], problem)
    # Cut off, as by a time-out.
    services["prometheus"].pages |= {"/api/v1/alerts": (0, "")}
    assert look(tmp_path, deployed(services), {})["alerts_problem"] == "it does not answer in time"


def test_everything_that_is_down(services: dict[str, Service], tmp_path: Path) -> None:
    text = "failed at 03:02:40 while loading weights 3/12: VLLM::Worker (process 12) ended"
    units = unit("citadel-llm@hermes-2.service", ActiveState="failed", SubState="failed", Result="exit-code", NRestarts=5, StatusText=text)
    units |= unit("citadel-llm@retired.service")
    units |= unit("citadel-llm@stopped.service", ActiveState="inactive")
    wanted = deployed(services)
    for service in services.values():
        service.__exit__()
    found = look(tmp_path, wanted, units, check=True, edge_exporter_port=free_port(), node_exporter_port=services["node"].port)
    hermes = by_name(found)["hermes-2"]
    assert (hermes["answers"], hermes["state"], hermes["running"], hermes["kv_cache_percent"]) == (False, None, None, None)
    assert (hermes["active_state"], hermes["result"], hermes["status_text"]) == ("failed", "exit-code", text)
    assert (hermes["since"], hermes["held_bytes"], hermes["limit_bytes"]) == ("2026-11-24 01:00:01", None, None)
    assert {service["load_state"] for service in found["services"][1:]} == {"not-found"}
    assert found["unplanned"] == ["citadel-llm@retired.service"]


def test_what_is_loading_says_so_with_its_503(services: dict[str, Service], tmp_path: Path) -> None:
    services["state"].pages = state("process", "loading weights 3/12")
    hermes = by_name(look(tmp_path, deployed(services), unit("citadel-llm@hermes-2.service", ActiveState="activating")))["hermes-2"]
    assert (hermes["answers"], hermes["state"], hermes["detail"]) == (True, "process", "loading weights 3/12")


def test_a_stranger_on_a_port_is_no_answer(services: dict[str, Service], tmp_path: Path) -> None:
    texts = ["<html>another service</html>", "[1]", '"generating"', '{"state": ["generating"]}', '{"state": "generating", "since": 3}', ""]
    metrics = "vllm:num_requests_running{} many\nvllm:kv_cache_usage_perc NaN\nwhat?\n"
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(Service({"/state": (200, text), "/metrics": (200, metrics)})).port for text in texts]
        wanted = deployed(services) | {
            "services": plan({f"m{port}": (port, port) for port in ports}, gateway_port=1, prometheus_port=1)["services"]
        }
        found = look(tmp_path, wanted, {})["services"][: len(texts)]
    assert [model["state"] for model in found] == [None, None, None, None, "generating", None]
    assert {(model["running"], model["kv_cache_percent"]) for model in found} == {(None, None)}


def test_those_who_accept_and_say_nothing_are_waited_for_once_and_together(services: dict[str, Service], tmp_path: Path) -> None:
    for service in services.values():
        service.answering.clear()
    began = time.monotonic()
    found = look(tmp_path, deployed(services), {}, timeout_seconds=5, node_exporter_port=services["node"].port)
    assert time.monotonic() - began < 5 + 15, "five that are silent for 5 s each would take 25 s, one after the other"
    assert {service["answers"] for service in found["services"]} == {False}


def test_memory_and_workers_are_those_of_the_kernel(services: dict[str, Service], tmp_path: Path) -> None:
    """A unit in this process's cgroup holds something; of the processes in it the one that is LiteLLM by its command is the worker."""
    group = own_cgroup()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "litellm").write_text("import sys; held = bytearray(b'1') * (64 << 20); print(1, flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, tmp_path / "bin" / "litellm"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as litellm:
        try:
            assert litellm.stdout is not None
            assert litellm.stdout.readline() == b"1\n"
            units = unit("citadel-llm@hermes-2.service", ControlGroup=group) | unit(GATEWAY, ControlGroup=group, MainPID=os.getpid())
            found = look(tmp_path, deployed(services), units | unit("citadel-llm.slice", ControlGroup=group))
        finally:
            litellm.kill()
    # The root of version 2 has no limit that could be read.
    if found["slice"]["held_bytes"] is None:
        pytest.skip(f"the kernel tells no limit of this process's cgroup {group}")
    assert found["slice"]["held_bytes"] > 64 * MIB
    assert found["slice"]["planned_limit_bytes"] == 8000 * MIB
    assert by_name(found)["hermes-2"]["held_bytes"] > 64 * MIB
    assert any(64 * MIB < size < 100 * MIB for size in by_name(found)["gateway"]["workers_bytes"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "does not exist"),
        ("{half a pla", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
        ('{"services": []}', "is not a plan as this version of the project writes it (KeyError: 'device')"),
    ],
    ids=["none", "half", "another version"],
)
def test_without_a_plan_it_says_why_and_what_runs_nevertheless(tmp_path: Path, text: str | None, problem: str) -> None:
    found = look(tmp_path, text, unit("citadel-llm@hermes-2.service"), gateway=False, monitoring=False)
    assert (found["plan"]["problem"], found["services"], found["unplanned"]) == (problem, [], ["citadel-llm@hermes-2.service"])


def test_a_host_without_gateway_and_monitoring(services: dict[str, Service], tmp_path: Path) -> None:
    found = look(tmp_path, deployed(services), unit(GATEWAY, ActiveState="inactive"), gateway=False, monitoring=False)
    assert [service["name"] for service in found["services"]] == ["hermes-2", "edge"]


def test_a_systemd_that_does_not_tell_leaves_what_the_services_say(services: dict[str, Service], tmp_path: Path) -> None:
    found = look(tmp_path, deployed(services), {"problem": "Failed to connect to bus: Host is down\n"})
    assert found["units_problem"] == "Failed to connect to bus: Host is down"
    hermes = by_name(found)["hermes-2"]
    assert (hermes["active_state"], hermes["restarts"], hermes["state"]) == (None, None, "generating")


def test_a_host_without_systemd_has_nothing_deployed(tmp_path: Path) -> None:
    found = look(tmp_path, None, None)
    assert (found["plan"]["problem"], found["units_problem"]) == ("does not exist", "systemctl: No such file or directory")


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    running = make_edge(tmp_path_factory.mktemp("edge"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_the_breakers_are_those_of_the_real_edge(edge: Edge, tmp_path: Path) -> None:
    edge.models["openchat-3.5"].health_status = 503
    until(lambda: edge.health().json["models"]["openchat-3.5"] == "unhealthy", what="the breaker opens")
    models = {name: (edge.api_ports[name], int(edge.models[name].state_port or 0)) for name in MODELS}
    wanted = plan(models, gateway_port=edge.gateway_port, prometheus_port=edge.prometheus_port)
    found = by_name(look(tmp_path, wanted, unit("haproxy.service"), edge_exporter_port=edge.exporter_port, edge_state_port=edge.state_port))
    assert {name: found[name]["breaker"] for name in MODELS} == dict.fromkeys(MODELS, "closed") | {"openchat-3.5": "open"}
    assert {name: found[name]["state"] for name in MODELS} == dict.fromkeys(MODELS, "generating") | {"openchat-3.5": "hung"}
    assert found["edge"]["answers"]
    assert found["edge"]["version"].startswith("2.")
    assert found["gateway"]["answers"]
