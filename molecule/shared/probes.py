"""What a unit may do, tried out in its own confinement.

A probe is the unit itself with another program: its unit file and all its drop-ins, as they are on the host, under a name of its own. So
user, capabilities, system calls, namespaces, credentials and mounts are the unit's; nothing is entered from outside with more rights.
The running unit is left alone: the folder in /run that both share is kept, and no process id file is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from testinfra.host import Host

PROBE = "lab-probe"
OTHER_PROGRAM = f"""
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
RuntimeDirectoryPreserve=yes
PIDFile=
ExecStart=
ExecStartPost=
ExecStopPost=
ExecReload=
ExecStart=/bin/sh /run/{PROBE}.sh
StandardOutput=file:/run/{PROBE}.out
StandardError=null
"""


def succeeding(host: Host, unit: str, attempts: Mapping[str, str]) -> set[str]:
    """Names of those attempts, shell commands by name, that succeed where ``unit`` is confined. Fails where the probe does not run."""
    lines = [f"( {command} ) > /dev/null 2>&1 && echo '{name}'" for name, command in attempts.items()]
    script = "\n".join([*lines, "echo the-probe-ran", ""])
    # %i is of the unit's name, not of the probe's.
    instance = unit.partition("@")[2].removesuffix(".service")
    write = f"systemctl cat --no-pager %s | sed 's/%%i/{instance}/g' > /run/systemd/system/{PROBE}.service"
    try:
        host.check_output(f"rm -f /run/{PROBE}.out && mkdir -p /run/systemd/system && {write}", unit)
        host.check_output(f"printf %%s %s >> /run/systemd/system/{PROBE}.service", OTHER_PROGRAM)
        host.check_output(f"printf %%s %s > /run/{PROBE}.sh && chmod 644 /run/{PROBE}.sh && systemctl daemon-reload", script)
        ran = host.run(f"systemctl start {PROBE}.service")
        assert ran.rc == 0, ran.stderr + host.run(f"systemctl status --no-pager {PROBE}.service").stdout
        seen = set(host.check_output(f"cat /run/{PROBE}.out").splitlines())
    finally:
        host.run(
            f"systemctl stop {PROBE}.service; systemctl reset-failed {PROBE}.service;"
            f" rm -f /run/systemd/system/{PROBE}.service /run/{PROBE}.sh /run/{PROBE}.out; systemctl daemon-reload"
        )
    assert "the-probe-ran" in seen
    return seen - {"the-probe-ran"}
