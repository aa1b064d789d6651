"""The rendered units: what systemd and vLLM themselves say of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from citadel_supervise import KILL_MARGIN_SECONDS, PING_SECONDS, parse_arguments
from rendering import PROJECT, render, role_defaults
from runtimes import vllm_python
from unit.plan_examples import host_facts, production_plan

PYTHON = "/opt/citadel/runtime/vllm/0.32.0-000000000000/bin/python"


def variables(role: str, **given: object) -> dict[str, Any]:
    return {"ansible_managed": "Ansible managed", **role_defaults(role), **given}


def model_variables(plan: dict[str, Any], service: dict[str, Any]) -> dict[str, Any]:
    return variables("model_service", model_service_plan=service, model_service_device=plan["device"], model_service_python=PYTHON)


def framework_variables(plan: dict[str, Any]) -> dict[str, Any]:
    return variables(
        "service_framework",
        service_framework_slice=plan["slice"],
        service_framework_gateway_unit=plan["gateway"]["unit"],
        service_framework_instances=[],
    )


def rendered(role: str, template: str, values: dict[str, Any]) -> str:
    return render(PROJECT / "roles" / role / "templates" / template, values)


def command(unit: str) -> list[str]:
    """Words of the last ExecStart, as systemd joins the lines."""
    line = re.findall(r"^ExecStart=(.+)$", unit.replace("\\\n", " "), re.MULTILINE)[-1]
    return shlex.split(line)


def arguments(unit: str) -> list[str]:
    """What vLLM is given: all that follows PYTHON -m MODULE behind the supervisor's own options."""
    words = command(unit)
    return words[words.index("--") + 4 :]


def write_units(folder: Path, plan: dict[str, Any]) -> list[str]:
    """Write every unit of a plan below a folder that stands for the host's root, with the programs they name."""
    units = folder / "etc/systemd/system"
    framework = framework_variables(plan)
    units.mkdir(parents=True)
    for name in ("citadel-llm@.service", "citadel-llm-drain.service", "citadel-llm.target", "citadel-llm.slice"):
        (units / name).write_text(rendered("service_framework", f"{name}.j2", framework))
    for service in plan["services"]:
        drop_ins = units / f"{service['unit']}.d"
        drop_ins.mkdir()
        for name in ("10-exec.conf", "20-resources.conf"):
            (drop_ins / name).write_text(rendered("model_service", f"{name}.j2", model_variables(plan, service)))
    for program in ("/bin/sh", "/bin/rm", "/bin/true", "/usr/bin/python3", PYTHON):
        path = folder / program.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    for target in ("network-online.target", "multi-user.target", "basic.target", "sysinit.target", "shutdown.target"):
        (units / target).write_text("[Unit]\n")
    return [service["unit"] for service in plan["services"]]


def verify(folder: Path, unit: str) -> str:
    """What systemd-analyze says of a unit; it exits 0 with unknown directives, so only silence is good."""
    command = ["systemd-analyze", "verify", "--man=no", f"--root={folder}", unit]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_systemd_has_nothing_to_say(plan: dict[str, Any], tmp_path: Path) -> None:
    for unit in [*write_units(tmp_path, plan), "citadel-llm-drain.service"]:
        assert verify(tmp_path, unit) == ""


def test_systemd_would_complain(plan: dict[str, Any], tmp_path: Path) -> None:
    unit = write_units(tmp_path, plan)[0]
    (tmp_path / f"etc/systemd/system/{unit}.d/30-wrong.conf").write_text("[Service]\nMemoryMx=1\n")
    assert "MemoryMx" in verify(tmp_path, unit)


def test_limits_are_the_plans(plan: dict[str, Any]) -> None:
    for service in plan["services"]:
        lines = rendered("model_service", "20-resources.conf.j2", model_variables(plan, service)).splitlines()
        assert f"MemoryMax={service['memory_max_bytes']}" in lines
        assert f"TasksMax={service['tasks_max']}" in lines
        assert f"CPUWeight={service['cpu_weight']}" in lines
        quotas = [line for line in lines if line.startswith("CPUQuota=")]
        assert quotas == ([] if service["cpu_quota_percent"] is None else [f"CPUQuota={service['cpu_quota_percent']}%"])


def test_what_applies_live_is_not_read_at_start(plan: dict[str, Any]) -> None:
    """Or a changed limit would restart the model."""
    for service in plan["services"]:
        values = model_variables(plan, service)
        read_at_start = "".join(rendered("model_service", name, values) for name in ("10-exec.conf.j2", "service.env.j2"))
        for limit in ("MemoryMax", "CPUQuota", "CPUWeight", "TasksMax", str(service["memory_max_bytes"])):
            assert limit not in read_at_start


def test_cuda_units_see_their_gpus_and_no_other(plan: dict[str, Any]) -> None:
    for service in plan["services"]:
        unit = rendered("model_service", "10-exec.conf.j2", model_variables(plan, service))
        environment = rendered("model_service", "service.env.j2", model_variables(plan, service))
        devices = re.findall(r"^DeviceAllow=/dev/nvidia(\d+) rw$", unit, re.MULTILINE)
        if plan["device"] == "cuda":
            assert devices == [str(gpu) for gpu in service["gpu_ids"]]
            assert f"CUDA_VISIBLE_DEVICES={','.join(devices)}" in environment
            assert any(argument.startswith("--gpu-memory-utilization=") for argument in arguments(unit))
        else:
            assert devices == []
            assert "CUDA" not in environment


MEMORY_NODES = """
from vllm.utils import cpu_resource_utils
cpu_resource_utils.get_memory_affinity = lambda: [0, 1, 2]
print(cpu_resource_utils.get_visible_memory_node())
"""


def test_vllm_sees_the_memory_that_was_planned_for_it_and_no_other(plan: dict[str, Any]) -> None:
    values = model_variables(plan, {**plan["services"][0], "numa_nodes": [1, 0]})
    environment = dict(re.findall(r"^(\w+)=(.*)$", rendered("model_service", "service.env.j2", values), re.MULTILINE))
    limits = rendered("model_service", "20-resources.conf.j2", values)
    allowed = re.findall(r"^AllowedMemoryNodes=(.*)$", limits, re.MULTILINE)
    if plan["device"] == "cuda":
        assert (environment.get("CPU_VISIBLE_MEMORY_NODES"), allowed) == (None, [])
        return
    assert allowed == ["1"]
    seen = subprocess.run([vllm_python(), "-c", MEMORY_NODES], env=os.environ | environment, capture_output=True, text=True, check=True)
    assert seen.stdout.splitlines()[-1] == "[1]"


def test_the_supervisor_understands_its_options(plan: dict[str, Any]) -> None:
    for service in plan["services"]:
        words = command(rendered("model_service", "10-exec.conf.j2", model_variables(plan, service)))
        assert words[:2] == ["/usr/bin/python3", "-I"]
        assert words[2] == "/opt/citadel/libexec/citadel_supervise.py"
        options, runs = parse_arguments(words[3:])
        assert runs[:3] == [PYTHON, "-m", "vllm.entrypoints.openai.api_server"]
        assert (options.kind, options.name, options.port, options.state_port) == (
            "model", service["name"], service["api_port"], service["state_port"],
        )  # fmt: skip
        assert options.weights == Path("/opt/models") / service["name"]
        assert options.start_timeout_seconds == service["load_timeout_seconds"]
        assert options.stall_timeout_seconds == service["stall_timeout_seconds"]


def test_a_stop_is_over_before_systemd_loses_patience(plan: dict[str, Any]) -> None:
    """Or a drain that takes its time would count as a failure."""
    framework = framework_variables(plan)
    unit = rendered("service_framework", "citadel-llm@.service.j2", framework)
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    words = command(rendered("model_service", "10-exec.conf.j2", model_variables(plan, plan["services"][0])))
    options, _ = parse_arguments(words[3:])
    assert options.stop_notice_seconds + options.drain_seconds + KILL_MARGIN_SECONDS < int(patience)


def test_the_supervisor_is_told_how_to_start_again(plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the template unit's environment, for every instance; and its own tries never meet systemd's limit of starts."""
    own = {"seconds": 7, "longest_seconds": 70, "failures": 9, "steady_seconds": 700}
    framework = framework_variables(plan) | {f"service_framework_restart_{name}": value for name, value in own.items()}
    for name, value in re.findall(
        r"^Environment=(\w+)=(.+)$", rendered("service_framework", "citadel-llm@.service.j2", framework), re.MULTILINE
    ):
        monkeypatch.setenv(name, value)
    words = command(rendered("model_service", "10-exec.conf.j2", model_variables(plan, plan["services"][0])))
    options, _ = parse_arguments(words[3:])
    assert {name: getattr(options, f"restart_{name}") for name in own} == own

    defaults = framework_variables(plan)
    unit = rendered("service_framework", "citadel-llm@.service.j2", defaults)
    (interval,) = re.findall(r"^StartLimitIntervalSec=(\d+)$", unit, re.MULTILINE)
    (burst,) = re.findall(r"^StartLimitBurst=(\d+)$", unit, re.MULTILINE)
    starts = [0.0]
    for failure in range(defaults["service_framework_restart_failures"]):
        starts.append(starts[-1] + (defaults["service_framework_restart_seconds"] * 2.0 ** (failure - 1) if failure else 0))
    assert sum(start < int(interval) for start in starts) < int(burst), "though each try fails at once"


SYSTEMCTL = """#!/bin/sh
echo "$*" >> "$0.asked"
[ "$(wc -l < "$0.asked")" -le 2 ] && echo deactivating || echo inactive
"""


def test_models_stop_when_the_gateway_has(plan: dict[str, Any], tmp_path: Path) -> None:
    """Models are before the drain and so stop after it; its stop goes on for as long as that of the gateway."""
    for service in plan["services"]:
        unit = rendered("model_service", "10-exec.conf.j2", model_variables(plan, service))
        assert "Before=citadel-llm-drain.service" in unit.splitlines()
    drain = rendered("service_framework", "citadel-llm-drain.service.j2", framework_variables(plan))
    (stop,) = re.findall(r"^ExecStop=(.+)$", drain, re.MULTILINE)
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    subprocess.run(shlex.split(stop), env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True, timeout=30)
    asked = (tmp_path / "systemctl.asked").read_text().splitlines()
    assert asked == ["show --property=ActiveState --value citadel-llm@unified-api-gateway.service"] * 3


def test_the_edge_notices_a_stop_before_it_begins(plan: dict[str, Any]) -> None:
    edge = variables("edge")
    words = command(rendered("model_service", "10-exec.conf.j2", model_variables(plan, plan["services"][0])))
    options, _ = parse_arguments(words[3:])
    milliseconds = edge["edge_check_interval_milliseconds"] + edge["edge_check_fast_interval_milliseconds"]
    assert options.stop_notice_seconds * 1000 > milliseconds, "one check at each interval: two that fail open the breaker"


def test_a_supervisor_in_working_order_is_never_taken_for_silent(plan: dict[str, Any]) -> None:
    framework = framework_variables(plan)
    unit = rendered("service_framework", "citadel-llm@.service.j2", framework)
    (watchdog,) = re.findall(r"^WatchdogSec=(\d+)$", unit, re.MULTILINE)
    assert int(watchdog) >= 4 * PING_SECONDS
    assert {"Type=notify", "NotifyAccess=main"} <= set(unit.splitlines())


def test_the_journal_can_tell_services_and_variants_apart(plan: dict[str, Any]) -> None:
    framework = variables("service_framework", service_framework_slice=plan["slice"], service_framework_instances=[])
    assert "LogExtraFields=CITADEL_SERVICE=%i" in rendered("service_framework", "citadel-llm@.service.j2", framework).splitlines()
    for service in plan["services"]:
        drop_in = rendered("model_service", "10-exec.conf.j2", model_variables(plan, service)).splitlines()
        assert f"LogExtraFields=CITADEL_VARIANT={service['variant']}" in drop_in


def test_only_a_model_that_compiles_may_compile(plan: dict[str, Any]) -> None:
    for service in plan["services"]:
        words = command(rendered("model_service", "10-exec.conf.j2", model_variables(plan, service)))
        environment = rendered("model_service", "service.env.j2", model_variables(plan, service)).splitlines()
        assert ("TORCH_COMPILE_DISABLE=1" in environment) == ("--enforce-eager" in words)


def test_threads_on_shared_cpus_are_not_bound_one_by_one() -> None:
    together = {"OMP_NUM_THREADS=4", "OMP_PLACES={0,1,2,3}", "OMP_PROC_BIND=true", "OMP_WAIT_POLICY=PASSIVE"}
    for cores, expected in ((4, {"VLLM_CPU_OMP_THREADS_BIND=nobind"} | together), (32, {"VLLM_CPU_OMP_THREADS_BIND=0-7"})):
        plan = production_plan(facts=host_facts(cores=cores)).to_dict()
        lines = rendered("model_service", "service.env.j2", model_variables(plan, plan["services"][0])).splitlines()
        assert {line for line in lines if "OMP_" in line} == expected


PARSER = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for arguments in json.load(sys.stdin):
    parsed = parser.parse_args(arguments)
    validate_parsed_serve_args(parsed)
    print(json.dumps({name: getattr(parsed, name) for name in sys.argv[1].split(",")}))
"""


def parse_by_vllm(lists: list[list[str]], names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([vllm_python(), "-c", PARSER, names], input=json.dumps(lists), capture_output=True, text=True, check=False)


def test_vllm_understands_the_arguments(plan: dict[str, Any]) -> None:
    lists = [arguments(rendered("model_service", "10-exec.conf.j2", model_variables(plan, service))) for service in plan["services"]]
    result = parse_by_vllm(lists, "port,max_model_len,max_num_seqs,kv_cache_memory_bytes,served_model_name,host")
    assert result.returncode == 0, result.stderr
    for service, line in zip(plan["services"], result.stdout.splitlines(), strict=True):
        assert json.loads(line) == {
            "port": service["api_port"],
            "max_model_len": service["context_tokens"],
            "max_num_seqs": service["max_num_seqs"],
            "kv_cache_memory_bytes": service["kv_cache_bytes"] if plan["device"] == "cpu" else None,
            "served_model_name": [service["name"]],
            "host": "127.0.0.1",
        }


def test_vllm_refuses_a_wrong_argument() -> None:
    result = parse_by_vllm([["--model=/x", "--max-num-sequences=4"]], "port")
    assert result.returncode != 0
    assert "max-num-sequences" in result.stderr
