#!/usr/bin/python
"""Ansible module: reads everything that an operator wants to know of a host's services, and changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_status
short_description: Reads the state of all services of the platform on one host
description:
  - Reads the plan as deployed, and of each service in it what systemd, the kernel, the service itself and the edge say.
  - Whatever does not answer is a fact like any other; the module fails only where it cannot be run at all.
    What the facts mean is decided by the filter P(citadel_status_problems#filter).
options:
  plan_file:
    description: The plan as deployed.
    type: path
    default: /opt/citadel/config/plan.json
  gateway:
    description: Whether this host is to have the gateway.
    type: bool
    default: true
  monitoring:
    description: Whether this host is to have Prometheus and the node exporter.
    type: bool
    default: true
  edge_exporter_port:
    description: Port on loopback of the edge's own metrics.
    type: int
    default: 8405
  edge_state_port:
    description: Port on loopback where the edge tells of its breakers.
    type: int
    default: 8406
  node_exporter_port:
    description: Port on loopback of the node exporter.
    type: int
    default: 9100
  timeout_seconds:
    description: How long any of them may be silent before it counts as not answering. All are asked at once.
    type: int
    default: 5
attributes:
  check_mode:
    support: full
    description: Changes nothing, so it does the same.
"""

EXAMPLES = r"""
- name: Look at everything
  citadel_status:
  register: status
"""

RETURN = r"""
now:
  description: The host's time and its time zone; all times are the host's.
  returned: always
  type: str
  sample: 2026-11-24 03:12:07 CET
plan:
  description: C(file), C(problem) (empty where it can be read), when it was C(written), and its C(device).
  returned: always
  type: dict
slice:
  description: C(held_bytes), C(limit_bytes) and C(planned_limit_bytes) of models and gateway together.
  returned: always
  type: dict
services:
  description:
    - One entry each for models, gateway, edge, Prometheus and node exporter with C(name), C(kind), C(unit), where it was C(asked), whether
      it C(answers), C(load_state), C(active_state), C(sub_state), C(result), C(restarts), C(status_text), C(since), C(held_bytes),
      C(limit_bytes), C(planned_limit_bytes) and C(version).
    - A model also has C(state), C(detail), C(breaker), C(running), C(waiting) and C(kv_cache_percent), the gateway C(workers_bytes).
    - What could not be found out is null, and so is a limit that does not exist.
  returned: always
  type: list
  elements: dict
alerts:
  description:
    - Alerts that fire, the longest first, with C(name), C(severity), C(summary) and C(since). Those of all hosts that this Prometheus watches; none
      where Prometheus is elsewhere or does not answer.
  returned: always
  type: list
  elements: dict
alerts_problem:
  description: What a Prometheus that runs said where it did not tell of its alerts; else empty.
  returned: always
  type: str
units_problem:
  description: What systemd said where it did not tell of its units; else empty.
  returned: always
  type: str
unplanned:
  description: Units of the platform that run and are not in the plan.
  returned: always
  type: list
  elements: str
"""

import calendar
import concurrent.futures
import contextlib
import http.client
import json
import re
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel_cgroup import Cgroup
from ansible.module_utils.citadel_services import (
    LOOPBACK,
    SLICE,
    STATES,
    get,
    read_units,
    runtime_of,
    samples,
    show_command,
    unplanned_units,
)

PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "StatusText",
    "ActiveEnterTimestamp",
    "StateChangeTimestamp",
    "ControlGroup",
    "MainPID",
    "ExecStart",
)
BUILDS = {"haproxy_process_build_info", "prometheus_build_info", "node_exporter_build_info"}
ALERTS = "/api/v1/alerts"


def show(module, names):
    """Properties of units by name, and what systemd said where it told nothing."""
    try:
        code, out, problem = module.run_command(show_command(names, PROPERTIES), handle_exceptions=False, environ_update={"LC_ALL": "C"})
    except OSError as error:
        code, out, problem = 1, "", f"systemctl: {error.strerror}"
    return read_units(out), " ".join(problem.split()) if code else ""


def local(seconds):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def unit_figures(unit):
    """What systemd and the kernel know of a unit."""
    stamp = unit.get("ActiveEnterTimestamp" if unit.get("ActiveState") == "active" else "StateChangeTimestamp", "")
    return {
        "load_state": unit.get("LoadState"),
        "active_state": unit.get("ActiveState"),
        "sub_state": unit.get("SubState"),
        "result": unit.get("Result"),
        "restarts": int(unit["NRestarts"]) if unit.get("NRestarts") else None,
        "status_text": unit.get("StatusText", ""),
        # As in 'Tue 2026-11-24 03:05:10 CET'.
        "since": " ".join(stamp.split()[1:3]),
        **memory(unit),
    }


def memory(unit):
    held = limit = None
    if unit.get("ControlGroup"):
        cgroup = Cgroup(unit["ControlGroup"])
        with contextlib.suppress(OSError):  # the cgroup may go with its service
            held, limit = cgroup.held_bytes(), cgroup.limit_bytes() or None
    return {"held_bytes": held, "limit_bytes": limit}


def runtime_version(unit):
    """Version of the runtime that the process runs from, or that the unit would start."""
    found = runtime_of(unit)
    return found[1] if found else None


def workers_bytes(unit):
    """Anonymous memory of each of LiteLLM's workers: the processes that it has made of itself, or itself where there is one."""
    found = {True: [], False: []}
    processes = []
    if unit.get("ControlGroup"):
        with contextlib.suppress(OSError):  # the cgroup may go with its service
            processes = Cgroup(unit["ControlGroup"]).process_ids()
    for pid in processes:
        with contextlib.suppress(OSError):  # it may have ended
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            anonymous = re.search(r"^RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            forked = b"--multiprocessing-fork" in command
            # The supervisor's command names LiteLLM too.
            if anonymous and (forked or (b"/bin/litellm" in command and str(pid) != unit.get("MainPID"))):
                found[forked].append(int(anonymous[1]) << 10)
    return sorted(found[True] or found[False], reverse=True)


def model_figures(service, answers, edge_metrics):
    state = {}
    with contextlib.suppress(ValueError):  # who answers there is no supervisor of ours: not known
        state = json.loads(answers[service["state_port"], "/state"][1] or "{}")
    known = isinstance(state, dict) and state.get("state") in STATES
    sums = {"vllm:num_requests_running": None, "vllm:num_requests_waiting": None, "vllm:kv_cache_usage_perc": None}
    for name, _, value in samples(answers[service["api_port"], "/metrics"]):
        if name in sums:  # of several engines
            sums[name] = max(sums[name] or 0, value) if name.endswith("perc") else (sums[name] or 0) + value
    running, waiting, kv_cache = sums.values()
    breakers = [
        labels.get("state")
        for name, labels, value in edge_metrics
        if name == "citadel_edge_breaker_state" and value and labels.get("model") == service["name"]
    ]
    figures = {
        "answers": known,
        "state": state["state"] if known else None,
        "detail": str(state.get("detail", "")) if known else "",
        "breaker": breakers[0] if breakers else None,
        "running": None if running is None else int(running),
        "waiting": None if waiting is None else int(waiting),
        "kv_cache_percent": None if kv_cache is None else round(kv_cache * 100),
    }
    with contextlib.suppress(ValueError):  # a state without a time is a state all the same
        if known:
            figures["since"] = local(calendar.timegm(time.strptime(str(state.get("since")), "%Y-%m-%dT%H:%M:%SZ")))
    return figures


def read_plan(params):
    """The plan as deployed and what of it this host is to run, each with where it can be asked; else why there is none, as a sentence's end."""
    try:
        plan = json.loads(Path(params["plan_file"]).read_text())
        parts = [
            {"kind": "model", "port": service["state_port"], "path": "/state"}
            | {key: service[key] for key in ("name", "unit", "memory_max_bytes", "api_port", "state_port")}
            for service in plan["services"]
        ]
        if params["gateway"]:
            gateway = {key: plan["gateway"][key] for key in ("unit", "memory_max_bytes", "port")}
            parts.append({"name": "gateway", "kind": "gateway", "path": "/health/readiness"} | gateway)
        others = [("edge", "haproxy.service", params["edge_exporter_port"], "/metrics?scope=global&scope=server")]
        if params["monitoring"]:
            others.append(("prometheus", "prometheus.service", plan["monitoring"]["prometheus_port"], "/metrics"))
            others.append(("node exporter", "prometheus-node-exporter.service", params["node_exporter_port"], "/metrics"))
        keys = ("name", "unit", "port", "path")
        parts += [
            {"kind": other[0], "memory_max_bytes": None, "state_port": params["edge_state_port"]} | dict(zip(keys, other, strict=True))
            for other in others
        ]
        known = {
            "device": plan["device"],
            "units": [entry["unit"] for entry in (*plan["services"], plan["gateway"])],
            "slice_memory_max_bytes": plan["slice"]["memory_max_bytes"],
            "written": local(Path(params["plan_file"]).stat().st_mtime),
        }
    except FileNotFoundError:
        return {}, [], "does not exist"
    except OSError as error:
        return {}, [], f"cannot be read ({error.strerror})"
    except ValueError as error:
        return {}, [], f"is not JSON ({error})"
    except (KeyError, TypeError) as error:
        return {}, [], f"is not a plan as this version of the project writes it ({type(error).__name__}: {error})"
    return known, parts, ""


def build_version(metrics):
    """Version that Prometheus, its exporters and HAProxy tell of themselves."""
    return next((labels.get("version") for name, labels, _ in metrics if name in BUILDS), None)


def ask(parts, seconds, meanwhile):
    """What each service answers to each question, and the result of something else that takes its time."""
    questions = [(part["port"], part["path"]) for part in parts]
    questions += [(part["api_port"], "/metrics") for part in parts if part["kind"] == "model"]
    questions += [(part["state_port"], "/metrics") for part in parts if part["kind"] == "edge"]
    questions += [(part["port"], ALERTS) for part in parts if part["kind"] == "prometheus"]
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(questions) + 1) as pool:
        asked = {question: pool.submit(get, *question, seconds) for question in questions}
        result = meanwhile()
        return {question: answer.result() for question, answer in asked.items()}, result


def firing_alerts(answer, is_there):
    """What Prometheus says of its alerts, and what kept one that is there from saying."""
    if answer[0] != http.client.OK:
        return [], (f"it answers {answer[0]}" if answer[0] else "it does not answer in time") if is_there else ""
    found = []
    try:
        for alert in json.loads(answer[1])["data"]["alerts"]:
            if alert["state"] == "firing":
                began = calendar.timegm(time.strptime(alert["activeAt"][:19], "%Y-%m-%dT%H:%M:%S"))
                labels = {"name": alert["labels"]["alertname"], "severity": alert["labels"].get("severity", "")}
                found.append({**labels, "summary": alert["annotations"].get("summary", ""), "since": local(began)})
    except (ValueError, KeyError, TypeError) as error:  # who answers there is no Prometheus
        return [], f"its answer cannot be read, {type(error).__name__}: {error}"
    return sorted(found, key=lambda alert: (alert["since"], alert["name"], alert["summary"])), ""


def service_figures(part, unit, answers, edge_metrics):
    answer = answers[part["port"], part["path"]]
    common = {
        "name": part["name"],
        "kind": part["kind"],
        "unit": part["unit"],
        "asked": f"{LOOPBACK}:{part['port']}{part['path'].partition('?')[0]}",
        "answers": answer[0] == http.client.OK,
        "planned_limit_bytes": part["memory_max_bytes"],
        **unit_figures(unit),
    }
    if part["kind"] == "model":
        return common | {"version": runtime_version(unit)} | model_figures(part, answers, edge_metrics)
    if part["kind"] == "gateway":
        return common | {"version": runtime_version(unit), "workers_bytes": workers_bytes(unit)}
    return common | {"version": build_version(samples(answer))}


def main():
    module = AnsibleModule(
        argument_spec={
            "plan_file": {"type": "path", "default": "/opt/citadel/config/plan.json"},
            "gateway": {"type": "bool", "default": True},
            "monitoring": {"type": "bool", "default": True},
            "edge_exporter_port": {"type": "int", "default": 8405},
            "edge_state_port": {"type": "int", "default": 8406},
            "node_exporter_port": {"type": "int", "default": 9100},
            "timeout_seconds": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    plan, parts, plan_problem = read_plan(module.params)
    answers, (units, units_problem) = ask(
        parts, module.params["timeout_seconds"], lambda: show(module, [SLICE, *(part["unit"] for part in parts)])
    )
    edge_metrics = [sample for part in parts if part["kind"] == "edge" for sample in samples(answers[part["state_port"], "/metrics"])]
    told = (
        firing_alerts(answers[part["port"], ALERTS], is_there=answers[part["port"], part["path"]][0] != 0)
        for part in parts
        if part["kind"] == "prometheus"
    )
    alerts, alerts_problem = next(told, ([], ""))
    module.exit_json(
        changed=False,
        now=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        plan={
            "file": module.params["plan_file"],
            "problem": plan_problem,
            "written": plan.get("written"),
            "device": plan.get("device"),
        },
        slice={**memory(units.get(SLICE, {})), "planned_limit_bytes": plan.get("slice_memory_max_bytes")},
        services=[service_figures(part, units.get(part["unit"], {}), answers, edge_metrics) for part in parts],
        alerts=alerts,
        alerts_problem=alerts_problem,
        units_problem=units_problem,
        unplanned=unplanned_units(units, plan.get("units", [])),
    )


if __name__ == "__main__":
    main()
