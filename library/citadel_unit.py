#!/usr/bin/python
"""Ansible module: brings one unit into force, restarting it exactly when the running process is older than what it reads."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_unit
short_description: Brings a systemd unit into force
description:
  - Starts the unit where it is not active, and restarts it where a file it reads at start is newer than its process.
  - Otherwise only reloads the service manager, where a unit file changed that applies to the running service (memory, CPU and task limits).
  - The decision is taken from the state of the host, not from what changed in this run, so a run that was killed in between is mended by the next one.
options:
  name:
    description: Name of the unit.
    type: str
    required: true
  state:
    description:
      - V(applied) decides as described and does not wait for the start to finish.
      - V(active) waits until the start has finished, and fails with the unit's status text and last journal lines where it failed, or was not asked for.
        A start that systemd repeats meanwhile has failed. In check mode nothing has been started, so nothing is waited for and nothing fails.
    type: str
    choices: [applied, active]
    default: applied
  restart_when_newer:
    description: Files that the process reads only at its start. A folder stands for the files directly in it.
    type: list
    elements: path
    default: []
  inputs_change:
    description: Whether a task before this one changed, or would change in check mode, one of those files.
    type: bool
    default: false
  known_status_text:
    description: With O(state=active), answers already when the status text is another, not sooner than after a second.
    type: str
  known_restarts:
    description: With O(state=active), RV(restarts) of the call before.
    type: int
  timeout_seconds:
    description:
      - With O(state=active), how long one call looks. Then it fails, or with O(known_status_text) answers that the unit is still activating.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    description: Says what would be done.
"""

EXAMPLES = r"""
- name: Bring hermes-2 into force
  citadel_unit:
    name: citadel-llm@hermes-2.service
    restart_when_newer: [/opt/citadel/config/services/hermes-2.env]

- name: Wait for it, and show what it waits for
  citadel_unit:
    name: citadel-llm@hermes-2.service
    state: active
    known_status_text: "{{ unit.status_text | default('') }}"
    known_restarts: "{{ unit.restarts | default(omit) }}"
  register: unit
  loop: "{{ range(600) | list }}"
  loop_control:
    label: "{{ unit.status_text }}"
    break_when: unit is failed or unit.active_state == 'active'
"""

RETURN = r"""
action:
  description: What was done, or would be done.
  returned: always
  type: str
  sample: none, started, restarted, reloaded
active_state:
  description: The unit's ActiveState after the call.
  returned: always
  type: str
status_text:
  description: What the unit says of itself while it starts.
  returned: always
  type: str
restarts:
  description: How often systemd has started it again by itself, the least that was seen.
  returned: with O(state=active)
  type: int
"""

import calendar
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

PROPERTIES = (
    "ActiveState",
    "SubState",
    "ExecMainStartTimestamp",
    "NeedDaemonReload",
    "LoadState",
    "StatusText",
    "Job",
    "Result",
    "NRestarts",
)


def show(module, name):
    """The unit's properties; times as microseconds since 1970."""
    command = ["systemctl", "show", "--timestamp=us+utc", name, *(f"--property={key}" for key in PROPERTIES)]
    _, out, _ = module.run_command(command, check_rc=True)
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def seconds(timestamp):
    """Seconds since 1970 of a systemd timestamp such as 'Mon 2026-11-23 09:18:00.123456 UTC'; 0 where there is none."""
    parts = timestamp.split()
    if len(parts) != 4:
        return 0.0
    day = time.strptime(" ".join(parts[1:3]).split(".")[0], "%Y-%m-%d %H:%M:%S")
    return calendar.timegm(day) + float("0." + parts[2].partition(".")[2])


def newest(paths):
    """Newest modification time of the files, and its path. A file that is missing was never read."""
    times = [(0.0, "")]
    for path in map(Path, paths):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.exists():
                times.append((file.stat().st_mtime, str(file)))
    return max(times)


def decide(unit, params):
    if unit["ActiveState"] in {"inactive", "failed"}:
        return "started", f"it was {unit['ActiveState']}"
    changed_at, path = newest(params["restart_when_newer"])
    if changed_at > seconds(unit["ExecMainStartTimestamp"]) > 0:
        return "restarted", f"{path} is newer than the process"
    if params["inputs_change"]:
        return "restarted", "a file that it reads at its start changes"
    if unit["NeedDaemonReload"] == "yes":
        return "reloaded", "its unit files changed"
    return "none", ""


def apply(module):
    name = module.params["name"]
    unit = show(module, name)
    action, reason = decide(unit, module.params)
    if action != "none" and not module.check_mode:
        # Always, and not where NeedDaemonReload says so: systemd 252 does not notice the first drop-in folder of a unit that it has loaded.
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
        if unit["ActiveState"] == "failed":
            module.run_command(["systemctl", "reset-failed", name], check_rc=True)
        if action != "reloaded":
            verb = "restart" if action == "restarted" else "start"
            module.run_command(["systemctl", "--no-block", verb, name], check_rc=True)
    # A reload alone is part of the change that made it necessary, and that task has reported it.
    module.exit_json(changed=action in {"started", "restarted"}, action=action, reason=reason, **state_of(module, name))


def state_of(module, name):
    unit = show(module, name)
    return {"active_state": unit["ActiveState"], "sub_state": unit["SubState"], "status_text": unit.get("StatusText", "")}


def wait(module):
    name = module.params["name"]
    known = module.params["known_status_text"]
    restarts = module.params["known_restarts"]
    began = time.monotonic()
    while True:
        unit = show(module, name)
        # A start that was asked for begins to count at 0, which may come after the first look.
        counted = int(unit.get("NRestarts", 0))
        restarts = counted if restarts is None else min(restarts, counted)
        repeated = counted > restarts
        waiting = unit["ActiveState"] in {"activating", "reloading", "deactivating"} or unit.get("Job", "0") not in {"", "0"}
        waited = time.monotonic() - began
        new = known is not None and unit.get("StatusText", "") != known and waited > 1
        if module.check_mode or repeated or not waiting or new or waited > module.params["timeout_seconds"]:
            break
        time.sleep(0.25)
    result = unit["Result"]
    # In check mode a unit that has failed is one that the real run would have started by now.
    if module.check_mode:
        module.exit_json(changed=False, action="none", restarts=restarts, **state_of(module, name))
    if unit["ActiveState"] == "failed" or repeated or (unit["SubState"] == "auto-restart" and result != "success"):
        why = "" if result == "success" else f" ({result})"
        _, journal, _ = module.run_command(["journalctl", "--unit", name, "--lines=40", "--no-pager", "--output=cat"])
        module.fail_json(
            msg=f"{name} did not start{why}: {unit.get('StatusText', '')}\nIts last words:\n{journal}See: journalctl -u {name}",
            action="none",
            restarts=restarts,
            **state_of(module, name),
        )
    if unit["ActiveState"] == "inactive" and not waiting:
        module.fail_json(msg=f"{name} is inactive and nobody has started it.", action="none", **state_of(module, name))
    if waiting and known is None:
        module.fail_json(
            msg=f"{name} is still {unit['ActiveState']} after {waited:.0f} s: {unit.get('StatusText', '')}\nSee: journalctl -u {name}",
            action="none",
            restarts=restarts,
            **state_of(module, name),
        )
    module.exit_json(changed=False, action="none", restarts=restarts, **state_of(module, name))


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["applied", "active"], "default": "applied"},
            "restart_when_newer": {"type": "list", "elements": "path", "default": []},
            "inputs_change": {"type": "bool", "default": False},
            "known_status_text": {"type": "str"},
            "known_restarts": {"type": "int"},
            "timeout_seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    apply(module) if module.params["state"] == "applied" else wait(module)


if __name__ == "__main__":
    main()
