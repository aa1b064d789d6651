"""Whatever happens to Prometheus, serving goes on, and it comes back without a hand; what is lost is measured.

The rows go to build/prometheus_faults.md and build/prometheus_faults.json. All data of the host are put back as they were, but for what a
fault has cost.
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass
from typing import Any

import pytest
from lab_host import health, until
from prometheus import Prometheus
from rows import keep_row
from steady_load import SteadyLoad
from testinfra.host import Host

DATA = "/var/lib/prometheus/metrics2"
ASIDE = "/var/lib/prometheus/set-aside"
EVERY_SECONDS = 3.0
BREAK_SECONDS = 300
RECOVER_SECONDS = 300
LOOK_BACK_SECONDS = 3600
KILL = "systemctl kill --signal=KILL prometheus"
LAST_SEGMENT = f"segment=$(ls {DATA}/wal/[0-9]* | tail -n 1) && size=$(stat --format=%s $segment)"
RANDOM = "dd if=/dev/urandom conv=notrunc bs=1 status=none"
FULL = f"{{ dd if=/dev/zero of={DATA}/full bs=4k 2> /dev/null; test $(df --output=avail {DATA} | tail -n 1) = 0; }}"

# On a small file system of its own, as a volume for /var/lib/prometheus would be. What was measured before waits beneath it.
SMALL_DISK = (
    f"systemctl stop prometheus && mount -t tmpfs -o size=32m,mode=0750 tmpfs {DATA} && chown prometheus:prometheus {DATA}"
    " && systemctl start prometheus"
)
NO_SMALL_DISK = (
    f"systemctl stop prometheus; for try in $(seq 60); do umount {DATA} && break; sleep 0.5; done; ! mountpoint --quiet {DATA}"
    " && { systemctl reset-failed prometheus; systemctl start prometheus; }"
)

# A block of two hours three days ago, by Prometheus' own tool.
MAKE_BLOCK = (
    "{ echo '# TYPE lab_gauge gauge'; start=$(( ($(date +%s) - 259200) / 7200 * 7200 ));"
    " for number in $(seq 0 100); do echo lab_gauge $number $((start + number * 60)); done; echo '# EOF'; } > /run/lab-samples"
    f" && promtool tsdb create-blocks-from openmetrics /run/lab-samples {DATA} > /run/lab-blocks && rm /run/lab-samples"
    f" && chown -R prometheus:prometheus {DATA}"
)
BLOCK = f"block={DATA}/$(grep -o '[0-9A-Z]\\{{26\\}}' /run/lab-blocks | head -n 1) && test -d $block"
REMOVE_BLOCK = f"{{ {BLOCK} && rm -r $block; }}; rm -rf {ASIDE} /run/lab-blocks && systemctl restart prometheus"


@dataclass(frozen=True)
class Fault:
    """Shell commands: what breaks it, what is seen then (waited for), what takes the cause away; before all and after all of it."""

    break_it: str
    seen: str = "true"
    mend: str = "true"
    before: str = "true"
    after: str = "true"


RUNS = "curl --silent --fail --output /dev/null --max-time 5 127.0.0.1:9090/-/ready"
FAULTS = {
    "killed (SIGKILL)": Fault(KILL),
    "disk full while it runs": Fault(
        FULL,
        seen="curl --silent 127.0.0.1:9090/metrics | grep -q '^prometheus_tsdb_wal_writes_failed_total [1-9]'",
        mend=f"rm {DATA}/full",
        before=SMALL_DISK,
        after=NO_SMALL_DISK,
    ),
    # Its list of running queries is written anew at each start, and is the first thing that finds no room.
    "disk full at a start": Fault(
        f"truncate --size=0 {DATA}/queries.active && {FULL} && {KILL}",
        seen=f"test $(systemctl show --property=NRestarts --value prometheus) -ge 4 && ! {RUNS}",
        mend=f"rm {DATA}/full",
        before=SMALL_DISK,
        after=NO_SMALL_DISK,
    ),
    "write-ahead log cut off": Fault(f"{LAST_SEGMENT} && truncate --size=$((size / 2)) $segment && {KILL}"),
    "write-ahead log garbled": Fault(f"{LAST_SEGMENT} && {RANDOM} of=$segment seek=$((size / 2)) count=4096 && {KILL}"),
    "index of a block cut off": Fault(
        f"{BLOCK} && truncate --size=100 $block/index && {KILL}",
        seen=f"test -d {ASIDE}",
        before=MAKE_BLOCK,
        after=REMOVE_BLOCK,
    ),
    "chunks of a block garbled": Fault(
        f"{BLOCK} && {RANDOM} of=$block/chunks/000001 count=64 && {KILL}",
        seen=f"test -d {ASIDE}",
        before=MAKE_BLOCK,
        after=REMOVE_BLOCK,
    ),
}


def measured(prometheus: Prometheus) -> list[float]:
    """When Prometheus measured itself: these times show what is kept and what is missing. Empty where it does not answer."""
    try:
        found = prometheus.query(f'up{{job="prometheus"}}[{LOOK_BACK_SECONDS}s]')
    except (OSError, AssertionError, http.client.HTTPException):
        return []
    return [float(at) for series in found for at, _ in series["values"]]


@pytest.mark.parametrize("what", FAULTS)
def test_serving_goes_on_and_prometheus_comes_back(server: Host, plan: dict[str, Any], what: str) -> None:
    fault, port = FAULTS[what], plan["gateway"]["port"]
    prometheus = Prometheus(plan["monitoring"]["prometheus_port"])
    names = [service["name"] for service in plan["services"]]
    assert until(lambda: health(port) == dict.fromkeys(names, "healthy"), RECOVER_SECONDS) is not None, health(port)
    assert server.run(f"test -e {ASIDE}").rc != 0, "an earlier run has left something"
    started = time.time()
    with SteadyLoad([(port, name) for name in names], every_seconds=EVERY_SECONDS, seconds=900) as load:
        try:
            server.check_output(fault.before)
            server.check_output("systemctl reset-failed prometheus")  # counts the starts anew
            assert until(lambda: any(at > started for at in measured(prometheus)), RECOVER_SECONDS) is not None, "not well before"
            before = measured(prometheus)
            server.check_output(fault.break_it)
            broken = time.time()
            assert until(lambda: server.run(fault.seen).rc == 0, BREAK_SECONDS) is not None, server.run(
                "journalctl -u prometheus -n 30"
            ).stdout
            server.check_output(fault.mend)
            mended = broken if fault.mend == "true" else time.time()
            assert until(lambda: any(at > mended for at in measured(prometheus)), RECOVER_SECONDS) is not None, (
                f"does not come back: {server.run('journalctl -u prometheus -n 30').stdout}"
            )
            back = time.time()
            after = measured(prometheus)
            # Older measurements have left the window that was asked for, not the disk.
            since = back - LOOK_BACK_SECONDS
            set_aside = server.run(f"ls {ASIDE}").stdout.split()
            figure = prometheus.query("citadel_prometheus_data_set_aside")
            if set_aside:
                told = until(lambda: bool(prometheus.query('ALERTS{alertname="PrometheusUnwell", problem="data"}')), RECOVER_SECONDS)
                assert told is not None, f"nobody is told that data are missing: {figure}"
        finally:
            server.check_output(fault.after)
        counts = [len(client.outcomes) + 1 for client in load.clients]
        until(lambda: all(len(client.outcomes) >= count for client, count in zip(load.clients, counts, strict=True)), RECOVER_SECONDS)
    kept = [at for at in after if at <= broken]
    assert kept, "nothing is left of what was measured before"
    last, first = max(kept), min(at for at in after if at > mended)
    forgotten = {at for at in before if since + 1 < at < last} - set(after)
    outcomes = load.outcomes()
    failed = [outcome for outcome in outcomes if outcome.statuses != (200,)]
    keep_row(
        "prometheus_faults",
        {
            "fault": what,
            "measures again after s": round(back - mended, 1),
            "gap in what is measured, s": round(first - last),
            "measurements lost before it": len(forgotten),
            "set aside": "the block, and an alert says so" if set_aside else "nothing",
            "requests of clients": len(outcomes),
            "of them failed or tried again": len(failed),
        },
    )
    assert failed == []
    assert forgotten == set()
    assert len(outcomes) >= len(names) * 2
    assert until(lambda: bool(measured(prometheus)), RECOVER_SECONDS) is not None, "it works again on its own data"
    assert bool(set_aside) == (fault.before == MAKE_BLOCK)
