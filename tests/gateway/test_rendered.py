"""What the role writes for systemd, where no LiteLLM is needed to judge it."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING, Any

from citadel_supervise import parse_arguments
from gateway.harness import ROLE, directives, plan, role_variables
from rendering import PROJECT, render, role_defaults

if TYPE_CHECKING:
    from pathlib import Path


def rendered(template: str, **plan_changes: object) -> str:
    variables: dict[str, Any] = role_variables() | {
        "gateway_plan": plan(port=8000, workers=3) | {"cpu_set": "18-21", "cpu_quota_percent": 400} | plan_changes,
        "gateway_runtime_path": "/opt/citadel/runtime/litellm/1.106.2",
        "gateway_upstreams": [],
        "gateway_routing_rules": [{"name": "otherwise", "models": ["hermes-2"]}],
    }
    return render(ROLE / "templates" / f"{template}.j2", variables)


def test_limits_are_the_plan_s() -> None:
    assert directives(rendered("20-resources.conf")) == {
        "MemoryMax": ["2147483648"],
        "MemorySwapMax": ["0"],
        "CPUQuota": ["400%"],
        "CPUWeight": ["400"],
        "AllowedCPUs": ["18-21"],
        "IOWeight": ["100"],
        "TasksMax": ["512"],
    }


def test_shared_cpus_have_no_quota() -> None:
    assert "CPUQuota" not in directives(rendered("20-resources.conf", cpu_quota_percent=None))


def test_a_new_limit_leaves_what_needs_a_restart_alone() -> None:
    limits = {"memory_max_bytes": 4294967296, "cpu_quota_percent": 200, "cpu_weight": 1, "io_weight": 1, "tasks_max": 64}
    assert rendered("10-exec.conf", **limits) == rendered("10-exec.conf")
    assert rendered("environment.env", **limits) == rendered("environment.env")


def test_the_command_replaces_the_template_s_own() -> None:
    service = directives(rendered("10-exec.conf"))
    words = shlex.split(service["ExecStart"][0])
    assert len(service["ExecStart"]) == 1
    command = words[words.index("--") + 1 :]
    assert command[:2] == ["/opt/citadel/runtime/litellm/1.106.2/bin/python", "/opt/citadel/config/gateway/citadel_gateway_server.py"]
    arguments = dict(zip(command[2::2], command[3::2], strict=True))
    assert (arguments["--host"], arguments["--port"], arguments["--workers"]) == ("127.0.0.1", "8000", "3")
    assert arguments["--worker-memory-max-bytes"] == "1073741824"
    assert service["CPUAffinity"] == ["18-21"]
    assert service["User"] == service["Group"] == ["citadel-gateway"]
    lines = rendered("10-exec.conf").split("ExecStart=")[-1].split("\nTimeoutStartSec=")[0].splitlines()
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert not lines[-1].endswith("\\")


def test_the_supervisor_understands_its_options() -> None:
    words = shlex.split(directives(rendered("10-exec.conf"))["ExecStart"][0])
    assert words[:3] == ["/usr/bin/python3", "-I", "/opt/citadel/libexec/citadel_supervise.py"]
    options, _ = parse_arguments(words[3:])
    assert (options.kind, options.address, options.port, options.state_port) == ("http", "127.0.0.1", 8000, 8407)
    assert (options.ready_path, options.alive_path) == ("/health/readiness", "/health/liveliness")


def test_systemd_has_nothing_to_say(tmp_path: Path) -> None:
    units = tmp_path / "etc/systemd/system"
    drop_ins = units / "citadel-llm@unified-api-gateway.service.d"
    drop_ins.mkdir(parents=True)
    framework = role_defaults("service_framework") | {
        "service_framework_slice": {"memory_max_bytes": 2**31, "tasks_max": 512},
        "service_framework_gateway_unit": "citadel-llm@unified-api-gateway.service",
    }
    folder = PROJECT / "roles" / "service_framework" / "templates"
    for name in ("citadel-llm@.service", "citadel-llm-drain.service", "citadel-llm.target", "citadel-llm.slice"):
        (units / name).write_text(render(folder / f"{name}.j2", framework), encoding="utf-8")
    for name in ("10-exec.conf", "20-resources.conf"):
        (drop_ins / name).write_text(rendered(name), encoding="utf-8")
    for program in ("bin/sh", "bin/rm", "usr/bin/python3"):
        path = tmp_path / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", encoding="utf-8")
        path.chmod(0o755)
    for target in ("network-online.target", "multi-user.target", "basic.target", "sysinit.target", "shutdown.target"):
        (units / target).write_text("[Unit]\n", encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", "citadel-llm@unified-api-gateway.service"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == "", "it exits 0 even where it complains"


def test_no_file_that_others_may_read_holds_a_key(tmp_path: Path) -> None:
    for template in ("environment.env", "10-exec.conf", "20-resources.conf", "config.yaml"):
        (tmp_path / template).write_text(rendered(template), encoding="utf-8")
    assert "sk-" not in "".join(file.read_text(encoding="utf-8") for file in tmp_path.iterdir())
