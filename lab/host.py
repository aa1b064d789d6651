#!/usr/bin/env python3
"""Disposable lab hosts: real systemd in a systemd-nspawn guest, at the address that the inventory names.

Commands (``lab/host.py COMMAND --help`` shows the options):

* ``create``   install what is missing, build or reuse the root file system, boot the guest, prove that its limits are enforced
* ``check``    exit 0 only where a lab may be made: refuses a machine on which the lab's subnet is already routed
* ``destroy``  power the guests off and remove them, the bridge, the NAT rule and the cgroups
* ``status``   one line per lab host
* ``guard``    exit 0 only where an address is a running lab host on the lab's own bridge; prints the reason otherwise

Needs root for create and destroy. Only the standard library, so that it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import ipaddress
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NoReturn

BRIDGE: Final = "citadel-lab0"
NETWORK: Final = ipaddress.ip_interface("192.168.10.1/24")
GUESTS: Final = {"hx-llm-server-01": "192.168.10.29", "hx-llm-server-02": "192.168.10.30"}
NAT_COMMENT: Final = "citadel-lab"
SUITE: Final = "bookworm"

CONTROLLER_PACKAGES: Final = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "iptables": "iptables",
    "ssh": "openssh-client",
    "curl": "curl",
}
# A minimal Debian with what an installer leaves behind (ssh, sudo, python3) and nothing that our roles are there to install.
GUEST_PACKAGES: Final = (
    "systemd,systemd-sysv,dbus,openssh-server,python3,python3-apt,sudo,iproute2,ca-certificates,udev,kmod,acl,curl,util-linux"
)
CGROUP_V1_CONTROLLERS: Final = (
    "memory", "cpu", "cpuacct", "pids", "cpuset", "blkio", "freezer", "devices", "systemd", "unified",
)  # fmt: skip
BOOT_SECONDS: Final = 60
SHUTDOWN_SECONDS: Final = 90

LAB_FOLDER: Final = Path(__file__).resolve().parent
CHECKOUT: Final = LAB_FOLDER.parent


class LabError(Exception):
    """Something that the person at the terminal has to decide or mend; the message says what."""


def say(text: str) -> None:
    print(f"lab: {text}", flush=True)


def run(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command, its output captured; on failure the LabError holds what it said."""
    result = subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False, **options)
    if check and result.returncode != 0:
        raise LabError(
            f"`{' '.join(str(part) for part in command)}` failed ({result.returncode}): {(result.stderr or result.stdout).strip()}"
        )
    return result


def owner_of_cache() -> pwd.struct_passwd:
    """The person behind sudo: the cache and the ssh key are theirs."""
    return pwd.getpwnam(os.environ["SUDO_USER"]) if "SUDO_USER" in os.environ else pwd.getpwuid(os.getuid())


def cache_folder() -> Path:
    person = owner_of_cache()
    base = os.environ.get("XDG_CACHE_HOME") if "SUDO_USER" not in os.environ else None
    return Path(base or f"{person.pw_dir}/.cache") / "citadel-llm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guest:
    """One lab host and where its files lie."""

    name: str
    address: str
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / "lab" / self.name

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def complete(self) -> Path:
        """Written last: a root file system without it is a half-made one."""
        return self.folder / "complete.json"

    @property
    def process(self) -> Path:
        return self.folder / "process.json"

    @property
    def ssh_config(self) -> Path:
        return self.cache / "lab" / "ssh_config"

    def running(self) -> int | None:
        """Process id of the guest's nspawn, or None."""
        record = read_record(self.process)
        return None if record is None else int(str(record["pid"]))


def read_record(path: Path) -> dict[str, object] | None:
    """What was written down of a process when it started; None where it has ended. The start time guards against a reused id."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        record = dict(json.loads(path.read_text()))
        if start_time(int(record["pid"])) == record["start_time"]:
            return record
    return None


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process started, from /proc/PID/stat field 22; None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def all_guests(cache: Path) -> list[Guest]:
    return [Guest(name=name, address=address, cache=cache) for name, address in GUESTS.items()]


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One lab operation at a time on what the folder holds; a killed one leaves no lock behind."""
    make_owned_folder(folder)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another lab command is at work; waiting until it ends")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_owned_folder(path: Path) -> None:
    person = owner_of_cache()
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        os.chown(folder, person.pw_uid, person.pw_gid)


# --- network -------------------------------------------------------------------------------------------------------


def routes() -> list[dict[str, object]]:
    return list(json.loads(run("ip", "-json", "-4", "route", "show", "table", "all").stdout or "[]"))


def foreign_routes() -> list[str]:
    """Routes of other devices that overlap with the lab's subnet: then the addresses are somebody's."""
    found = []
    for route in routes():
        destination = str(route.get("dst", "default"))
        if destination == "default" or route.get("dev") == BRIDGE or route.get("type") in {"broadcast", "multicast"}:
            continue
        with contextlib.suppress(ValueError):
            if ipaddress.ip_network(destination, strict=False).overlaps(NETWORK.network):
                found.append(f"{destination} dev {route.get('dev', '?')}")
    return sorted(set(found))


def refuse_routed_subnet() -> None:
    if found := foreign_routes():
        raise LabError(
            f"the lab's subnet {NETWORK.network} is already routed on this machine ({', '.join(found)}): those addresses may be real servers of yours. "
            "Create the lab on a machine that has no such network; nothing was changed and nothing was sent."
        )


def default_route() -> dict[str, object]:
    found = [route for route in routes() if route.get("dst") == "default" and "dev" in route]
    if not found:
        raise LabError("this machine has no default route, and the guest installs Debian packages through it")
    return found[0]


def nat_rule() -> list[str]:
    return [
        "POSTROUTING",
        "-s",
        str(NETWORK.network),
        "!",
        "-d",
        str(NETWORK.network),
        "-m",
        "comment",
        "--comment",
        NAT_COMMENT,
        "-j",
        "MASQUERADE",
    ]


def forward_rules() -> list[list[str]]:
    """A machine whose FORWARD policy is DROP (a container engine's, say) would cut the guest off."""
    return [["FORWARD", direction, BRIDGE, "-m", "comment", "--comment", NAT_COMMENT, "-j", "ACCEPT"] for direction in ("-i", "-o")]


def network_up(cache: Path) -> None:
    refuse_routed_subnet()
    if run("ip", "link", "show", BRIDGE, check=False).returncode != 0:
        device = str(default_route()["dev"])
        mtu = Path(f"/sys/class/net/{device}/mtu").read_text().strip()
        run("ip", "link", "add", BRIDGE, "mtu", mtu, "type", "bridge")
    run("ip", "address", "replace", str(NETWORK), "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    remembered = cache / "lab" / "ip_forward"
    if not remembered.exists():
        remembered.write_text(forwarding.read_text())
    forwarding.write_text("1\n")
    if run("iptables", "-w", "-t", "nat", "-C", *nat_rule(), check=False).returncode != 0:
        run("iptables", "-w", "-t", "nat", "-A", *nat_rule())
    for rule in forward_rules():
        if run("iptables", "-w", "-C", *rule, check=False).returncode != 0:
            run("iptables", "-w", "-I", *rule)


def network_down(cache: Path) -> None:
    while run("iptables", "-w", "-t", "nat", "-D", *nat_rule(), check=False).returncode == 0:
        pass
    for rule in forward_rules():
        while run("iptables", "-w", "-D", *rule, check=False).returncode == 0:
            pass
    remembered = cache / "lab" / "ip_forward"
    if remembered.exists():
        Path("/proc/sys/net/ipv4/ip_forward").write_text(remembered.read_text())
        remembered.unlink()
    if run("ip", "link", "show", BRIDGE, check=False).returncode == 0:
        run("ip", "link", "delete", BRIDGE)


def reason_against(address: str, cache: Path) -> str | None:
    """Why nothing may be sent to the address, or None where it is a running lab host of ours. Sends nothing."""
    names = {guest_address: name for name, guest_address in GUESTS.items()}
    if address not in names:
        return f"{address} is not the address of a lab host ({', '.join(GUESTS.values())})"
    guest = Guest(name=names[address], address=address, cache=cache)
    route = json.loads(run("ip", "-json", "route", "get", address, check=False).stdout or "[]")
    if not route or "gateway" in route[0] or route[0].get("dev") != BRIDGE:
        return f"no lab is up: {address} is not directly linked over {BRIDGE}, so it would be somebody else's server. Create the lab with: make demo"
    if guest.running() is None:
        return f"the lab host {guest.name} is not running. Start it with: make demo"
    return None


# --- control groups ------------------------------------------------------------------------------------------------


def cgroup_folders(name: str) -> list[Path]:
    """The guest's cgroup in every version 1 hierarchy (and the hybrid `unified` one); empty on a pure version 2 machine."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return []
    return [
        Path("/sys/fs/cgroup") / controller / f"{NAT_COMMENT}-{name}"
        for controller in CGROUP_V1_CONTROLLERS
        if (Path("/sys/fs/cgroup") / controller).is_dir()
    ]


def make_cgroups(name: str) -> None:
    for folder in cgroup_folders(name):
        folder.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (folder / setting).exists():
                (folder / setting).write_text((folder.parent / setting).read_text())


def remove_cgroups(name: str) -> None:
    for folder in cgroup_folders(name):
        if folder.exists():
            for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                below.rmdir()
            folder.rmdir()


# --- root file system ----------------------------------------------------------------------------------------------


def install_packages(package_of: Mapping[str, str]) -> None:
    """Install the Debian packages, given by program, whose programs are missing on this machine."""
    missing = sorted({package for program, package in package_of.items() if shutil.which(program) is None})
    if not missing:
        return
    say(f"installing Debian packages on this machine: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=environment)
    run("apt-get", "install", "-qq", "--no-install-recommends", *missing, env=environment)


def rootfs_archive(cache: Path) -> Path:
    """The guest's Debian as one archive, built once per package list and month (security fixes), outside the checkout."""
    key = hashlib.sha256(f"{SUITE} {GUEST_PACKAGES} {time.strftime('%Y-%m')}".encode()).hexdigest()[:12]
    archive = cache / "rootfs" / f"{SUITE}-{key}.tar"
    if not archive.exists():
        make_owned_folder(archive.parent)
        for old in archive.parent.glob("*.tar*"):
            old.unlink()
        say(f"building a minimal Debian {SUITE} (about a minute, once): {archive}")
        partial = archive.with_suffix(".partial")
        run("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={GUEST_PACKAGES}", SUITE, partial)
        partial.rename(archive)
    return archive


def make_root(guest: Guest, archive: Path) -> None:
    """Unpack the archive and make it this guest: name, network, key, certificates."""
    if guest.folder.exists():
        shutil.rmtree(guest.folder)
    make_owned_folder(guest.folder)
    guest.root.mkdir(mode=0o755)
    run("tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file", archive, "--directory", guest.root)
    etc = guest.root / "etc"
    (etc / "hostname").write_text(f"{guest.name}\n")
    # Without its own name here every fact gathering waits 10 s for a resolver.
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{guest.address} {guest.name}\n")
    (etc / "machine-id").write_text("")
    # The archive comes without package lists, in a folder so new that they would count as fresh.
    os.utime(guest.root / "var/lib/apt/lists", (0, 0))
    gateway, prefix = NETWORK.ip, NETWORK.network.prefixlen
    mtu = Path(f"/sys/class/net/{BRIDGE}/mtu").read_text().strip()
    (etc / "systemd/network/10-host0.network").write_text(
        f"[Match]\nName=host0\n\n[Link]\nMTUBytes={mtu}\n\n[Network]\nAddress={guest.address}/{prefix}\nGateway={gateway}\nLinkLocalAddressing=no\n"
    )
    run("systemctl", f"--root={guest.root}", "enable", "systemd-networkd.service", "ssh.service")
    shutil.copy(LAB_FOLDER / "guest" / "lab-init", guest.root / "sbin" / "lab-init")
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():
        shutil.copy(certificates, etc / "ssl/certs/ca-certificates.crt")
    make_keys(guest)


def make_keys(guest: Guest) -> None:
    """A key of the lab's own to log in with, and the guest's host key made here, so that ssh checks it strictly from the first time on."""
    key = guest.cache / "lab" / "id_ed25519"
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "citadel-lab", "-f", key)
    authorized = guest.root / "root/.ssh/authorized_keys"
    authorized.parent.mkdir(mode=0o700, exist_ok=True)
    authorized.write_text(key.with_suffix(".pub").read_text())
    for old in (guest.root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    host_key = guest.root / "etc/ssh/ssh_host_ed25519_key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", guest.name, "-f", host_key)
    (guest.folder / "host_key.pub").write_text(host_key.with_suffix(".pub").read_text())


def write_ssh_config(cache: Path) -> None:
    """What every lab tool gives to ssh with -F. A host that is not the lab's own gets a ProxyCommand that says so instead of a connection."""
    person = owner_of_cache()
    lab = cache / "lab"
    known = lab / "known_hosts"
    made = [guest for guest in all_guests(cache) if (guest.folder / "host_key.pub").exists()]
    known.write_text("".join(f"{guest.name},{guest.address} {(guest.folder / 'host_key.pub').read_text()}" for guest in made))
    guard = LAB_FOLDER / "host.py"
    blocks = [f"Host {guest.name}\n  HostName {guest.address}\n" for guest in all_guests(cache)]
    blocks.append(
        "Host *\n  User root\n  IdentitiesOnly yes\n  BatchMode yes\n  ConnectTimeout 10\n"
        f"  IdentityFile {lab / 'id_ed25519'}\n  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n"
    )
    # The route is asked for every connection, so by what starts in milliseconds; the guard says the rest.
    linked = f"ip -4 route get %h 2>/dev/null | grep -q '^%h dev {BRIDGE} '"
    blocks.append(f'Match !exec "{linked}"\n  ProxyCommand {guard} guard %h\n')
    (lab / "ssh_config").write_text("\n".join(blocks))
    for path in (lab / "id_ed25519", lab / "id_ed25519.pub", known, lab / "ssh_config", lab):
        os.chown(path, person.pw_uid, person.pw_gid)


# --- the guest's life ----------------------------------------------------------------------------------------------


def boot(guest: Guest, binds: list[str]) -> None:
    make_cgroups(guest.name)
    command = [
        str(LAB_FOLDER / "guest" / "boot"), "systemd-nspawn", "--quiet", f"--directory={guest.root}", f"--machine={guest.name}", f"--hostname={guest.name}",
        "--register=no", "--keep-unit", "--kill-signal=SIGRTMIN+3", f"--network-bridge={BRIDGE}", "--resolv-conf=copy-host",
        "--timezone=off", "--link-journal=no", "--console=pipe", *binds, "/sbin/lab-init",
    ]  # fmt: skip
    if Path("/run/systemd/system").exists():
        # A service manager owns this machine's cgroup tree: let it hand a delegated part of it to the guest.
        command = [
            "systemd-run",
            "--quiet",
            "--scope",
            "--collect",
            "--property=Delegate=yes",
            f"--unit={NAT_COMMENT}-{guest.name}",
            *command,
        ]
    cgroups = cgroup_folders(guest.name)

    def enter_cgroups() -> None:
        for folder in cgroups:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    with (guest.folder / "console.log").open("ab") as console:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True, preexec_fn=enter_cgroups
        )
    guest.process.write_text(json.dumps({"pid": child.pid, "start_time": start_time(child.pid), "binds": binds}))
    deadline = time.monotonic() + BOOT_SECONDS
    while (
        ssh(guest, "systemctl is-system-running --wait >/dev/null 2>&1; test -S /run/dbus/system_bus_socket", check=False).returncode != 0
    ):
        if child.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"the guest {guest.name} did not boot; its console: {guest.folder / 'console.log'}")
        time.sleep(0.2)


def ssh(guest: Guest, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("ssh", "-F", guest.ssh_config, guest.name, command, check=check)


def prove_limits(guest: Guest) -> None:
    """A 50 MiB unit that takes 20 MiB must live and one that takes 100 MiB must die, or every figure that the lab shows would be worthless."""

    def lives(mebibytes: int) -> bool:
        unit = "systemd-run --quiet --wait --collect -p MemoryMax=50M -p MemorySwapMax=0"
        return ssh(guest, f"{unit} python3 -c 'block = bytearray({mebibytes} << 20)'", check=False).returncode == 0

    if not lives(20) or lives(100):
        raise LabError(
            f"the guest {guest.name} does not enforce limits: units with MemoryMax=50M that take 20 and 100 MiB must live and die. The lab would prove nothing "
            "on this machine; check that its memory controller is available (docs/lab.md)."
        )


def shut_down(guest: Guest) -> None:
    pid = guest.running()
    if pid is not None:
        say(f"powering {guest.name} off")
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while guest.running() is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.1)
        while guest.running() is not None:
            time.sleep(0.1)
    guest.process.unlink(missing_ok=True)
    kill_leftovers(guest)
    remove_cgroups(guest.name)


def kill_leftovers(guest: Guest) -> None:
    """Where nspawn itself was killed, the guest's processes live on in the guest's cgroups: end exactly those."""
    deadline = time.monotonic() + 10
    while members := {
        int(line)
        for folder in cgroup_folders(guest.name)
        if folder.exists()
        for tasks in folder.rglob("cgroup.procs")
        for line in tasks.read_text().split()
    }:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes of {guest.name} do not end: {sorted(members)}")
        time.sleep(0.1)


def identity(owner: str) -> dict[str, str]:
    """Who uses a lab host: what for, and from which checkout."""
    return {"owner": owner, "checkout": str(CHECKOUT)}


def create(arguments: argparse.Namespace) -> None:
    require_root("create")
    cache = cache_folder()
    guest = Guest(name=arguments.name, address=GUESTS[arguments.name], cache=cache)
    with lock(cache / "lab"):
        refuse_routed_subnet()
        owner = identity(arguments.owner)
        if guest.complete.exists() and (found := json.loads(guest.complete.read_text())) != owner and guest.running() is not None:
            raise LabError(
                f"the lab host {guest.name} is in use: '{found['owner']}' of {found['checkout']}. Free the way with: make -C {found['checkout']} destroy"
            )
        install_packages(CONTROLLER_PACKAGES)
        archive = rootfs_archive(cache)
        network_up(cache)
        if guest.complete.exists() and json.loads(guest.complete.read_text()) != owner:
            guest.complete.unlink()
        if not guest.complete.exists():
            shut_down(guest)
            say(f"unpacking the root file system of {guest.name}")
            make_root(guest, archive)
            guest.complete.write_text(json.dumps(owner))
        write_ssh_config(cache)
        binds = [bind_option(bind) for bind in arguments.bind]
        if guest.running() is None or json.loads(guest.process.read_text()).get("binds") != binds:
            shut_down(guest)
            started = time.monotonic()
            boot(guest, binds)
            say(f"{guest.name} is up at {guest.address} ({time.monotonic() - started:.1f} s)")
        prove_limits(guest)
        say(f"{guest.name} enforces limits: a 50 MiB unit that took 100 MiB was killed")


def bind_option(bind: str) -> str:
    """``FOLDER:PATH[:ro]`` as nspawn's option; the folder is made where it is missing."""
    folder, path, *mode = bind.split(":")
    make_owned_folder(Path(folder))
    return f"--bind{'-ro' if mode == ['ro'] else ''}={folder}:{path}"


def check(_arguments: argparse.Namespace) -> None:
    """Before anything is downloaded; create asks again, then with every tool there."""
    if shutil.which("ip") is not None:
        refuse_routed_subnet()


def destroy(arguments: argparse.Namespace) -> None:
    require_root("destroy")
    cache = cache_folder()
    with lock(cache / "lab"):
        for guest in all_guests(cache):
            # One that is not complete was left by a killed creation: the lock is held while another is made.
            others = arguments.owner and guest.complete.exists() and json.loads(guest.complete.read_text()) != identity(arguments.owner)
            if arguments.name in {None, guest.name} and not others:
                shut_down(guest)
                if guest.folder.exists():
                    shutil.rmtree(guest.folder)
        if not any(guest.folder.exists() for guest in all_guests(cache)):
            network_down(cache)
            for name in ("id_ed25519", "id_ed25519.pub", "known_hosts", "ssh_config"):
                (cache / "lab" / name).unlink(missing_ok=True)
            say("nothing of the lab is left but its cache: " + str(cache))
        else:
            say("left: " + ", ".join(guest.name for guest in all_guests(cache) if guest.folder.exists()))


def status(_arguments: argparse.Namespace) -> None:
    cache = cache_folder()
    for guest in all_guests(cache):
        pid = guest.running()
        state = f"running (process {pid})" if pid else "made, not running" if guest.complete.exists() else "absent"
        print(f"{guest.name} {guest.address} {state}")


def guard(arguments: argparse.Namespace) -> None:
    address = GUESTS.get(arguments.address, arguments.address)
    if reason := reason_against(address, cache_folder()):
        raise LabError(f"{reason} Nothing was sent.")


def require_root(command: str) -> None:
    if os.geteuid() != 0:
        raise LabError(f"'{command}' needs root; run it with sudo")


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("create", help="make and boot a lab host, or boot it again")
    command.add_argument("name", choices=GUESTS)
    command.add_argument("--owner", default="demo", help="who uses it: a second user is told, never disturbed")
    command.add_argument(
        "--bind", action="append", default=[], metavar="FOLDER:PATH[:ro]", help="show a folder of this machine to the guest"
    )
    command.set_defaults(function=create)
    command = commands.add_parser("check", help="exit 0 only where a lab may be made; changes and sends nothing")
    command.set_defaults(function=check)
    command = commands.add_parser("destroy", help="remove lab hosts, and the network after the last one")
    command.add_argument("name", nargs="?", choices=GUESTS)
    command.add_argument("--owner", help="leave lab hosts that another owner, or another checkout, has made")
    command.set_defaults(function=destroy)
    command = commands.add_parser("status", help="one line per lab host")
    command.set_defaults(function=status)
    command = commands.add_parser("guard", help="exit 0 only where the address is a running lab host")
    command.add_argument("address")
    command.set_defaults(function=guard)
    arguments = parser.parse_args()
    try:
        arguments.function(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
