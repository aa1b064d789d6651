#!/usr/bin/python
"""Ansible module: adds and revokes client keys of the edge, in their file and in the running HAProxy alike."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_edge_clients
short_description: Adds and revokes client keys of the edge without a reload
description:
  - Keeps the map from the SHA-256 of each client key to the name of its client, and makes the running HAProxy's copies of this map and of
    O(maps) what the files are, over its runtime socket. A key itself never comes here.
  - What is to be done is found by comparing HAProxy with the files, whatever O(state) is, so a run that was killed in between is mended by the next one.
  - Where HAProxy does not run, or does not have a map yet, it reads the files when it starts.
options:
  keys_file:
    description: The map from SHA-256 to name. It is made where it is missing, for root alone to write.
    type: path
    required: true
  maps:
    description: Other maps of clients, which somebody else writes.
    type: list
    elements: path
    default: []
  socket:
    description: HAProxy's runtime socket.
    type: path
    required: true
  state:
    description:
      - V(applied) changes no key.
      - V(present) gives O(name) the key with the sum O(key_sha256), beside those that it has.
      - V(absent) takes all keys of O(name), or that with O(fingerprint).
    type: str
    choices: [applied, present, absent]
    default: applied
  name:
    description: Name of the client.
    type: str
  key_sha256:
    description: SHA-256 of the key, in hexadecimal digits.
    type: str
  fingerprint:
    description: The first digits of a key's SHA-256, as RV(clients) shows them.
    type: str
attributes:
  check_mode:
    support: full
    description: Says what would be done.
  diff_mode:
    support: none
    description: Sums of keys are not shown.
"""

EXAMPLES = r"""
- name: Let the web shop in
  citadel_edge_clients:
    keys_file: /etc/haproxy/citadel/client-keys.map
    socket: /run/citadel-edge/admin.sock
    state: present
    name: web-shop
    key_sha256: "{{ key | hash('sha256') }}"
"""

RETURN = r"""
clients:
  description:
    - Every key by its client's C(name) and its C(fingerprint), and what the client does (C(usage), empty where it has not been seen since
      HAProxy's last reload). C(requests) were let through, C(refused) not, C(last_minute) counts the former, C(now) those in work.
  returned: always
  type: list
  elements: dict
  sample: [{name: web-shop, fingerprint: 4c3fe847, usage: {requests: 812, refused: 0, last_minute: 14, now: 2}}]
summary:
  description: The same for a person, a line for what was done and for each key.
  returned: always
  type: list
  elements: str
actions:
  description: What was done, or would be done.
  returned: always
  type: list
  elements: str
  sample: [web-shop got a key]
"""

import contextlib
import fcntl
import os
import re
import socket
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

FINGERPRINT_DIGITS = 8
HEADER = "# SHA-256 of each client key, and the client's name. Written by playbooks/keys.yml alone.\n"
ENTRY = re.compile(r"([0-9a-f]{64}) (\S+)")
USAGE = {"requests": "gpc0", "refused": "gpc1", "last_minute": "gpc0_rate(60000)", "now": "conn_cur"}
TIMEOUT_SECONDS = 10


class Failure(Exception):
    """A sentence for the operator."""


def read_map(path):
    """Entries of a map of HAProxy's, the last of each key; None where there is no such file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return None
    return dict(line.split(None, 1) for line in lines if line and not line.startswith("#") and len(line.split(None, 1)) == 2)


def read_keys(path):
    keys = read_map(path) or {}
    broken = [name for key, name in keys.items() if not ENTRY.fullmatch(f"{key} {name}")]
    if broken:
        raise Failure(f"{path} has {len(broken)} lines that are no key of a client: take them out, or restore the file.")
    return keys


def write_keys(path, keys):
    """Put a whole new file in the old one's place: HAProxy may read it at any moment."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o640)
    unfinished.chmod(0o640)
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(HEADER + "".join(f"{key} {name}\n" for key, name in sorted(keys.items(), key=lambda entry: entry[::-1])))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


class HAProxy:
    """The running process, one command per connection."""

    def __init__(self, path):
        self.path = path

    def ask(self, command):
        """What it answers; None where it does not run."""
        answer = b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_SECONDS)
            try:
                connection.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            connection.sendall(command.encode() + b"\n")
            while part := connection.recv(65536):
                answer += part
        return answer.decode().strip()

    def tell(self, command):
        answer = self.ask(command)
        if answer:
            raise Failure(f"HAProxy did not take a change of {command.split()[2]}: {answer}")

    def entries(self, path):
        """Reference, key and value of each entry that it has of a map; None where it has no such map."""
        answer = self.ask(f"show map {path}")
        if answer is None or answer.startswith("Unknown map"):
            return None
        return [line.split(None, 2) for line in answer.splitlines()]

    def usage(self):
        """Per client its counters, by the names that a person knows them by."""
        found = {}
        for line in (self.ask("show table clients") or "").splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if "key" in fields:
                found[fields["key"]] = {name: int(fields[field]) for name, field in USAGE.items()}
        return found


def differences(wanted, entries):
    """The commands, without the map's name, that make HAProxy's entries what is wanted. A value is replaced in place: no request sees a gap."""
    commands = []
    missing = dict(wanted)
    for reference, key, value in entries:
        target = missing.pop(key, None)
        if target is None:
            commands.append(("del", f"#{reference}"))
        elif target != value:
            commands.append(("set", f"#{reference} {target}"))
    return commands + [("add", f"{key} {value}") for key, value in missing.items()]


def apply_map(haproxy, path, wanted, check_mode):
    """Whether HAProxy's copy of one map differs from what is wanted; mends it."""
    entries = haproxy.entries(path)
    commands = [] if entries is None else differences(wanted, entries)
    if commands and not check_mode:
        for verb, rest in commands:
            haproxy.tell(f"{verb} map {path} {rest}")
        if differences(wanted, haproxy.entries(path) or []):
            raise Failure(f"HAProxy has not taken all of {path}: run this again.")
    return bool(commands)


def change_keys(keys, params):
    """The keys as they are to be, and what that does."""
    name, digest, fingerprint = params["name"], params["key_sha256"], params["fingerprint"]
    if params["state"] == "present":
        owner = keys.get(digest)
        if owner is not None and owner != name:
            raise Failure(f"This key is {owner}'s: give {name} one of its own.")
        return keys | {digest: name}, [] if owner else [f"{name} got a key"]
    if params["state"] == "absent":
        gone = {key for key, owner in keys.items() if owner == name and key.startswith(fingerprint or "")}
        return {key: owner for key, owner in keys.items() if key not in gone}, [f"{name} lost a key"] * len(gone)
    return keys, []


def run(module):
    params, check_mode = module.params, module.check_mode
    path = Path(params["keys_file"])
    if not path.parent.is_dir() and not check_mode:
        raise Failure(f"{path.parent} is missing: the edge has not been deployed here. Run site.yml first.")
    with contextlib.ExitStack() as stack:
        if path.parent.is_dir():
            # One operator at a time.
            lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_keys(path)
        keys, actions = change_keys(before, params)
        if not path.exists():
            actions.append(f"{path} is made")
        elif path.stat().st_mode & 0o777 != 0o640:
            actions.append(f"{path} is kept from others")
        if actions and not check_mode:
            write_keys(path, keys)
        haproxy = HAProxy(params["socket"])
        # In check mode HAProxy is compared with what the file is, so that what a change would do to both is said once.
        for file, wanted in [(path, before if check_mode else keys), *((file, read_map(Path(file))) for file in params["maps"])]:
            if wanted is not None and apply_map(haproxy, file, wanted, check_mode) and not actions:
                actions.append(f"HAProxy is told of {file}")
    usage = haproxy.usage()
    listed = [
        {"name": name, "fingerprint": key[:FINGERPRINT_DIGITS], "usage": usage.get(name, {})}
        for key, name in sorted(keys.items(), key=lambda entry: entry[::-1])
    ]
    return {
        "changed": bool(actions),
        "actions": actions,
        "clients": listed,
        "summary": [*actions, *map(sentence, listed)] or ["no client has a key"],
    }


def sentence(client):
    usage = client["usage"]
    done = (
        "{requests} requests, {refused} refused, {last_minute} in the last minute, {now} now".format(**usage) if usage else "not seen yet"
    )
    return f"{client['name']} ({client['fingerprint']}): {done}"


def main():
    module = AnsibleModule(
        argument_spec={
            "keys_file": {"type": "path", "required": True},
            "maps": {"type": "list", "elements": "path", "default": []},
            "socket": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["applied", "present", "absent"], "default": "applied"},
            "name": {"type": "str"},
            # The sum of a key is worth nothing to a thief, but it has no place in the journal either.
            "key_sha256": {"type": "str", "no_log": True},
            "fingerprint": {"type": "str"},
        },
        required_if=[("state", "present", ["name", "key_sha256"]), ("state", "absent", ["name"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module))
    except (Failure, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
