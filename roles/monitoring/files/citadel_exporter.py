"""Writes what no other exporter tells of a host's services: what was planned, what the kernel measures and what each supervisor says.

The node exporter reads the file (textfile collector). It appears whole or not at all, and it goes with this process, so that nobody takes old
figures for new ones: systemd removes the folder that it lies in when the service ends, and ends it when it writes no more.
"""

from __future__ import annotations

import argparse
import calendar
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from citadel_cgroup import Cgroup, CpuTime
from citadel_services import SLICE, STATES, get, read_units, runtime_of, samples, show_command, unplanned_units

FILE: Final = "citadel.prom"
UNIT_PROPERTIES: Final = ("Id", "ActiveState", "NRestarts", "ControlGroup", "MainPID", "ExecStart")
STATE_SECONDS: Final = 1.0
"""How long a supervisor may take to tell its state: it answers from memory."""

OPENSSL_SECONDS: Final = 10.0

Labels = Mapping[str, str]


class Family(NamedTuple):
    """What a metric is."""

    kind: str
    help: str


FAMILIES: Final = {
    "citadel_exporter_timestamp_seconds": Family("gauge", "When these figures were gathered."),
    "citadel_exporter_cpu_seconds_total": Family(
        "counter", "CPU time that gathering these figures has taken, what it has called included."
    ),
    "citadel_plan_info": Family("gauge", "The plan as deployed, 1."),
    "citadel_plan_written_timestamp_seconds": Family("gauge", "When the plan was deployed."),
    "citadel_unplanned_services": Family("gauge", "Services of the platform that run and are not in the plan."),
    "citadel_service_info": Family("gauge", "Variant of the weights and runtime of a service, 1."),
    "citadel_service_memory_requested_bytes": Family("gauge", "Memory that was asked for in the inventory."),
    "citadel_service_memory_granted_bytes": Family("gauge", "Memory that the plan grants: the limit that is to be in force."),
    "citadel_service_memory_planned_bytes": Family("gauge", "What the granted memory is for; the parts add up to it."),
    "citadel_service_cpus_requested": Family("gauge", "Physical cores that were asked for in the inventory."),
    "citadel_service_cpus_allowed": Family(
        "gauge", "CPUs that the service may use at most: its quota, or its set of CPUs where it has none."
    ),
    "citadel_service_places": Family("gauge", "Requests that the model works on at once."),
    "citadel_service_context_tokens": Family("gauge", "Tokens of a full context."),
    "citadel_service_target_latency_seconds": Family("gauge", "Target latency of the specification."),
    "citadel_service_memory_held_bytes": Family(
        "gauge", "Memory that cannot be reclaimed: anonymous, shared and the kernel's, no page cache."
    ),
    "citadel_service_memory_anonymous_bytes": Family("gauge", "Memory that the service's processes have allocated themselves."),
    "citadel_service_memory_peak_bytes": Family(
        "gauge", "The most that the kernel has charged to the service since it started, page cache included."
    ),
    "citadel_service_memory_limit_bytes": Family("gauge", "Limit that the kernel enforces; +Inf where it enforces none."),
    "citadel_service_cpu_seconds_total": Family("counter", "CPU time that the service has used since it started."),
    "citadel_service_cpu_periods_total": Family("counter", "Periods of the CPU quota in which the service ran."),
    "citadel_service_cpu_throttled_periods_total": Family("counter", "Periods in which the CPU quota held the service back."),
    "citadel_service_cpu_throttled_seconds_total": Family("counter", "Time for which the CPU quota held the service back."),
    "citadel_service_oom_kills_total": Family(
        "counter", "Processes of the service that the kernel has killed for want of memory, since the host started."
    ),
    "citadel_service_restarts_total": Family(
        "counter", "How often systemd has started the service again by itself since somebody started it last."
    ),
    "citadel_service_state": Family("gauge", "1 for the state that the service is in; 0 for all where its supervisor does not answer."),
    "citadel_service_state_since_timestamp_seconds": Family("gauge", "When it came into this state."),
    "citadel_service_progress_timestamp_seconds": Family("gauge", "When it was last seen to get on; 0 before it was ready."),
    "citadel_slice_memory_granted_bytes": Family("gauge", "Memory that the plan grants to models and gateway together."),
    "citadel_slice_memory_held_bytes": Family("gauge", "Memory that models and gateway together hold and that cannot be reclaimed."),
    "citadel_slice_memory_limit_bytes": Family(
        "gauge", "Limit that the kernel enforces for models and gateway together; +Inf where it enforces none."
    ),
    "citadel_key_changed_timestamp_seconds": Family("gauge", "When the file of a key was last changed."),
    "citadel_certificate_issued_timestamp_seconds": Family("gauge", "From when on a certificate is valid."),
    "citadel_certificate_expires_timestamp_seconds": Family("gauge", "Until when a certificate is valid."),
}


class Page:
    """Metrics in Prometheus' text format, those of a family together."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, name: str, value: float | None, **labels: str | None) -> None:
        """Add a figure; None is one that is not known. Labels that are None or empty are left out, as Prometheus itself would."""
        if value is None:
            return
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items() if text)
        figure = "+Inf" if value == float("inf") else repr(float(value)) if isinstance(value, float) else str(value)
        self._lines.setdefault(name, []).append(f"{name}{{{inside}}} {figure}" if inside else f"{name} {figure}")

    def text(self) -> str:
        """Give the page, its families in the order of :data:`FAMILIES`."""
        lines: list[str] = []
        for name, family in FAMILIES.items():
            if name in self._lines:
                lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}", *self._lines[name]]
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def cpus_in(cpu_set: str) -> int:
    """Count the CPUs of a set as systemd writes it: `0-3,8`."""
    ranges = [part.partition("-") for part in cpu_set.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def planned(page: Page, plan: Mapping[str, Any], labels: Labels, entry: Mapping[str, Any]) -> None:
    """Tell what the plan says of a service."""
    page.add("citadel_service_memory_requested_bytes", entry["memory_requested_bytes"], **labels)
    page.add("citadel_service_memory_granted_bytes", entry["memory_max_bytes"], **labels)
    for part in ("weights", "kv_cache", "runtime", "headroom"):
        page.add("citadel_service_memory_planned_bytes", entry.get(f"{part}_bytes"), **labels, part=part)
    page.add("citadel_service_cpus_requested", entry["cpus_requested"], **labels)
    quota = entry["cpu_quota_percent"]
    page.add("citadel_service_cpus_allowed", quota / 100 if quota else cpus_in(entry["cpu_set"]), **labels)
    page.add("citadel_service_places", entry.get("max_num_seqs"), **labels)
    page.add("citadel_service_context_tokens", entry.get("context_tokens"), **labels)
    if "target_latency_milliseconds" in entry:
        page.add("citadel_service_target_latency_seconds", entry["target_latency_milliseconds"] / 1000, **labels)


def measured(page: Page, labels: Labels, unit: Mapping[str, str]) -> None:
    """Tell what the kernel measures of a service that runs; nothing where it does not."""
    if not unit.get("ControlGroup"):
        return
    cgroup = Cgroup(unit["ControlGroup"])
    figures: dict[str, Callable[[], float]] = {
        "memory_held_bytes": cgroup.held_bytes,
        "memory_anonymous_bytes": cgroup.anonymous_bytes,
        "memory_peak_bytes": cgroup.peak_bytes,
        "memory_limit_bytes": lambda: cgroup.limit_bytes() or float("inf"),
    }
    for name, read in figures.items():
        with contextlib.suppress(OSError, KeyError):  # it has gone with its service, or the kernel does not tell this
            page.add(f"citadel_service_{name}", read(), **labels)
    time_used: CpuTime | None = None
    with contextlib.suppress(OSError, KeyError):
        time_used = cgroup.cpu_time()
    if time_used:
        page.add("citadel_service_cpu_seconds_total", time_used.used_seconds, **labels)
        page.add("citadel_service_cpu_periods_total", time_used.periods, **labels)
        page.add("citadel_service_cpu_throttled_periods_total", time_used.throttled_periods, **labels)
        page.add("citadel_service_cpu_throttled_seconds_total", time_used.throttled_seconds, **labels)


def oom_kills(folder: Path, name: str, unit: Mapping[str, str]) -> int:
    """Count the kills of earlier lives of the service, which :func:`count_oom_kills` has kept, and of this one."""
    count = 0
    with contextlib.suppress(OSError, ValueError):  # there was none yet
        count = int((folder / name).read_text())
    # One that ends has been counted already, or will be in a moment.
    if unit.get("ControlGroup") and unit.get("ActiveState") != "deactivating":
        with contextlib.suppress(OSError, KeyError):
            count += Cgroup(unit["ControlGroup"]).oom_kills()
    return count


def count_oom_kills(folder: Path, name: str, unit: str) -> None:
    """Keep the count of a service that ends: its cgroup, which has counted, goes with it."""
    group = read_units(_systemctl([unit])).get(unit, {}).get("ControlGroup")
    killed = Cgroup(group).oom_kills() if group else 0
    if killed:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / name, f"{oom_kills(folder, name, {}) + killed}\n")


def told(page: Page, labels: Labels, state_port: int) -> None:
    """Tell what the supervisor of a model says of itself."""
    answer = get(state_port, "/metrics", STATE_SECONDS)
    states = dict.fromkeys(STATES, 0.0)
    for name, own_labels, value in samples(answer):
        if name == "citadel_service_state":
            states[own_labels.get("state", "")] = value
        elif name in FAMILIES:
            page.add(name, value, **labels)
    for state in STATES:
        page.add("citadel_service_state", int(states[state]), **labels, state=state)


class Files:
    """Ages of keys and certificates. A certificate is read when it has changed."""

    def __init__(self, keys: Iterable[Path], certificates: Iterable[Path]) -> None:
        self._keys = tuple(keys)
        self._certificates = tuple(certificates)
        self._known: dict[Path, tuple[float, dict[str, int]]] = {}

    def tell(self, page: Page) -> None:
        """Tell them; of a file that is not there, nothing."""
        for key in self._keys:
            with contextlib.suppress(OSError):
                page.add("citadel_key_changed_timestamp_seconds", key.stat().st_mtime, file=str(key))
        for certificate in self._certificates:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                changed = certificate.stat().st_mtime
                if self._known.get(certificate, (0.0, {}))[0] != changed:
                    self._known[certificate] = (changed, validity(certificate))
                for end, seconds in self._known[certificate][1].items():
                    page.add(f"citadel_certificate_{end}_timestamp_seconds", seconds, file=str(certificate))


def validity(certificate: Path) -> dict[str, int]:
    """When the first certificate of a file was issued and when it expires."""
    command = ["openssl", "x509", "-noout", "-startdate", "-enddate", "-in", str(certificate)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=OPENSSL_SECONDS).stdout
    found = {"issued": re.search(r"notBefore=(.+) GMT", text), "expires": re.search(r"notAfter=(.+) GMT", text)}
    return {end: calendar.timegm(time.strptime(match[1], "%b %d %H:%M:%S %Y")) for end, match in found.items() if match}


def _systemctl(names: list[str]) -> str:
    """What systemd tells of its units. Where it tells nothing, there are no figures: those of no unit would be wrong ones."""
    command = show_command(names, UNIT_PROPERTIES)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=os.environ | {"LC_ALL": "C"}).stdout


def gather(plan_file: Path, oom_folder: Path, files: Files) -> str:
    """Gather all figures of the host."""
    page = Page()
    page.add("citadel_exporter_timestamp_seconds", time.time())
    used = os.times()
    page.add("citadel_exporter_cpu_seconds_total", round(sum(used[:4]), 2))
    files.tell(page)
    try:
        plan = json.loads(plan_file.read_text())
    except FileNotFoundError:  # a host without models
        return page.text()
    parts = [*plan["services"], plan["gateway"]]
    units = read_units(_systemctl([SLICE, *(part["unit"] for part in parts)]))
    page.add("citadel_plan_info", 1, device=plan["device"], isa=plan["isa"], policy=plan["policy"])
    page.add("citadel_plan_written_timestamp_seconds", plan_file.stat().st_mtime)
    page.add("citadel_unplanned_services", len(unplanned_units(units, [part["unit"] for part in parts])))
    for part in parts:
        is_model = "state_port" in part
        unit = units.get(part["unit"], {})
        labels = {"service": part["name"]} | ({"model": part["name"]} if is_model else {})
        runtime, version = runtime_of(unit) or (None, None)
        page.add("citadel_service_info", 1, **labels, variant=part.get("variant"), runtime=runtime, version=version)
        planned(page, plan, labels, part)
        measured(page, labels, unit)
        page.add("citadel_service_oom_kills_total", oom_kills(oom_folder, part["name"], unit), **labels)
        page.add("citadel_service_restarts_total", int(unit["NRestarts"]) if unit.get("NRestarts") else None, **labels)
        if is_model:
            told(page, labels, part["state_port"])
    together = units.get(SLICE, {}).get("ControlGroup")
    page.add("citadel_slice_memory_granted_bytes", plan["slice"]["memory_max_bytes"])
    with contextlib.suppress(OSError, KeyError):
        if together:
            page.add("citadel_slice_memory_held_bytes", Cgroup(together).held_bytes())
            page.add("citadel_slice_memory_limit_bytes", Cgroup(together).limit_bytes() or float("inf"))
    return page.text()


def write(file: Path, text: str) -> None:
    """Write a file so that whoever reads it sees all of it, old or new."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(text)
    # The node exporter is another user.
    new.chmod(0o644)
    new.replace(file)


def notify(message: str) -> None:
    """Tell systemd; nothing where it did not start us."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(message.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def main(arguments: list[str]) -> int:
    """Write until told to stop; a run that goes wrong is said once, and its figures are missing instead of old."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, default=Path("/opt/citadel/config/plan.json"))
    parser.add_argument("--folder", type=Path, default=Path("/run/citadel-exporter"), help=f"where {FILE} is written")
    parser.add_argument("--oom-folder", type=Path, required=True, help="where the kills of services that have ended are counted")
    parser.add_argument("--interval-seconds", type=float, default=5)
    parser.add_argument("--key", type=Path, action="append", default=[])
    parser.add_argument("--certificate", type=Path, action="append", default=[])
    parser.add_argument("--ended", metavar="UNIT", help="count the kills of a unit that ends, and nothing else")
    options = parser.parse_args(arguments)
    if options.ended:
        name = re.sub(r"^citadel-llm@(.*)\.service$", r"\1", options.ended)
        count_oom_kills(options.oom_folder, name, options.ended)
        return 0
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    files = Files(options.key, options.certificate)
    said = ""
    began = time.monotonic()
    while True:
        try:
            write(options.folder / FILE, gather(options.plan, options.oom_folder, files))
            problem = ""
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            problem = f"{type(error).__name__}: {error}"
            (options.folder / FILE).unlink(missing_ok=True)
        if problem and problem != said:
            print(f"no figures: {problem}", file=sys.stderr, flush=True)
        said = problem
        # Figures that are missing raise an alarm; being killed for it would help nobody.
        notify("READY=1\nWATCHDOG=1")
        if stop.wait(options.interval_seconds - (time.monotonic() - began) % options.interval_seconds):
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
