#!/usr/bin/env python3
"""A Debian virtual machine with a kernel of its own, for what only cgroup v2 and BPF enforce (molecule scenario `kernel`).

The lab host (``host.py``) is a guest of this machine's kernel, which may enforce less than a server's. This one is emulated by QEMU
(TCG, no KVM): slow, and it needs nothing of the machine but a free port on loopback. Its network ends in QEMU: nothing that it sends
leaves this machine.

* ``create``   install what is missing, build or reuse the image, boot it, prove that it runs on cgroup v2
* ``destroy``  end it; what it wrote is gone with it, only the cached image stays
* ``status``   one line

Needs root to install packages and to build an image, and asks sudo for it. Only the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from host import (
    CHECKOUT,
    GUEST_PACKAGES,
    SUITE,
    LabError,
    cache_folder,
    install_packages,
    lock,
    make_owned_folder,
    owner_of_cache,
    read_record,
    run,
    say,
    start_time,
)

NAME: Final = "citadel-kernel"
CPUS: Final = 2
MEMORY_MIB: Final = 1536
SWAP_BYTES: Final = 512 << 20
ROOT_BYTES: Final = 2 << 30
# QEMU's own address plan for user networking; its host forwarding leads to this guest address.
ADDRESS: Final = "10.0.2.15/24"

CONTROLLER_PACKAGES: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "mkswap": "util-linux",
    "ssh": "openssh-client",
}
# A kernel, and what our roles install before they write the units.
PACKAGES: Final = f"{GUEST_PACKAGES},linux-image-cloud-amd64,initramfs-tools,python3-systemd"
FILES: Final = {
    "etc/hostname": f"{NAME}\n",
    "etc/hosts": f"127.0.0.1 localhost {NAME}\n",
    "etc/machine-id": "",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n/dev/vdb none swap sw 0 0\n",
    "etc/systemd/network/10-ethernet.network": (
        f"[Match]\nType=ether\nKind=!*\n\n[Network]\nAddress={ADDRESS}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    ),
}
BOOT_SECONDS: Final = 600
END_SECONDS: Final = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The virtual machine and where its files lie."""

    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / "kernel"

    @property
    def state(self) -> Path:
        """What belongs to the running machine and is gone with it."""
        return self.folder / "machine"

    @property
    def process(self) -> Path:
        return self.state / "process.json"

    @property
    def console(self) -> Path:
        return self.state / "console.log"

    @property
    def ssh_config(self) -> Path:
        return self.state / "ssh_config"

    def record(self) -> dict[str, object] | None:
        """The running QEMU as it was started, or None."""
        return read_record(self.process)


# --- image ---------------------------------------------------------------------------------------------------------


def image_folder(machine: Machine) -> Path:
    """Kernel, initrd, root file system, swap and keys: built once for what they are made from and a month (security fixes)."""
    made_from = (SUITE, PACKAGES, sorted(FILES.items()), ROOT_BYTES, SWAP_BYTES, inspect.getsource(build_image), time.strftime("%Y-%m"))
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]
    image = machine.folder / f"image-{key}"
    if not image.exists():
        say(f"building a Debian {SUITE} with a kernel (about two minutes, once): {image}")
        partial = machine.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)  # there may be none; what cannot go fails the next line
        make_owned_folder(partial)
        build_image(partial)
        for old in machine.folder.glob("image-*"):
            shutil.rmtree(old)
        partial.rename(image)
    return image


def build_image(folder: Path) -> None:
    """Fill the folder. The root file system is a file made from a folder, so that no loop device is needed."""
    root = folder / "root"
    run("mmdebstrap", "--variant=minbase", "--format=directory", f"--include={PACKAGES}", SUITE, root)
    for file, text in FILES.items():
        (root / file).write_text(text)
    units = "systemd-networkd.service", "ssh.service"
    run("systemctl", f"--root={root}", "enable", *units)
    # What takes a processor's time by itself would show in what is measured.
    timers = "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"
    run("systemctl", f"--root={root}", "mask", *timers)
    for key in ("id_ed25519", "host_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", folder / key)
    authorized = root / "root/.ssh/authorized_keys"
    authorized.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(folder / "id_ed25519.pub", authorized)
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    (folder / "host_key").rename(root / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(root / "vmlinuz", folder / "vmlinuz", follow_symlinks=True)
    shutil.copy(root / "initrd.img", folder / "initrd.img", follow_symlinks=True)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "root.ext4", f"{ROOT_BYTES >> 10}k")
    shutil.rmtree(root)
    with (folder / "swap.raw").open("wb") as swap:
        swap.truncate(SWAP_BYTES)
    run("mkswap", "--quiet", folder / "swap.raw")
    person = owner_of_cache()
    for path in folder.iterdir():
        os.chown(path, person.pw_uid, person.pw_gid)


# --- the machine's life --------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def qemu_command(machine: Machine, image: Path, port: int) -> list[str]:
    def drive(name: str) -> str:
        # What the guest writes goes to a file without a name, which ends with QEMU: every machine starts from the image as built.
        return f"file={image / name},format=raw,if=virtio,snapshot=on"

    return [
        "nice", "-n", "10", "qemu-system-x86_64", "-name", NAME, "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max",
        "-smp", str(CPUS), "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none",
        "-serial", f"file:{machine.console}",
        "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"),
        "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet",
        "-drive", drive("root.ext4"), "-drive", drive("swap.raw"),
        "-netdev", f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net0,romfile=",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip


def boot(machine: Machine, image: Path) -> None:
    make_owned_folder(machine.state)
    port = free_port()
    write_ssh_config(machine, image, port)

    def write_record() -> None:
        # By the child, before it becomes QEMU: there is no moment at which QEMU runs and nobody knows.
        record = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "port": port, "checkout": str(CHECKOUT)}
        machine.process.write_text(json.dumps(record))

    with (machine.state / "qemu.log").open("wb") as log:
        child = subprocess.Popen(
            qemu_command(machine, image, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=write_record,
        )
    deadline = time.monotonic() + BOOT_SECONDS
    while ssh(machine, "systemctl is-system-running --wait", check=False).stdout.strip() != "running":
        if child.poll() is not None or time.monotonic() > deadline:
            reason = (machine.state / "qemu.log").read_text() + (machine.console.read_text()[-2000:] if machine.console.exists() else "")
            raise LabError(f"the virtual machine did not boot: {reason or 'it said nothing'}")
        time.sleep(0.2)


def write_ssh_config(machine: Machine, image: Path, port: int) -> None:
    known = machine.state / "known_hosts"
    known.write_text(f"{NAME} {(image / 'host_key.pub').read_text()}")
    machine.ssh_config.write_text(
        f"Host {NAME}\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias {NAME}\n  User root\n"
        f"  IdentitiesOnly yes\n  IdentityFile {image / 'id_ed25519'}\n"
        f"  UserKnownHostsFile {known}\n  StrictHostKeyChecking yes\n  BatchMode yes\n  ConnectTimeout 30\n"
        # A login takes the guest two seconds: whoever asks for a master connection (ControlMaster) shares this one.
        f"  ControlPath {machine.state / 'ssh.socket'}\n"
    )


def ssh(machine: Machine, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run("ssh", "-F", machine.ssh_config, NAME, command, check=check)


def prove_cgroup_v2(machine: Machine) -> None:
    controllers = ssh(machine, "cat /sys/fs/cgroup/cgroup.controllers").stdout.split()
    if missing := {"cpuset", "cpu", "io", "memory", "pids"} - set(controllers):
        raise LabError(f"the virtual machine lacks cgroup v2 controllers ({', '.join(sorted(missing))}): it would prove nothing")


def end(machine: Machine) -> None:
    """End QEMU, however it was left, and remove what belonged to it. Nothing is shut down: nothing that the guest wrote is kept."""
    if machine.ssh_config.exists():
        run("ssh", "-F", machine.ssh_config, "-O", "exit", NAME, check=False)
    for number, patience in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        record = machine.record()
        if record is None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(str(record["pid"])), number)
        deadline = time.monotonic() + patience
        while machine.record() is not None and time.monotonic() < deadline:
            time.sleep(0.05)
    if (record := machine.record()) is not None:
        raise LabError(f"process {record['pid']} does not end, not even by SIGKILL")
    shutil.rmtree(machine.state, ignore_errors=True)  # there may be none, and destroying twice is no failure


def create(_arguments: argparse.Namespace) -> None:
    machine = Machine(cache=cache_folder())
    with lock(machine.folder):
        record = machine.record()
        if record is not None and record["checkout"] != str(CHECKOUT):
            other = record["checkout"]
            raise LabError(f"the virtual machine is in use by {other}. Free the way with: {other}/lab/kernel.py destroy")
        if record is not None:
            say(f"{NAME} is up already")
            return
        install_packages(CONTROLLER_PACKAGES)
        image = image_folder(machine)
        end(machine)
        started = time.monotonic()
        try:
            boot(machine, image)
            prove_cgroup_v2(machine)
        except BaseException:
            end(machine)
            raise
        say(f"{NAME} is up ({time.monotonic() - started:.1f} s): ssh -F {machine.ssh_config} {NAME}")


def destroy(_arguments: argparse.Namespace) -> None:
    machine = Machine(cache=cache_folder())
    with lock(machine.folder):
        end(machine)
    say(f"nothing of the virtual machine is left but its cache: {machine.folder}")


def status(_arguments: argparse.Namespace) -> None:
    record = Machine(cache=cache_folder()).record()
    print(f"{NAME} " + (f"running (process {record['pid']}, ssh on 127.0.0.1:{record['port']})" if record else "absent"))


def become_root() -> None:
    if os.geteuid() != 0:
        say("the virtual machine's image is made as root (Debian packages, a root file system); sudo may ask for your password")
        os.execvp("sudo", ["sudo", sys.executable, *sys.argv])


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, text in ((create, "make and boot the virtual machine"), (destroy, "end it"), (status, "one line")):
        commands.add_parser(function.__name__, help=text).set_defaults(function=function)
    arguments = parser.parse_args()
    if arguments.function is not status:
        become_root()
    try:
        arguments.function(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
