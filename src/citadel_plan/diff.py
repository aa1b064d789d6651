"""What a new plan costs the host that runs an old one: what restarts, what changes while it runs, and the figures of both.

A part restarts when something changes that it reads only at its start. Which key of the plan ends in which file is
written in roles/*/templates; tests/templates/test_plan_costs.py renders those files and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from .prose import wrap
from .result import SCHEMA_VERSION
from .units import MIB, gib

Entry = Mapping[str, Any]
Show = Callable[[Any], str]

EDGE_UNIT: Final = "haproxy.service"
PROMETHEUS_UNIT: Final = "prometheus.service"


def _plain(value: object) -> str:
    return "none" if value is None else str(value)


def _with(unit: str) -> Show:
    return lambda value: "none" if value is None else f"{value}{unit}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}".replace("%", " %")


def _switch(value: object) -> str:
    return "on" if value else "off"


def _words(value: Iterable[object] | None) -> str:
    return ",".join(str(item) for item in value or ()) or "none"


def _source(value: Entry | None) -> str:
    if not value:
        return "nowhere"
    if value.get("repository"):
        return f"{value['repository']} at {value.get('revision') or 'no revision'}"
    return str(value.get("path"))


SERVICE_RESTARTS: Final[Mapping[str, tuple[str, Show]]] = {
    "variant": ("variant", _plain),
    "source": ("weights from", _source),
    "dtype": ("dtype", _plain),
    "quantization": ("quantization", _plain),
    "context_tokens": ("context", _with(" tokens")),
    "max_num_seqs": ("sequences", _plain),
    "kv_cache_bytes": ("KV cache", gib),
    "kv_cache_dtype": ("KV cache format", _plain),
    "block_tokens": ("KV cache blocks", _with(" tokens")),
    "max_num_batched_tokens": ("batch", _with(" tokens")),
    "prompt_logprobs": ("log probabilities of prompts", _switch),
    "enforce_eager": ("eager mode", _switch),
    "cpu_set": ("CPUs", _plain),
    "omp_threads_bind": ("threads on CPUs", _plain),
    "omp_places": ("threads together on CPUs", _plain),
    "numa_nodes": ("NUMA nodes", _words),
    "gpu_ids": ("GPUs", _words),
    "tensor_parallel_size": ("tensor parallel over", _with(" GPUs")),
    "gpu_memory_utilization": ("share of each GPU", _percent),
    "api_port": ("port", _plain),
    "state_port": ("state port", _plain),
    "load_timeout_seconds": ("time to load", _with(" s")),
    "stall_timeout_seconds": ("time for a step", _with(" s")),
    "extra_arguments": ("extra arguments", _words),
}
"""What ends in a model's command line, environment or binding, with the words that name it and how a value is shown."""

GATEWAY_RESTARTS: Final[Mapping[str, tuple[str, Show]]] = {
    "port": ("port", _plain),
    "workers": ("workers", _plain),
    "worker_memory_max_bytes": ("memory per worker", gib),
    "cpu_set": ("CPUs", _plain),
}

LIVE: Final[Mapping[str, tuple[str, Show]]] = {
    "memory_max_bytes": ("memory limit", gib),
    "cpu_quota_percent": ("CPU quota", _with(" %")),
    "cpu_weight": ("CPU weight", _plain),
    "io_weight": ("IO weight", _plain),
    "tasks_max": ("tasks limit", _plain),
}
"""What systemd applies to a running unit. The memory limit only as long as the KV cache keeps its size: when that
changes the model restarts anyway."""

GATEWAY_MODEL_KEYS: Final[Mapping[str, tuple[str, Show]]] = {
    "upstream_port": ("upstream port", _plain),
    "context_tokens": ("context", _with(" tokens")),
    "max_output_tokens": ("longest answer", _with(" tokens")),
    "modes": ("modes", _words),
    "specialisation": ("specialisation", _words),
    "description": ("description", _plain),
}
"""What the gateway's list of models says of each of them; LiteLLM reads that list at its start."""

EDGE_MODEL_KEYS: Final[Mapping[str, tuple[str, Show]]] = {
    "api_port": ("port", _plain),
    "state_port": ("state port", _plain),
    "upstream_port": ("upstream port", _plain),
    "max_num_seqs": ("requests at once", _plain),
    "max_waiting": ("requests that wait", _plain),
}
"""What HAProxy's configuration says of each model."""


_VERBS: Final = {"start": "starts", "restart": "restarts", "reload": "reloads", "live": "goes on"}
_VERB_COLUMNS: Final = 11


def diff_plans(deployed: Entry | None, planned: Entry) -> dict[str, Any]:
    """Compare two plans of one host.

    Args:
        deployed: The plan that the host runs, or None (or empty) where nothing is deployed.
        planned: The new one.

    Returns:
        ``start``, ``restart``, ``reload``, ``live``: lists of ``{"service", "reasons"}``; ``unchanged`` and
        ``remove``: lists of names. Every model, the gateway, HAProxy and Prometheus (the latter two by their unit's
        name) are under exactly one of them. Order: models by API port, the gateway, the edge, Prometheus.
        ``reasons`` are what changes, in words, with both figures; a restart's also those that would not need one.

    """
    result: dict[str, Any] = {"start": [], "restart": [], "reload": [], "live": [], "unchanged": [], "remove": []}
    before = _units(deployed) if deployed else {}
    after = _units(planned)
    stranger = bool(deployed) and deployed is not None and deployed.get("schema_version") != planned["schema_version"]
    for name, (new, kind) in after.items():
        cost, reasons = "start", ["is not deployed yet"]
        if stranger:
            cost, reasons = "restart", [_incomparable(deployed or {})]
        elif name in before:
            cost, reasons = _cost(before[name][0], new, kind, deployed or {}, planned)
        if cost == "unchanged":
            result["unchanged"].append(name)
        else:
            result[cost].append({"service": name, "reasons": reasons})
    result["remove"] = sorted(name for name in before if name not in after)
    return result


def diff_sentences(diff: Mapping[str, Any]) -> list[str]:
    """Write a diff for a person: a line per part that something happens to, the costliest first.

    Args:
        diff: What :func:`diff_plans` returned.

    Returns:
        Lines, made for a terminal; one that says so where nothing changes.

    """
    told = [("stops", f"{name}: no longer planned; its weights stay on the disk") for name in diff["remove"]]
    for cost, verb in _VERBS.items():
        told += [(verb, f"{entry['service']}: {'; '.join(entry['reasons'])}") for entry in diff[cost]]
    if not told:
        return ["nothing changes, nothing restarts"]
    if diff["unchanged"]:
        told.append(("untouched", ", ".join(diff["unchanged"])))
    return [line for verb, text in told for line in wrap(f"{verb:<{_VERB_COLUMNS}}{text}", indent=" " * _VERB_COLUMNS)]


_MODEL, _GATEWAY, _EDGE, _PROMETHEUS = "model", "gateway", "edge", "prometheus"


def _units(plan: Entry) -> dict[str, tuple[Entry, str]]:
    """All parts of a plan by name, each with its kind; what is missing in a plan of another schema is left out."""
    units = {service["name"]: (service, _MODEL) for service in plan.get("services", ())}
    if "gateway" in plan:
        units[plan["gateway"]["name"]] = (plan["gateway"], _GATEWAY)
    units[EDGE_UNIT] = (plan.get("edge", {}), _EDGE)
    units[PROMETHEUS_UNIT] = (plan.get("monitoring", {}), _PROMETHEUS)
    return units


def _incomparable(deployed: Entry) -> str:
    return (
        f"the plan to compare with has schema_version {_plain(deployed.get('schema_version'))} and this one"
        f" {SCHEMA_VERSION}: what changes cannot be told, so everything counts as changed"
    )


def _cost(old: Entry, new: Entry, kind: str, deployed: Entry, planned: Entry) -> tuple[str, list[str]]:
    """What becomes of one part that is in both plans, and why."""
    if kind == _EDGE:
        reasons = _edge_changes(deployed, planned)
        return ("reload" if reasons else "unchanged"), reasons
    if kind == _PROMETHEUS:
        reasons = _changes(old, new, {"prometheus_port": ("port", _plain)})
        return ("restart" if reasons else "unchanged"), reasons
    restart = _changes(old, new, SERVICE_RESTARTS if kind == _MODEL else GATEWAY_RESTARTS)
    if kind == _MODEL and deployed.get("device") != planned["device"]:
        restart.insert(0, f"device {deployed.get('device')} -> {planned['device']}")
    if kind == _GATEWAY:
        restart += _model_list_changes(deployed, planned, GATEWAY_MODEL_KEYS)
    live = _changes(old, new, LIVE)
    if restart:
        return "restart", restart + live
    return ("live" if live else "unchanged"), live


def _changes(old: Entry, new: Entry, keys: Mapping[str, tuple[str, Show]]) -> list[str]:
    return [f"{words} {_pair(old.get(key), new.get(key), show)}" for key, (words, show) in keys.items() if old.get(key) != new.get(key)]


def _pair(old: Any, new: Any, show: Show) -> str:  # noqa: ANN401 - values of a plan are as free as JSON
    if show is gib and old is not None:
        return _sizes(old, new)
    return f"{'none' if old is None else show(old)} -> {show(new)}"


def _sizes(old: int, new: int) -> str:
    """Two sizes, as finely as it takes to tell them apart."""
    if gib(old) != gib(new):
        return f"{gib(old)} -> {gib(new)}"
    if old % MIB == 0 and new % MIB == 0:
        return f"{old // MIB} MiB -> {new // MIB} MiB"
    return f"{old} bytes -> {new} bytes"


def _model_list_changes(deployed: Entry, planned: Entry, keys: Mapping[str, tuple[str, Show]]) -> list[str]:
    """What changes in a list of models that somebody keeps: models that come and go, and ``keys`` of those that stay."""
    before, after = ({service["name"]: service for service in plan["services"]} for plan in (deployed, planned))
    return [
        *(f"gets {name}" for name in after if name not in before),
        *(f"loses {name}" for name in before if name not in after),
        *(f"{name}: {change}" for name in after if name in before for change in _changes(before[name], after[name], keys)),
    ]


def _edge_changes(deployed: Entry, planned: Entry) -> list[str]:
    reasons = _model_list_changes(deployed, planned, EDGE_MODEL_KEYS)
    before, after = deployed.get("edge", {}), planned["edge"]
    reasons += _changes(before, after, {"listen_ports": ("listens on", _words)})
    if not reasons and before != after:
        reasons.append(f"metrics {_ports(before.get('metrics_ports', ()))} -> {_ports(after['metrics_ports'])}")
    return reasons


def _ports(owners: Sequence[Entry]) -> str:
    return ",".join(f"{owner['port']}={owner['service']}" for owner in owners)
