"""What happens when something breaks, under a steady small load through the gateway: found, mended without a hand, and nobody else notices.

Each fault gives one row: what was expected meanwhile, seconds until it was found and until the service answered again, and what other
models' clients saw. The rows go to build/faults.json and, as a table, to build/faults.md as they are measured.

CITADEL_FAULTS names some of them, with commas between; all are tried without it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cgroups
import pytest
from lab_host import CHECKOUT, health, read_plan, until
from steady_load import Outcome, SteadyLoad, attempted
from testinfra.host import Host
from traces import traces

OVERSIZED_BYTES = 300 * 2**20
FIND_SECONDS = 300
"""A fault of the weights is met only by the third process of a start, after two minutes where small cores do other work beside."""
RECOVER_SECONDS = 600
LONGEST_SECONDS = FIND_SECONDS + 2 * RECOVER_SECONDS
EVERY_SECONDS = 3.0
"""More than the second for which a worker of vLLM spins after each request: small cores must have time for a service that starts."""
API_SERVER = "vllm.entrypoints.openai.api_server"
ENGINE = "VLLM::EngineCore"
WORKER = "VLLM::Worker"
WORD = {"messages": [{"role": "user", "content": "after the reboot"}], "max_tokens": 8}
GATEWAY = "citadel-llm@unified-api-gateway.service"
EDGE = "haproxy.service"
PROMETHEUS = "prometheus.service"


# --- the host, asked and broken ---


def unit_of(name: str) -> str:
    return f"citadel-llm@{name}.service"


def process(server: Host, name: str, title: str) -> int:
    """Process id of the one process of a service with that title."""
    ids = ",".join(map(str, sorted(cgroups.process_ids(server, unit_of(name)))))
    lines = server.check_output("ps -o pid=,args= -p %s", ids).splitlines()
    (found,) = [int(line.split()[0]) for line in lines if title in line and "citadel_supervise" not in line]
    return found


def send(signal: str, title: str) -> Callable[[Host, str], None]:
    def inject(server: Host, name: str) -> None:
        server.check_output("kill -s %s %s", signal, str(process(server, name, title)))

    return inject


def shell(command: str) -> Callable[[Host, str], None]:
    """Run a command on the host; NAME in it stands for the service, PID for its main process."""

    def run(server: Host, name: str) -> None:
        pid = server.check_output("systemctl show --property=MainPID --value %s", unit_of(name))
        server.check_output(command.replace("NAME", name).replace("PID", pid))

    return run


def restart(command: str) -> Callable[[Host, str], None]:
    """Break something that is noticed at a start, then start: the running service has what it needs."""
    stop, start = "systemctl stop citadel-llm@NAME.service", "systemctl --no-block start citadel-llm@NAME.service"
    return shell(f"{stop} && {command} && {start}")


def outgrow(server: Host, name: str) -> None:
    """A request that needs more memory than the plan has left over, from the host itself: no client of the gateway is to pay for it."""
    port = next(service["api_port"] for service in read_plan(server)["services"] if service["name"] == name)
    script = (
        "import http.client\n"
        f'body = b\'{{"model": "{name}", "prompt": "\' + b\'a\' * {OVERSIZED_BYTES} + b\'"}}\'\n'
        f"connection = http.client.HTTPConnection('127.0.0.1', {port}, timeout=300)\n"
        "connection.request('POST', '/v1/completions', body, {'Content-Type': 'application/json'})\n"
        "connection.getresponse().read()\n"
    )
    # Nobody waits for the answer.
    server.check_output("systemd-run --quiet --collect --unit=lab-request python3 -c %s", script)


def started_with_full(folder: str) -> dict[str, Any]:
    """The service starts on a small file system that is full, and generates: what it would write there is less than its work."""
    mount = f"mount -t tmpfs -o size=64k,mode=0750 tmpfs {folder} && chown agent0:agent0 {folder}"
    fill = f"{{ dd if=/dev/zero of={folder}/full bs=1k count=100 2> /dev/null; test -s {folder}/full; }}"
    return {
        "inject": restart(f"{mount} && {fill}"),
        "expected": "generating since",
        "mend": restart(f"umount {folder}"),
        "unharmed": True,
    }


# --- the faults ---


@dataclass(frozen=True)
class Fault:
    """One thing that breaks.

    `expected` are words of the unit's status text meanwhile; `mend` takes the cause away, where it does not go by itself.
    """

    inject: Callable[[Host, str], None]
    expected: str
    mend: Callable[[Host, str], None] | None = None
    targets: tuple[str, ...] = ("hermes-2",)
    unharmed: bool = False
    """The service generates in spite of it."""


WEIGHTS = "/opt/models/NAME/model.safetensors"
KEEP = "cp -a /opt/models/NAME /run/lab-model"
GIVE_BACK = shell("rm -r /opt/models/NAME && cp -a /run/lab-model /opt/models/NAME && rm -r /run/lab-model")

FAULTS = {
    "API server killed": Fault(send("KILL", API_SERVER), "its main process was killed by SIGKILL"),
    # Its worker ends with it; which of the two is seen first is chance.
    "engine killed": Fault(send("KILL", ENGINE), "while generating: VLLM::"),
    "worker killed": Fault(send("KILL", WORKER), "VLLM::Worker"),
    "worker stopped (SIGSTOP)": Fault(send("STOP", WORKER), "hung since"),
    "a request outgrows the memory limit": Fault(outgrow, " while generating: "),
    "port taken by a foreigner at the start": Fault(
        restart("systemd-run --quiet --collect --unit=lab-foreigner python3 -m http.server --bind 127.0.0.1 11401"),
        "its main process ended with status 1",
        shell("systemctl stop lab-foreigner"),
    ),
    "weights truncated": Fault(restart(f"{KEEP} && truncate --size=-1000 {WEIGHTS}"), " ended", GIVE_BACK),
    "weights missing": Fault(restart(f"{KEEP} && rm {WEIGHTS}"), " ended", GIVE_BACK),
    "weights unreadable": Fault(restart(f"{KEEP} && chmod 0000 {WEIGHTS}"), " ended", GIVE_BACK),
    "config.json corrupt": Fault(restart(f"{KEEP} && echo '{{' > /opt/models/NAME/config.json"), " ended", GIVE_BACK),
    "log folder full at the start": Fault(**started_with_full("/var/log/citadel-llm/NAME")),
    "cache folder full at the start": Fault(**started_with_full("/var/cache/citadel-llm/NAME")),
    "shared memory full": Fault(
        shell(
            "used=$(nsenter --target PID --mount df --output=used --block-size=1k /dev/shm | tail -n 1)"
            " && nsenter --target PID --mount mount -o remount,size=$((used + 4))k /dev/shm"
        ),
        "generating since",
        unharmed=True,
    ),
    "workers of two models killed at once": Fault(send("KILL", WORKER), "VLLM::Worker", targets=("hermes-2", "openchat-3.5")),
    "engines of two models killed at once": Fault(send("KILL", ENGINE), "while generating: VLLM::", targets=("mixtral-8x7b", "phi-3-mini")),
    "API servers of two models killed at once": Fault(send("KILL", API_SERVER), "SIGKILL", targets=("mixtral-8x7b", "openchat-3.5")),
}

SHARED = {"gateway killed": GATEWAY, "edge killed": EDGE, "Prometheus killed": PROMETHEUS}


# --- what is seen ---


def record(
    what: str,
    services: tuple[str, ...],
    *,
    meanwhile: str,
    found: float | None,
    recovered: float | None,
    own: list[Outcome],
    others: list[Outcome],
    left: set[str],
) -> dict[str, Any]:
    """Add a row to what build/faults.json holds, and write the table anew.

    Seconds are from the fault; those of a recovery are from when its cause was taken away, where it does not go by itself.
    Lost is who got no answer after trying again as OpenAI's client does.
    """
    row = {
        "fault": what,
        "services": list(services),
        "state_meanwhile": re.sub(r" at [0-9:]+| since [0-9:]+| \(process [0-9]+\)", "", meanwhile),
        "seconds_to_find": found and round(found, 1),
        "seconds_to_recover": recovered and round(recovered, 1),
        "own_requests": len(own),
        "own_tried_again": sum(len(outcome.statuses) > 1 for outcome in own),
        "own_answered_by_others": sum(outcome.answered_by not in {None, outcome.asked} for outcome in own),
        "own_lost": sum(outcome.lost for outcome in own),
        "others_requests": len(others),
        "others_tried_again": sum(len(outcome.statuses) > 1 for outcome in others),
        "others_lost": sum(outcome.lost for outcome in others),
        "left_behind": ", ".join(sorted(left)) or "nothing",
    }
    path = CHECKOUT / "build" / "faults.json"
    path.parent.mkdir(exist_ok=True)
    rows = {entry["fault"]: entry for entry in (json.loads(path.read_text()) if path.exists() else [])} | {what: row}
    path.write_text(json.dumps(list(rows.values()), indent=2) + "\n")
    lines = [
        "| fault | services | what systemctl status says | found after s | well after s | own requests lost | others' lost | left behind |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {entry['fault']} | {', '.join(entry['services'])} | {entry['state_meanwhile']} | {figure(entry['seconds_to_find'])}"
            f" | {figure(entry['seconds_to_recover'])} | {entry['own_lost']} of {entry['own_requests']}"
            f" | {entry['others_lost']} of {entry['others_requests']} | {entry['left_behind']} |"
            for entry in rows.values()
        ),
    ]
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"\nfaults: {json.dumps(row)}")
    return row


def figure(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def see_what_the_recovery_breaks(load: SteadyLoad) -> None:
    """Wait for two more requests of every client."""
    counts = [len(client.outcomes) + 2 for client in load.clients]
    until(lambda: all(len(client.outcomes) >= count for client, count in zip(load.clients, counts, strict=True)), FIND_SECONDS)


def status_text(server: Host, name: str) -> str:
    return server.check_output("systemctl show --property=StatusText --value %s", unit_of(name))


@pytest.fixture(scope="module", autouse=True)
def short_memory(server: Host) -> Iterator[None]:
    """Have failures forgotten after a second of success: what happens here in minutes must not look like a service that fails in a row."""
    folder = "/run/systemd/system/citadel-llm@.service.d"
    server.check_output("mkdir -p %s", folder)
    server.check_output(
        "printf '[Service]\\nEnvironment=CITADEL_RESTART_STEADY_SECONDS=1\\n' > %s/lab.conf && systemctl daemon-reload", folder
    )
    yield
    server.check_output("rm -rf %s && systemctl daemon-reload", folder)


@pytest.fixture
def calm(server: Host, plan: dict[str, Any]) -> set[str]:
    """Start from a platform in which all is well; the traces that it has then."""
    port = plan["gateway"]["port"]
    names = {service["name"] for service in plan["services"]}
    assert until(lambda: health(port) == dict.fromkeys(names, "healthy"), RECOVER_SECONDS) is not None, health(port)
    server.check_output("systemctl reset-failed")  # counts the starts anew
    return traces(server)


def chosen(names: Iterable[str]) -> list[str]:
    """Those of the faults that are to be tried."""
    some = os.environ.get("CITADEL_FAULTS")
    return [name for name in names if some is None or name in some.split(",")]


@pytest.mark.parametrize("what", chosen(FAULTS))
def test_fault_of_a_model(server: Host, plan: dict[str, Any], calm: set[str], what: str) -> None:
    fault, port = FAULTS[what], plan["gateway"]["port"]
    targets = fault.targets
    others = [service["name"] for service in plan["services"] if service["name"] not in targets]
    found = recovered = None
    text = ""

    def all_are(state: str) -> bool:
        return {health(port).get(name) for name in targets} == {state}

    def explained() -> bool:
        nonlocal text
        text = status_text(server, targets[0])
        return fault.expected in text

    ways = [(port, name) for name in (*targets, *others)]
    with SteadyLoad(ways, every_seconds=EVERY_SECONDS, seconds=LONGEST_SECONDS) as load:
        for name in targets:
            fault.inject(server, name)
        began = time.monotonic()
        try:
            if fault.unharmed:
                recovered = until(lambda: explained() and all_are("healthy"), RECOVER_SECONDS)
                assert recovered is not None, text
                see_what_the_recovery_breaks(load)
                assert explained(), text
            else:
                found = until(lambda: all_are("unhealthy") and explained(), FIND_SECONDS)
                assert found is not None, f"not found; {health(port)}; {text}"
        finally:
            if fault.mend:
                for name in targets:
                    fault.mend(server, name)
                began = time.monotonic()
        assert until(lambda: all_are("healthy"), RECOVER_SECONDS) is not None, f"not recovered; {status_text(server, targets[0])}"
        if not fault.unharmed:
            recovered = time.monotonic() - began
        see_what_the_recovery_breaks(load)
    own, rest = load.outcomes(models=targets), load.outcomes(models=others)
    row = record(what, targets, meanwhile=text, found=found, recovered=recovered, own=own, others=rest, left=traces(server) ^ calm)
    assert [outcome for outcome in rest if outcome.statuses != (200,)] == [], "other models' clients notice nothing, not even a retry"
    assert [outcome for outcome in own if outcome.lost] == [], "another model answers meanwhile"
    assert row["left_behind"] == "nothing"


@pytest.mark.parametrize("what", chosen(SHARED))
def test_fault_of_what_all_models_share(server: Host, plan: dict[str, Any], calm: set[str], what: str) -> None:
    """Clients go through the gateway and to each model's own port at once; nobody is lost who tries again as OpenAI's client does."""
    unit, port = SHARED[what], plan["gateway"]["port"]
    show = "systemctl show --property=InvocationID --value %s"
    run = server.check_output(show, unit)
    services = plan["services"]
    ways = [(number, service["name"]) for service in services for number in (port, service["api_port"])]
    with SteadyLoad(ways, every_seconds=EVERY_SECONDS, seconds=LONGEST_SECONDS) as load:
        assert until(lambda: bool(load.outcomes()), FIND_SECONDS) is not None
        server.check_output("systemctl kill --signal=KILL %s", unit)
        began = time.monotonic()
        found = until(lambda: server.check_output(show, unit) != run or not server.service(unit).is_running, FIND_SECONDS)
        until(lambda: server.service(unit).is_running and server.check_output(show, unit) != run, RECOVER_SECONDS)
        names = {service["name"] for service in services}
        assert until(lambda: health(port) == dict.fromkeys(names, "healthy"), RECOVER_SECONDS) is not None
        recovered = time.monotonic() - began
        see_what_the_recovery_breaks(load)
    through_it = load.outcomes(port=port) if unit == GATEWAY else load.outcomes() if unit == EDGE else []
    beside_it = [outcome for outcome in load.outcomes() if outcome not in through_it]
    row = record(
        what,
        (unit.removesuffix(".service").removeprefix("citadel-llm@"),),
        meanwhile="started again",
        found=found,
        recovered=recovered,
        own=through_it,
        others=beside_it,
        left=traces(server) ^ calm,
    )
    assert [outcome for outcome in beside_it if outcome.statuses != (200,)] == []
    assert [outcome for outcome in through_it if outcome.lost] == []
    assert row["left_behind"] == "nothing"


@pytest.mark.parametrize("what", chosen(["host rebooted"]))
def test_reboot_of_the_host(server: Host, plan: dict[str, Any], calm: set[str], what: str) -> None:
    """With no hand on it, until all five answer. They are asked themselves: an edge that has just started has looked at nobody yet."""
    port = plan["gateway"]["port"]
    names = {service["name"] for service in plan["services"]}
    run = server.check_output("systemctl show --property=InvocationID --value %s", GATEWAY)
    server.run("systemctl reboot")
    began = time.monotonic()
    found = until(lambda: health(port) == {}, FIND_SECONDS)

    def all_answer() -> bool:
        asked = [attempted(service["api_port"], {"model": service["name"], **WORD}) for service in plan["services"]]
        return all(outcome.status == 200 for outcome in [*asked, attempted(port, {"model": None, **WORD})])

    assert until(lambda: health(port) == dict.fromkeys(names, "healthy") and all_answer(), RECOVER_SECONDS) is not None
    recovered = time.monotonic() - began
    assert server.check_output("systemctl show --property=InvocationID --value %s", GATEWAY) != run
    row = record(
        what,
        ("all",),
        meanwhile="starting again",
        found=found,
        recovered=recovered,
        own=[],
        others=[],
        left=traces(server) ^ calm,
    )
    assert row["left_behind"] == "nothing"
