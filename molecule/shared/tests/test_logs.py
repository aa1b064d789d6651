"""What the journal and the log files hold, and what they never do."""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from lab_host import ADDRESS
from testinfra.host import Host

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LOGS = "/var/log/citadel-llm"


def send(port: int, path: str, body: object, *, key: str | None = None) -> int:
    """Post JSON, or bytes as they are; the status of the answer, which is read to its end."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    request = urllib.request.Request(f"http://{ADDRESS}:{port}{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def requests(model: str, marker: str) -> Iterator[tuple[str, object]]:
    """Path and body of requests that hold the marker wherever a client can put it, answered and refused."""
    chat = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": marker}]}
    text = {"model": model, "max_tokens": 4, "prompt": marker}
    tool = {"type": "function", "function": {"name": marker, "description": marker, "parameters": {"type": "object", "properties": {}}}}
    yield from ((CHAT, chat), (TEXT, text), (CHAT, chat | {"stream": True}), (TEXT, text | {"stream": True}))
    yield TEXT, text | {"echo": True, "logprobs": 1, "stop": [marker], "user": marker}
    yield CHAT, chat | {"tools": [tool], "tool_choice": "none"}
    yield CHAT, chat | {"tools": [tool]}
    yield CHAT, chat | {marker: marker}
    yield CHAT, chat | {"messages": marker}
    yield CHAT, chat | {"messages": [{"role": "user", "content": [{"type": marker, "text": marker}]}]}
    yield CHAT, chat | {"max_tokens": marker}
    yield CHAT, chat | {"response_format": {"type": "json_schema", "json_schema": {"name": marker, "schema": {"type": marker}}}}
    yield TEXT, text | {"structured_outputs": {"regex": f"({marker}"}}
    yield TEXT, text | {"prompt": f"{marker} " * 20000}
    yield CHAT, chat | {"messages": [{"role": "user", "content": f"{marker} " * 20000}]}
    yield TEXT, text | {"prompt": {"text": marker}}
    yield TEXT, text | {"model": marker}
    yield TEXT, f'{{"prompt": "{marker}'.encode()
    yield TEXT, json.dumps([marker]).encode()
    yield f"{TEXT}?key={marker}", text
    yield f"/v1/{marker}", text


def eventually(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def entries(server: Host, *matches: str) -> list[dict[str, Any]]:
    """Entries of the journal with all their fields; what is not plain text is a list of bytes there."""
    command = " ".join(["journalctl --no-pager --all --output=json --boot", *("%s" for _ in matches)])
    return [json.loads(line) for line in server.check_output(command, *matches).splitlines()]


def test_nothing_that_a_client_sends_is_logged(server: Host, plan: dict[str, Any]) -> None:
    """The edge logs who asked for which path; a path that does not exist is the client's own, and what it may hold is no prompt."""
    marker = f"vermilion{secrets.token_hex(4)}"
    cursor = server.check_output("journalctl --no-pager --lines=1 --show-cursor").splitlines()[-1].removeprefix("-- cursor: ")
    sent = 0
    for service in plan["services"]:
        for port in (service["api_port"], plan["gateway"]["port"]):
            for path, body in requests(service["name"], marker):
                send(port, path, body)
                sent += 1
            send(port, CHAT, {"messages": [{"role": "user", "content": marker}]}, key=f"sk-{marker}")
            sent += 1
    written = f"journalctl --no-pager --after-cursor='{cursor}'"
    # The paths that hold it are the two that the client made up; the edge writes the path without its query.
    edge = f"{written} --unit haproxy.service --output=cat"
    eventually(lambda: server.run(edge).stdout.count('"method":"POST"') >= sent, f"the edge has logged {sent} requests")
    elsewhere = server.run(f"{written} --all --output=export | grep -aF {marker} | grep -avF '\\/v1\\/{marker}'")
    assert elsewhere.stdout == ""
    assert server.run(f"grep -rslaF {marker} {LOGS}").stdout == ""


def test_the_master_key_is_in_no_field_of_the_journal(server: Host) -> None:
    server.check_output("cut -d' ' -f2 /opt/citadel/secrets/gateway.key > /run/lab-key")
    found = server.run("journalctl --no-pager --all --output=export | grep -acFf /run/lab-key; rm /run/lab-key")
    assert found.stdout.strip() == "0"


def test_the_journal_knows_the_service_and_its_variant(server: Host, unit: dict[str, Any]) -> None:
    found = entries(server, f"CITADEL_SERVICE={unit['name']}")
    assert {entry["_SYSTEMD_UNIT"] for entry in found} == {unit["unit"]}
    assert {entry.get("CITADEL_VARIANT") for entry in found[-20:]} == {unit.get("variant")}
    assert {entry["SYSLOG_IDENTIFIER"] for entry in found} == {f"citadel-llm@{unit['name']}"}


def test_a_record_keeps_its_priority(server: Host, unit: dict[str, Any]) -> None:
    """So that journalctl --priority=err shows errors, and nothing but errors."""
    found = entries(server, f"_SYSTEMD_UNIT={unit['unit']}", "_TRANSPORT=syslog")
    records = [(entry["MESSAGE"], entry["PRIORITY"]) for entry in found if isinstance(entry["MESSAGE"], str)]
    assert {priority for text, priority in records if "Application startup complete" in text} == {"6"}
    levels = {(text.partition(" ")[0], priority) for text, priority in records}
    assert levels <= {("INFO", "6"), ("WARNING", "4"), ("ERROR", "3"), ("CRITICAL", "2")}


def test_a_traceback_is_one_entry(server: Host, plan: dict[str, Any]) -> None:
    gateway = plan["gateway"]
    before = len(entries(server, f"_SYSTEMD_UNIT={gateway['unit']}", "PRIORITY=3"))
    # A path of LiteLLM's that fails at such a body; nobody gets there but root on the host, past the edge.
    server.check_output(
        "printf 'header = \"Authorization: Bearer %%s\"' \"$(cut -d' ' -f2 /opt/citadel/secrets/gateway.key)\" | curl --silent --config -"
        " --header 'Content-Type: application/json' --data '[\"not an object\"]' http://127.0.0.1:%s/v1/moderations",
        str(gateway["port"]),
    )

    def errors() -> list[str]:
        return [str(entry["MESSAGE"]) for entry in entries(server, f"_SYSTEMD_UNIT={gateway['unit']}", "PRIORITY=3")[before:]]

    whole = "Exception in ASGI application\nTraceback (most recent call last):\n"
    eventually(lambda: any(whole in text for text in errors()), "the traceback")


def test_logs_are_for_root_and_the_service_alone(server: Host, unit: dict[str, Any]) -> None:
    folder = server.file(f"{LOGS}/{unit['name']}")
    assert folder.mode == 0o750
    assert server.check_output("find %s -type f -perm /027", folder.path) == ""
    pid = server.check_output("systemctl show --property=MainPID --value %s", unit["unit"])
    assert server.check_output("ls /proc/%s/root%s", pid, LOGS) == unit["name"]


def test_logs_are_bounded(server: Host, unit: dict[str, Any]) -> None:
    bounds = server.check_output("systemctl show --property=LogRateLimitBurst,LogRateLimitIntervalUSec %s", unit["unit"])
    assert set(bounds.splitlines()) == {"LogRateLimitBurst=1000", "LogRateLimitIntervalUSec=30s"}
    assert server.check_output("find %s -type f -size +33M", f"{LOGS}/{unit['name']}") == ""


def test_kernel_settings_are_in_force(server: Host) -> None:
    lines = server.file("/etc/sysctl.d/90-citadel-llm.conf").content_string.splitlines()
    settings = dict(line.split(" = ") for line in lines if line and not line.startswith("#"))
    assert "net.ipv4.ip_local_port_range" in settings
    for name, value in settings.items():
        path = f"/proc/sys/{name.replace('.', '/')}"
        if server.run("test -w %s", path).rc == 0:
            assert server.file(path).content_string.split() == value.split()
