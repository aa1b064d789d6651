"""Two hosts with one model: how requests are shared, and what becomes of them when an instance, or a whole host, goes and comes back.

The second host is made, deployed by one line of inventory (lab/inventory-two-hosts), and removed.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lab.host import cache_folder
from lab_host import CHECKOUT, HOST, connect, deploy, until
from rows import keep_row
from steady_load import Outcome, SteadyLoad
from testinfra.host import Host

OTHER = "hx-llm-server-02"
MODEL = "phi-3-mini"
UNIT = f"citadel-llm@{MODEL}.service"
TWO_HOSTS = ("-i", "lab/inventory-two-hosts")

CLIENTS = 12
DROPPED_SECONDS = 10
TAKEN_BACK_SECONDS = 10
STARTED_SECONDS = 330

# Runs beside HAProxy: ten times a second, how many requests each instance works on and which of them are up.
WATCH = f"""
import http.client, json, re, sys, time
ends = time.monotonic() + float(sys.argv[1])
sample = re.compile(r'haproxy_server_(status|current_sessions)\\{{proxy="shared_{MODEL}",server="([^"]+)"(?:,state="UP")?\\}} (\\d+)')
while time.monotonic() < ends:
    connection = http.client.HTTPConnection("127.0.0.1", 8405, timeout=5)
    connection.request("GET", "/metrics?scope=server")
    found = sample.findall(connection.getresponse().read().decode())
    connection.close()
    named = {{kind: {{server: int(value) for each, server, value in found if each == kind}} for kind in ("status", "current_sessions")}}
    print(json.dumps([time.time(), named["status"], named["current_sessions"]]), flush=True)
    time.sleep(0.1)
"""


# A command of HAProxy's from standard input.
SOCKET = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect("/run/citadel-edge/admin.sock")
connection.sendall(sys.stdin.read().encode())
while part := connection.recv(65536):
    sys.stdout.write(part.decode())
"""


class Watch(threading.Thread):
    """What HAProxy on the gateway's host says of the instances. All times are of this machine, whose clock the guests share."""

    def __init__(self, seconds: float) -> None:
        super().__init__(daemon=True)
        self._command = ["lab/ssh", HOST, f"python3 -c {shlex.quote(WATCH)} {seconds}"]
        self.samples: list[tuple[float, dict[str, int], dict[str, int]]] = []
        self._process = subprocess.Popen(self._command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        self.start()

    def run(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            at, up, sessions = json.loads(line)
            self.samples.append((at, up, sessions))

    def is_up(self) -> bool:
        return bool(self.samples and self.samples[-1][1].get(OTHER))

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def other() -> Iterator[Host]:
    owner = json.loads((cache_folder() / "lab" / HOST / "complete.json").read_text())["owner"]
    subprocess.run(["lab/up", owner, OTHER], cwd=CHECKOUT, check=True)
    try:
        deploy(*TWO_HOSTS)
        yield connect(OTHER)
    finally:
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*as_root, "lab/host.py", "destroy", OTHER], cwd=CHECKOUT, check=True)
        deploy()


@pytest.fixture
def watch(other: Host) -> Iterator[Watch]:
    found = Watch(900)
    assert until(found.is_up, 60) is not None, "the second host's instance is not there"
    yield found
    found.end()


def failed(outcomes: list[Outcome]) -> list[Outcome]:
    """Those whose first answer was not good: nobody had to ask twice."""
    return [outcome for outcome in outcomes if outcome.statuses != (200,)]


def load(port: int, seconds: float, *, max_tokens: int = 8, every_seconds: float = 1.0) -> SteadyLoad:
    return SteadyLoad([(port, MODEL)] * CLIENTS, every_seconds=every_seconds, seconds=seconds, max_tokens=max_tokens)


def test_a_busy_pair_shares_by_its_places(plan: dict[str, Any], other: Host, watch: Watch) -> None:
    there = json.loads(other.file("/opt/citadel/config/plan.json").content_string)["services"]
    here = [service for service in plan["services"] if service["name"] == MODEL]
    places = {HOST: here[0]["max_num_seqs"], OTHER: there[0]["max_num_seqs"]}
    assert [service["name"] for service in there] == [MODEL], "one model of the four"
    began = time.time()
    with load(plan["gateway"]["port"], 40, max_tokens=200, every_seconds=0.1) as running:
        time.sleep(40)
    ended = time.time()
    outcomes = running.outcomes()
    assert failed(outcomes) == []
    # From when all are at work until the first has been told to stop.
    busy = [sessions for at, _, sessions in watch.samples if began + 5 < at < ended - 1 and sum(sessions.values()) >= CLIENTS - 2]
    assert len(busy) > 20
    worked_on = {name: sum(sessions[name] for sessions in busy) / len(busy) for name in places}
    share = worked_on[HOST] / sum(worked_on.values())
    wanted = places[HOST] / sum(places.values())
    found = f"{worked_on[HOST]:.1f} and {worked_on[OTHER]:.1f} in work at a time, {share:.0%} on the first"
    planned = f"planned {wanted:.0%} by {places[HOST]} and {places[OTHER]} places"
    keep_row("two-hosts", {"what": "load", "requests": len(outcomes), "failed": 0, "measured": f"{found}; {planned}"})
    assert abs(share - wanted) < 0.1


def lose(watch: Watch, port: int, what: str, go: Callable[[], object], come_back: Callable[[], object]) -> None:
    """Take the second host's instance away under load and give it back: when is it no longer asked, when again, and who notices."""
    with load(port, 600) as running:
        time.sleep(5)
        went = time.time()
        go()
        assert until(lambda: not watch.is_up(), DROPPED_SECONDS) is not None, "it is still asked"
        dropped = next(at for at, up, _ in watch.samples if at > went and not up[OTHER])
        time.sleep(10)
        come_back()
        came = time.time()
        assert until(watch.is_up, TAKEN_BACK_SECONDS) is not None, "it is not taken back"
        taken_back = next(at for at, up, _ in watch.samples if at > dropped + 5 and up[OTHER])
        time.sleep(5)
    outcomes = running.outcomes()
    others = sum(outcome.answered_by != MODEL for outcome in outcomes)
    around = [outcome for outcome in outcomes if went - 1 <= outcome.at - time.monotonic() + time.time() <= dropped + 1]
    found = [
        f"dropped after {dropped - went:.1f} s, taken back {max(0.0, taken_back - came):.1f} s after it was well",
        f"longest answer meanwhile {max(outcome.seconds for outcome in around):.1f} s",
        f"{others} answered by another model",
    ]
    keep_row("two-hosts", {"what": what, "requests": len(outcomes), "failed": len(failed(outcomes)), "measured": "; ".join(found)})
    assert failed(outcomes) == []


def test_new_keys_between_hosts_cost_no_request(plan: dict[str, Any], server: Host, other: Host) -> None:
    sum_of_key = "cut -d' ' -f2 /opt/citadel/secrets/node.key | tr -d '\\n' | sha256sum | cut -c1-64"
    before = server.check_output(sum_of_key)
    playbook = [
        CHECKOUT / ".venv/bin/ansible-playbook",
        "-i",
        "inventory",
        "-i",
        "lab/inventory",
        *TWO_HOSTS,
        "playbooks/rotate-node-keys.yml",
    ]
    with load(plan["gateway"]["port"], 300) as running:
        result = subprocess.run(playbook, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        time.sleep(5)
    assert result.returncode == 0, result.stdout[-4000:]
    after = server.check_output(sum_of_key)
    assert after != before
    # The old key is good nowhere.
    for host in (server, other):
        known = host.file("/etc/haproxy/citadel/client-node-keys.map").content_string.splitlines()
        assert [line for line in known if not line.startswith("#")] == [f"{after} node:{HOST}"]
        shown = host.check_output("echo 'show map /etc/haproxy/citadel/client-node-keys.map' | python3 -c %s", SOCKET)
        assert [line.split()[1:] for line in shown.splitlines() if line] == [[after, f"node:{HOST}"]]
    outcomes = running.outcomes()
    keep_row(
        "two-hosts",
        {"what": "new keys", "requests": len(outcomes), "failed": len(failed(outcomes)), "measured": "the old one is good nowhere"},
    )
    assert failed(outcomes) == []


def test_an_instance_that_is_killed_and_kept_down(plan: dict[str, Any], other: Host, watch: Watch) -> None:
    def go() -> None:
        other.check_output(f"systemctl mask --runtime {UNIT} && systemctl kill --signal=KILL --kill-whom=all {UNIT}")

    def come_back() -> None:
        # It returns when the model has generated.
        other.check_output(
            f"systemctl unmask --runtime {UNIT} && systemctl reset-failed {UNIT} && timeout {STARTED_SECONDS} systemctl start {UNIT}"
        )

    try:
        lose(watch, plan["gateway"]["port"], "its model killed", go, come_back)
    finally:
        other.run(f"systemctl unmask --runtime {UNIT}; systemctl start {UNIT}")


def test_a_host_whose_link_goes(plan: dict[str, Any], other: Host, watch: Watch) -> None:
    index = int(other.check_output("cat /sys/class/net/host0/iflink"))
    (link,) = [entry["ifname"] for entry in json.loads(subprocess.check_output(["ip", "-json", "link"])) if entry["ifindex"] == index]

    def set_link(state: str) -> None:
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*as_root, "ip", "link", "set", link, state], check=True)

    try:
        lose(watch, plan["gateway"]["port"], "its network link down", lambda: set_link("down"), lambda: set_link("up"))
    finally:
        set_link("up")
