"""Each limit that the units render, against a process that wants more: what the kernel did, and what it does without the limit.

Every figure is measured under emulation: shares and kills mean what they say, seconds are several times those of a real processor.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import Record
from machine import Unit, alive, cpu_percent, cursor, out_of_memory_kills, slice_of, wait_for, with_mock_setting
from testinfra.host import Host

Start = Callable[..., list[Unit]]

# The service with a CPU of its own, two that share the other, one of the latter with a quota (rendered_units.py).
ALONE, BIG, SMALL, THROTTLED = "hermes-2", "mixtral-8x7b", "openchat-3.5", "phi-3-mini"
PAGE_BYTES = 4096
MIB = 2**20
MEASURED_SECONDS = 5
# Processes that use CPU do so for longer than it takes to ask for the figures; they end with their unit.
BURNING_SECONDS = 120
FORKS = 600


def mebibytes(unit: Unit) -> int:
    return int(unit.limit("MemoryMax")) // MIB


def quota(file: str) -> str:
    allowed, period = file.split()
    return "" if allowed == "max" else f"{int(allowed) * 100 // int(period)}%"


def whole_pages(rendered: str) -> str:
    return str(int(rendered) // PAGE_BYTES * PAGE_BYTES)


def unchanged(text: str) -> str:
    return text


# Directive, file of the cgroup, what the kernel makes of the figure, how systemd would write what the file says.
FIGURES = [
    ("MemoryMax", "memory.max", whole_pages, unchanged),
    ("MemorySwapMax", "memory.swap.max", unchanged, unchanged),
    ("AllowedCPUs", "cpuset.cpus", unchanged, unchanged),
    ("AllowedMemoryNodes", "cpuset.mems", unchanged, unchanged),
    ("CPUQuota", "cpu.max", unchanged, quota),
    ("CPUWeight", "cpu.weight", unchanged, unchanged),
    ("TasksMax", "pids.max", unchanged, unchanged),
]


@pytest.mark.parametrize("name", [ALONE, BIG, SMALL, THROTTLED, "unified-api-gateway"])
def test_the_kernel_has_what_is_rendered(started: Start, name: str) -> None:
    (unit,) = started(name)
    rendered = {figure: figure[2](unit.limit(figure[0])) for figure in FIGURES if unit.rendered(figure[0])}
    assert {"MemoryMax", "AllowedCPUs", "CPUWeight", "TasksMax"} <= {directive for directive, *_ in rendered}
    assert {directive: read(unit.kernel(file)) for directive, file, _, read in rendered} == {
        directive: value for (directive, *_), value in rendered.items()
    }


def test_memory_of_one_service(host: Host, started: Start, record: Record) -> None:
    (unit,) = started(ALONE)
    limit = mebibytes(unit)
    assert unit.ask("worker", "hold", limit // 2) == limit // 2
    since = cursor(host)
    assert unit.ask("worker", "hold", limit) is None
    (kill,) = out_of_memory_kills(host, since)
    assert kill["oom_memcg"] == kill["task_memcg"] == f"{slice_of(host).cgroup}/{unit.name}"
    assert unit.failure(since) == "oom-kill"
    record("MemoryMax", unit, kernel=f"{limit // 2} MiB held; killed on the way to {limit // 2 + limit} MiB, although swap was free")


def test_memory_is_never_swapped(host: Host, started: Start, record: Record) -> None:
    free = int(host.check_output("awk '/^SwapFree/ {print $2}' /proc/meminfo")) // 1024

    def swapped_mebibytes(unit: Unit, held: int) -> int:
        unit.ask("worker", "hold", held)
        # The kernel is told to take back half of it. It says EAGAIN where it finds no place to put it.
        host.run(f"echo {held // 2}M > /sys/fs/cgroup{unit.cgroup}/memory.reclaim")
        assert unit.counts("memory.stat")["anon"] // MIB + int(unit.kernel("memory.swap.current")) // MIB >= held - 1
        return int(unit.kernel("memory.swap.current")) // MIB

    (unit,) = started(ALONE)
    held = mebibytes(unit) * 2 // 3
    assert free > held
    swapped = swapped_mebibytes(unit, held)
    unit.stop()
    with with_mock_setting(unit, "MemorySwapMax=infinity"):
        unit.start()
        without = swapped_mebibytes(unit, held)
        unit.stop()
    record(
        "MemorySwapMax", unit, kernel=f"told to take back {held // 2} of {held} MiB: {swapped} MiB swapped",
        without=f"{without} MiB swapped",
    )  # fmt: skip
    assert (swapped, without > 0) == (0, True)


def test_a_service_that_lost_a_process_ends(host: Host, started: Start, record: Record) -> None:
    (unit,) = started(SMALL)
    policy = unit.limit("OOMPolicy")
    assert unit.kernel("memory.oom.group") == ("1" if policy == "kill" else "0")

    def kill_the_worker() -> set[int]:
        """Its processes as they were before."""
        unit.ask("main", "outlive")
        before = unit.processes()
        assert len(before) == 3
        assert unit.ask("worker", "hold", mebibytes(unit) * 2) is None
        return before

    since = cursor(host)
    processes = kill_the_worker()
    assert len(out_of_memory_kills(host, since)) == 1
    assert unit.failure(since) == "oom-kill"
    wait_for("end of all processes", lambda: not alive(host, *processes))
    wait_for("a new start", lambda: unit.show("ActiveState") == "active")
    assert not unit.processes() & processes
    unit.stop()
    with with_mock_setting(unit, "OOMPolicy=continue"):
        unit.start()
        main = int(unit.show("MainPID"))
        remaining = alive(host, *kill_the_worker())
        assert unit.show("ActiveState") == "active"
        assert main in remaining
        unit.stop()
    record(
        "OOMPolicy", unit, kernel="killed 1 of 3 processes; the other 2 were ended and the unit started again",
        without=f"{len(remaining)} of 3 processes go on and the unit stays active",
    )  # fmt: skip


def test_memory_of_all_services(host: Host, started: Start, units: dict[str, Unit], record: Record) -> None:
    """Two within their own limits and together above the slice's; one of them has a limit that nobody planned."""
    total = slice_of(host)
    # What lies outside stays outside: nothing but these is hurt. The small one holds what it may have, all the time.
    with with_mock_setting(units[ALONE], "MemoryMax=infinity"):
        big, unplanned, small = started(BIG, ALONE, SMALL)
        assert total.kernel("memory.max") == total.limit("MemoryMax")
        each = mebibytes(total) * 5 // 8
        assert each < mebibytes(big)
        assert small.ask("worker", "hold", mebibytes(small) // 2) == mebibytes(small) // 2
        before = {unit.name: unit.processes() for unit in (big, unplanned, small)}
        since = cursor(host)
        answers = [big.ask("worker", "hold", each), unplanned.ask("worker", "hold", each)]
        kills = out_of_memory_kills(host, since)
        assert {kill["oom_memcg"] for kill in kills} == {total.cgroup}
        assert {kill["task_memcg"].rpartition("/")[2] for kill in kills} <= {big.name, unplanned.name}
        assert None in answers or len(kills) == 1
        killed = [unit for unit in (big, unplanned) if unit.name in {kill["task_memcg"].rpartition("/")[2] for kill in kills}]
        assert len(killed) == 1
        assert killed[0].failure(since) == "oom-kill"
        for unit in {big, unplanned, small} - set(killed):
            assert unit.processes() == before[unit.name]
        assert host.check_output("awk '/^oom_kill / {print $2}' /sys/fs/cgroup/system.slice/memory.events") == "0"
        record(
            "MemoryMax", total,
            kernel=f"{big.instance} and {unplanned.instance} wanted {each} MiB each: {killed[0].instance} ended, the rest and sshd went on",
        )  # fmt: skip


def test_cpus(host: Host, started: Start, record: Record) -> None:
    (unit,) = started(ALONE)
    allowed = unit.limit("AllowedCPUs")
    assert (allowed, host.check_output("nproc")) == ("1", "2")
    assert unit.ask("main", "affinity", "0") == {"error": "EINVAL", "cpus": [1]}
    assert unit.ask("main", "affinity", "0,1") == {"error": None, "cpus": [1]}
    burning = unit.ask("main", "burn", 2, BURNING_SECONDS)
    (percent,) = cpu_percent(host, MEASURED_SECONDS, unit)
    cpus = host.check_output("ps -o psr= -p %s", ",".join(map(str, burning))).split()
    assert cpus == ["1", "1"]
    assert percent < 110
    unit.stop()
    with with_mock_setting(unit, "AllowedCPUs="):
        unit.start()
        escaped = unit.ask("main", "affinity", "0")
        assert escaped == {"error": None, "cpus": [0]}
        unit.stop()
    record(
        "AllowedCPUs", unit,
        kernel=f"sched_setaffinity(0): EINVAL, (0,1): stays on 1; two busy processes get {percent:.0f} % of one CPU, on CPU 1",
        without="CPUAffinity alone: sched_setaffinity(0) works",
    )  # fmt: skip


def test_cpu_quota(host: Host, started: Start, record: Record) -> None:
    (unit,) = started(THROTTLED)
    quota = int(unit.limit("CPUQuota").removesuffix("%"))

    def used_percent() -> float:
        unit.ask("main", "burn", 2, BURNING_SECONDS)
        (percent,) = cpu_percent(host, MEASURED_SECONDS, unit)
        return percent

    used = used_percent()
    throttled = unit.counts("cpu.stat")["nr_throttled"]
    unit.stop()
    with with_mock_setting(unit, "CPUQuota="):
        unit.start()
        without = used_percent()
        unit.stop()
    record("CPUQuota", unit, kernel=f"busy processes get {used:.0f} % of a CPU", without=f"{without:.0f} %")
    assert quota * 0.75 < used < quota * 1.25
    assert throttled > 0
    assert without > quota * 1.75


def test_cpu_weight(host: Host, started: Start, record: Record) -> None:
    heavy, light = started(BIG, SMALL)
    assert heavy.limit("AllowedCPUs") == light.limit("AllowedCPUs")
    weights = [int(unit.limit("CPUWeight")) for unit in (heavy, light)]

    def share() -> float:
        for unit in (heavy, light):
            unit.ask("main", "burn", 2, BURNING_SECONDS)
        used = cpu_percent(host, MEASURED_SECONDS, heavy, light)
        assert sum(used) > 60, "both want all of one CPU"
        return used[0] / sum(used)

    planned, measured = weights[0] / sum(weights), share()
    for unit in (heavy, light):
        unit.stop()
    with with_mock_setting(heavy, f"CPUWeight={weights[1]}"):
        for unit in (heavy, light):
            unit.start()
        without = share()
        for unit in (heavy, light):
            unit.stop()
    record(
        "CPUWeight", heavy, rendered=f"{weights[0]} beside {weights[1]} of {light.instance}",
        kernel=f"of the CPU that both want it gets {measured:.0%}", without=f"{without:.0%} with equal weights",
    )  # fmt: skip
    assert abs(measured - planned) < 0.1
    assert abs(without - 0.5) < 0.1


def test_tasks(started: Start, record: Record) -> None:
    (unit,) = started(BIG)
    limit = int(unit.limit("TasksMax"))
    assert limit < FORKS
    answer = unit.ask("worker", "fork", FORKS)
    assert answer["error"] == "EAGAIN"
    assert int(unit.kernel("pids.current")) == limit
    assert unit.counts("pids.events")["max"] > 0
    unit.stop()
    with with_mock_setting(unit, "TasksMax=infinity"):
        unit.start()
        without = unit.ask("worker", "fork", FORKS)
        unit.stop()
    record("TasksMax", unit, kernel=f"{FORKS} forks wanted: {answer['children']} made, then EAGAIN", without=f"{without['children']} made")
    assert without == {"children": FORKS, "error": None}


def test_stop_leaves_nothing(host: Host, started: Start, record: Record) -> None:
    (unit,) = started(SMALL)
    assert unit.limit("KillMode") == "mixed"
    deaf = unit.ask("worker", "outlive")
    processes = unit.processes()
    assert deaf in processes
    began = time.monotonic()
    unit.stop()
    seconds = time.monotonic() - began
    assert alive(host, *processes) == set()
    assert unit.show("Result") == "success"
    with with_mock_setting(unit, "KillMode=process"):
        unit.start()
        orphan = unit.ask("worker", "outlive")
        unit.stop()
        without = alive(host, orphan)
        host.check_output("systemctl kill --signal=SIGKILL %s", unit.name)
        wait_for("end of the orphan", lambda: not alive(host, orphan))
    assert without == {orphan}
    record(
        "KillMode", unit, kernel=f"stop: all {len(processes)} processes gone after {seconds:.1f} s, a deaf one in a session of its own too",
        without="process: the deaf one goes on",
    )  # fmt: skip


def test_death_of_the_main_process_leaves_nothing(host: Host, started: Start, record: Record) -> None:
    (unit,) = started(SMALL)
    deaf = unit.ask("worker", "outlive")
    processes = unit.processes()
    assert deaf in processes
    since, began = cursor(host), time.monotonic()
    host.check_output("kill -KILL %s", unit.show("MainPID"))
    assert unit.failure(since) == "signal"
    wait_for("end of all processes", lambda: not alive(host, *processes))
    seconds = time.monotonic() - began
    wait_for("a new start", lambda: unit.show("ActiveState") == "active")
    assert not unit.processes() & processes
    record("KillMode", unit, kernel=f"main process killed: all {len(processes)} gone after {seconds:.1f} s, then started again")


# Another host of the network, which no unit is let out to.
UNNAMED, OUTSIDE_PORT = "192.0.2.2", 8080
# sshd answers on loopback.
CALLED = {"127.0.0.1": 22, UNNAMED: OUTSIDE_PORT}
NETWORKS = {"any": ["0.0.0.0/0", "::/0"], "localhost": ["127.0.0.0/8", "::1/128"], "link-local": ["169.254.0.0/16", "fe80::/64"]}


@pytest.fixture
def outside(host: Host) -> Iterator[None]:
    """The other host, behind a link of its own; it answers on a port."""
    host.check_output(
        "ip netns add outside && ip link add inside0 type veth peer name outside0 netns outside"
        f" && ip address add 192.0.2.1/24 dev inside0 && ip link set inside0 up"
        f" && ip -n outside address add {UNNAMED}/24 dev outside0"
        " && ip -n outside link set outside0 up"
        " && systemd-run --quiet --unit=mock-outside --property=NetworkNamespacePath=/run/netns/outside"
        f" python3 -m http.server {OUTSIDE_PORT}"
    )
    wait_for("the other host", lambda: host.run(f"timeout 5 bash -c '< /dev/tcp/{UNNAMED}/{OUTSIDE_PORT}'").rc == 0)
    yield
    host.check_output("systemctl stop mock-outside && ip link delete inside0 && ip netns delete outside")


def admits(unit: Unit, address: str) -> bool:
    """Whether the rendered lists let an address through: allowed, or not denied."""

    def lists(directive: str) -> bool:
        words = " ".join(unit.rendered(directive)).split()
        networks = [ipaddress.ip_network(network) for word in words for network in NETWORKS.get(word, [word])]
        return any(ipaddress.ip_address(address) in network for network in networks)

    return lists("IPAddressAllow") or not lists("IPAddressDeny")


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("name", [ALONE, "unified-api-gateway"])
def test_addresses(started: Start, units: dict[str, Unit], record: Record, name: str) -> None:
    unit = units[name]
    denied = unit.rendered("IPAddressDeny")
    assert denied, f"{unit.name} renders no IPAddressDeny"
    started(name)
    errors = {address: unit.ask("main", "connect", address, port) for address, port in CALLED.items()}
    assert {address: error is None for address, error in errors.items()} == {address: admits(unit, address) for address in CALLED}
    assert (errors["127.0.0.1"] is None, errors[UNNAMED] is None) == (True, False)
    unit.stop()
    with with_mock_setting(unit, "IPAddressDeny="):
        unit.start()
        assert [unit.ask("main", "connect", address, port) for address, port in CALLED.items()] == [None] * len(CALLED)
        unit.stop()
    record(
        "IPAddressDeny", unit, rendered=f"{' '.join(denied)}, IPAddressAllow={' '.join(unit.rendered('IPAddressAllow'))}",
        kernel=", ".join(f"{address}: {error or 'connects'}" for address, error in errors.items()), without="all connect",
    )  # fmt: skip
