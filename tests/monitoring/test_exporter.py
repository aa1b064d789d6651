"""What citadel-exporter writes: from a real plan, cgroups as the kernel writes them, real supervisors' pages and a mock of systemctl."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import citadel_cgroup
import citadel_exporter
from edge.haproxy import tool, until
from ports import free_port
from rendering import PROJECT, render, role_defaults
from unit.plan_examples import production_plan

FILES = PROJECT / "roles" / "monitoring" / "files"
UNIT = "citadel-llm@hermes-2.service"
GROUP = "/citadel.slice/citadel-llm.slice"
SUPERVISOR = """# HELP citadel_service_state 1 for the state that the service is in.
# TYPE citadel_service_state gauge
citadel_service_state{state="process"} 0
citadel_service_state{state="loaded"} 0
citadel_service_state{state="generating"} 1
citadel_service_state{state="hung"} 0
# HELP citadel_service_state_since_timestamp_seconds When it came into this state.
# TYPE citadel_service_state_since_timestamp_seconds gauge
citadel_service_state_since_timestamp_seconds 1795512000.125
a_stranger_is_not_passed_on 1
"""
# As vLLM 0.32's runtime is started.
COMMAND = "{ path=/usr/bin/python3 ; argv[]=/usr/bin/python3 -- /opt/citadel/runtime/vllm/0.32.0-1a2b3c4d5e6f/bin/python -m vllm ; }"


class Supervisor(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SUPERVISOR.encode())


@pytest.fixture(scope="module")
def supervisor_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Supervisor)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


class Host:
    """A folder that stands for a host: its plan, its cgroups, what systemctl says."""

    def __init__(self, folder: Path, supervisor_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.plan = production_plan().to_dict()
        nobody = free_port()
        for service in self.plan["services"]:
            service["state_port"] = supervisor_port if service["name"] == "hermes-2" else nobody
        self.units: dict[str, dict[str, object]] = {
            UNIT: {"ActiveState": "active", "NRestarts": 2, "ControlGroup": f"{GROUP}/{UNIT}", "MainPID": 0, "ExecStart": COMMAND},
            "citadel-llm@retired.service": {"ActiveState": "active"},
            "citadel-llm.slice": {"ActiveState": "active", "ControlGroup": GROUP},
        }
        for name in ("bin", "oom", "figures"):
            (folder / name).mkdir()
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        # The constant is the default of an argument.
        monkeypatch.setattr(citadel_cgroup.Cgroup.__init__, "__defaults__", (folder / "cgroups",))
        self.cgroup(GROUP, {"memory.stat": "anon 9000\nfile 1\nkernel 90\nshmem 900\n", "memory.max": "128801832960\n"})
        self.cgroup(
            f"{GROUP}/{UNIT}",
            {
                "memory.stat": "anon 1000\nfile 900000\nkernel 30\nshmem 200\n",
                "memory.max": "max\n",
                "memory.peak": "5000\n",
                "memory.events": "oom 1\noom_kill 1\n",
                "cpu.stat": "usage_usec 2500000\nnr_periods 40\nnr_throttled 10\nthrottled_usec 750000\n",
            },
        )

    def cgroup(self, group: str, files: dict[str, str]) -> None:
        folder = self.folder / "cgroups" / group.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)

    def write(self) -> None:
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        blocks = ["".join(f"{key}={value}\n" for key, value in {"Id": name, **unit}.items()) for name, unit in self.units.items()]
        (self.folder / "bin" / "units.txt").write_text("\n".join(blocks))
        script = self.folder / "bin" / "systemctl"
        script.write_text(f'#!/bin/sh\n[ "$1" = show ] && [ "$LC_ALL" = C ] && exec cat {self.folder}/bin/units.txt\nexit 9\n')
        script.chmod(0o755)

    def gather(self, keys: list[Path] | None = None, certificates: list[Path] | None = None) -> str:
        self.write()
        return citadel_exporter.gather(
            self.folder / "plan.json", self.folder / "oom", citadel_exporter.Files(keys or [], certificates or [])
        )


@pytest.fixture
def host(tmp_path: Path, supervisor_port: int, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, supervisor_port, monkeypatch)


def figures(page: str, service: str = "hermes-2") -> dict[str, float]:
    """Figures of one service, by name and what labels they have besides."""
    found = re.findall(rf'^citadel_service_(\w+)\{{service="{service}"(?:,model="{service}")?,?(.*)\}} (\S+)$', page, re.MULTILINE)
    return {f"{name} {labels}".strip(): float(value) for name, labels, value in found}


def test_promtool_finds_nothing_to_say(host: Host, tmp_path: Path) -> None:
    key = tmp_path / "some.key"
    key.touch()
    page = host.gather([key], [certificate(tmp_path)])
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    named = set(re.findall(r"^([a-z_]+)[{ ]", page, re.MULTILINE))
    assert named == set(citadel_exporter.FAMILIES) - {"citadel_service_progress_timestamp_seconds"}, "the supervisor here does not tell it"


def test_a_service_is_told_of_in_full(host: Host) -> None:
    planned = next(service for service in host.plan["services"] if service["name"] == "hermes-2")
    found = figures(host.gather())
    expected = {
        "memory_requested_bytes": planned["memory_requested_bytes"],
        "memory_granted_bytes": planned["memory_max_bytes"],
        'memory_planned_bytes part="weights"': planned["weights_bytes"],
        'memory_planned_bytes part="kv_cache"': planned["kv_cache_bytes"],
        'memory_planned_bytes part="runtime"': planned["runtime_bytes"],
        'memory_planned_bytes part="headroom"': planned["headroom_bytes"],
        "cpus_requested": planned["cpus_requested"],
        "cpus_allowed": planned["cpu_quota_percent"] / 100,
        "places": planned["max_num_seqs"],
        "context_tokens": planned["context_tokens"],
        "target_latency_seconds": 1.5,
        "memory_held_bytes": 1230,
        "memory_anonymous_bytes": 1000,
        "memory_peak_bytes": 5000,
        "memory_limit_bytes": float("inf"),
        "cpu_seconds_total": 2.5,
        "cpu_periods_total": 40,
        "cpu_throttled_periods_total": 10,
        "cpu_throttled_seconds_total": 0.75,
        "oom_kills_total": 1,
        "restarts_total": 2,
        'state state="process"': 0,
        'state state="loaded"': 0,
        'state state="generating"': 1,
        'state state="hung"': 0,
        "state_since_timestamp_seconds": 1795512000.125,
        f'info variant="{planned["variant"]}",runtime="vllm",version="0.32.0-1a2b3c4d5e6f"': 1,
    }
    assert found == expected


def test_what_does_not_run_has_a_plan_a_state_and_nothing_measured(host: Host) -> None:
    found = figures(host.gather(), "phi-3-mini")
    assert [value for name, value in found.items() if name.startswith("state ")] == [0, 0, 0, 0]
    assert {"memory_granted_bytes", "oom_kills_total"} <= set(found)
    assert set(found) & {"memory_held_bytes", "memory_limit_bytes", "cpu_seconds_total", "restarts_total"} == set()


def test_without_a_quota_the_set_of_cpus_counts(host: Host) -> None:
    host.plan["services"][1] |= {"cpu_quota_percent": None, "cpu_set": "0-3,8"}
    assert figures(host.gather())["cpus_allowed"] == 5


def test_the_host_as_a_whole(host: Host) -> None:
    page = host.gather()
    assert "citadel_unplanned_services 1\n" in page
    assert "citadel_slice_memory_held_bytes 9990\n" in page
    assert f"citadel_slice_memory_limit_bytes {host.plan['slice']['memory_max_bytes']}\n" in page
    assert 'citadel_plan_info{device="cpu",isa="amx",policy="rebalance"} 1\n' in page


def test_a_host_without_a_plan_has_keys_and_certificates(host: Host, tmp_path: Path) -> None:
    key = tmp_path / "gateway.key"
    key.touch()
    os.utime(key, (1795500000, 1795500000))
    page = citadel_exporter.gather(tmp_path / "none.json", tmp_path, citadel_exporter.Files([key, tmp_path / "none"], [tmp_path / "none"]))
    assert f'citadel_key_changed_timestamp_seconds{{file="{key}"}} 1795500000.0\n' in page
    assert "citadel_service" not in page


def certificate(folder: Path, days: int = 30) -> Path:
    file = folder / "edge.pem"
    request = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=edge",
        "-days",
        str(days),
    ]
    subprocess.run([tool("openssl"), *request, "-keyout", folder / "edge.key", "-out", file], check=True, capture_output=True, timeout=60)
    return file


def test_a_certificate_is_read_again_when_it_has_changed(host: Host, tmp_path: Path) -> None:
    file = certificate(tmp_path)
    known = citadel_exporter.Files([], [file])

    def expires() -> float:
        page = citadel_exporter.Page()
        known.tell(page)
        return float(re.findall(r"^citadel_certificate_expires_timestamp_seconds.* (\S+)$", page.text(), re.MULTILINE)[0])

    assert abs(expires() - time.time() - 30 * 86400) < 600
    certificate(tmp_path, days=90)
    os.utime(file, (1, 1))
    assert abs(expires() - time.time() - 90 * 86400) < 600


def words_at_the_end_of_a_service(oom_folder: Path) -> list[str]:
    """What systemd calls the program with when hermes-2 ends."""
    values = role_defaults("monitoring") | {"__monitoring_oom_folder": str(oom_folder)}
    drop_in = render(PROJECT / "roles" / "monitoring" / "templates" / "oom-kills.conf.j2", values)
    (command,) = re.findall(r"^ExecStopPost=-\+/usr/bin/python3 -sSE \S+/citadel_exporter\.py (.+)$", drop_in, re.MULTILINE)
    return [str(word) for word in command.replace("%n", UNIT).split()]


def test_kills_are_counted_beyond_the_life_of_the_cgroup(host: Host) -> None:
    """The kernel forgets them with the cgroup, and systemd removes that a moment after the service has ended."""
    host.units[UNIT]["ActiveState"] = "deactivating"
    host.write()
    assert figures(host.gather())["oom_kills_total"] == 0
    for count in (1, 2):
        citadel_exporter.main(words_at_the_end_of_a_service(host.folder / "oom" / "made"))
        assert (host.folder / "oom" / "made" / "hermes-2").read_text() == f"{count}\n"
    (host.folder / "oom" / "hermes-2").write_text("2\n")
    assert figures(host.gather())["oom_kills_total"] == 2
    host.units[UNIT]["ActiveState"] = "active"
    assert figures(host.gather())["oom_kills_total"] == 3, "those of this life are added"


def test_a_page_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "citadel.prom"
    long = "x" * 5_000_000
    reads: set[int] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            if file.exists():
                reads.add(len(file.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        citadel_exporter.write(file, long)
    ended.set()
    reader.join()
    assert reads == {len(long)}
    assert file.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [file]


class Manager:
    """Stands for systemd: reads all that it is told, as soon as it is told."""

    def __init__(self, path: Path) -> None:
        self.told: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while message := self._socket.recv(100):
            self.told.append(message)

    def is_told_again(self) -> Callable[[], bool]:
        before = len(self.told)
        return lambda: len(self.told) > before + 1


def test_it_goes_on_tells_systemd_and_takes_its_figures_back_when_it_has_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.write()
    file = host.folder / "figures" / "citadel.prom"
    manager = Manager(host.folder / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(host.folder / "notify"))
    words = ["--plan", host.folder / "plan.json", "--folder", file.parent, "--oom-folder", host.folder / "oom", "--interval-seconds", "0.2"]
    with subprocess.Popen([sys.executable, "-sSE", FILES / "citadel_exporter.py", *words], stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: len(manager.told) > 0, what="it is ready")
            first = file.read_text()
            until(lambda: file.read_text() != first, what="new figures")
            (host.folder / "plan.json").write_text('{"services": []}')
            until(lambda: not file.exists(), what="no old figures are left")
            until(manager.is_told_again(), what="it goes on without figures")
            host.write()
            until(file.exists, what="figures again")
            (host.folder / "bin" / "systemctl").write_text("#!/bin/sh\nexit 1\n")
            until(lambda: not file.exists(), what="no figures of units that systemd does not tell of")
        finally:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert set(manager.told) == {b"READY=1\nWATCHDOG=1"}
    assert re.fullmatch(r"no figures: KeyError: 'gateway'\nno figures: CalledProcessError: Command .* exit status 1\.\n", said), (
        "once, not at each run"
    )
