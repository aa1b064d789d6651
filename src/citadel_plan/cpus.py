"""Which service runs on which CPUs, and on which NUMA node its memory lies.

vLLM's worker binds its memory strictly to the node of its first CPU (vllm/v1/worker/cpu_worker.py), so a node is a
wall for memory and not only for speed. Sets are whole physical cores: two services on two threads of one core would
slow each other down by a share that nobody can plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final

from .id_lists import format_ids
from .inputs import GatewayRequest, Host, Model, NumaNode
from .problems import Problems
from .units import gib

Core = tuple[int, ...]

QUOTA_PERCENT_PER_CPU: Final = 100
WEIGHT_PER_CORE: Final = 100
_MAX_WEIGHT: Final = 10_000


class Sharing(StrEnum):
    """How the host's cores are dealt out."""

    AS_REQUESTED = "as_requested"
    SCALED = "scaled"
    SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuShare:
    """The CPUs of one service or of the gateway."""

    cpu_ids: tuple[int, ...]
    exclusive: bool
    numa_nodes: tuple[int, ...]
    """Nodes of its CPUs, the one that holds its memory first."""
    omp_cpu_ids: tuple[int, ...]
    """One logical CPU per physical core, for the threads that compute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPlan:
    """The CPUs of a whole host."""

    sharing: Sharing
    services: Mapping[str, CpuShare]
    gateway: CpuShare
    warnings: tuple[str, ...]


def usable_node_bytes(node: NumaNode, host: Host, reserve_bytes: int) -> int:
    """Bytes of a node that services may have: its memory without its part of the reserve, in proportion."""
    total = sum(entry.memory_bytes for entry in host.numa_nodes)
    return node.memory_bytes - reserve_bytes * node.memory_bytes // max(1, total)


def deal_cores(requests: Sequence[int], available: int) -> tuple[int, ...]:
    """Scale requests down to the cores there are.

    One core each, then one by one to whoever has the least in proportion to the request (the highest-averages
    method: with one core more nobody ever gets less); ties go to the first.

    Args:
        requests: Cores asked for, each at least one.
        available: Cores there are, at least one per request.

    Returns:
        Cores per request; the requests themselves where they fit.
    """
    if sum(requests) <= available:
        return tuple(requests)
    dealt = [1] * len(requests)
    for _ in range(available - len(requests)):
        index = max(range(len(requests)), key=lambda place: (Fraction(requests[place], dealt[place] + 1), -place))
        dealt[index] += 1
    return tuple(dealt)


def plan_cpus(
    models: Sequence[Model],
    granted_bytes: Mapping[str, int],
    gateway: GatewayRequest,
    host: Host,
    *,
    reserve_bytes: int,
    problems: Problems,
) -> CpuPlan | None:
    """Give every service its CPUs.

    Args:
        models: The services, ordered by API port; cores are dealt in this order, to the gateway last.
        granted_bytes: Memory limit per service, for the NUMA nodes.
        gateway: The gateway's request.
        host: Cores and nodes.
        reserve_bytes: Memory that no service may have.
        problems: Takes what is wrong.

    Returns:
        The CPUs, or None where a pin cannot be honoured or a service finds no node for its memory.
    """
    pinned = _pinned_cores(models, host, problems)
    if pinned is None:
        return None
    taken = {core for cores in pinned.values() for core in cores}
    free = tuple(core for core in host.cores if core not in taken)
    waiting = [model for model in models if model.name not in pinned]
    requests = [*(model.request.cpus for model in waiting), gateway.cpus]
    shared = len(free) < len(requests)
    dealt = tuple(requests) if shared else deal_cores(requests, len(free))
    counts = {model.name: count for model, count in zip(waiting, dealt, strict=False)}
    homes = _homes(waiting, counts, pinned, granted_bytes, host, free, reserve_bytes, shared, problems)
    if homes is None:
        return None
    asked = sum(model.request.cpus for model in models) + gateway.cpus
    if shared:
        return _share_all(models, pinned, homes, host, asked)
    scaled = sum(requests) > len(free)
    return _deal(models, pinned, counts, homes, dealt[-1], host, free, asked if scaled else None)


def _pinned_cores(models: Sequence[Model], host: Host, problems: Problems) -> dict[str, tuple[Core, ...]] | None:
    """Look up the cores of pinned sets; a pin that the host cannot honour is refused."""
    known = set(host.cpu_ids)
    owners: dict[Core, Model] = {}
    pinned: dict[str, tuple[Core, ...]] = {}
    sound = True
    for model in models:
        ids = model.pin.cpu_ids
        if ids is None:
            continue
        path = f"{model.path}.pin.cpu_set"
        missing = [cpu for cpu in ids if cpu not in known]
        if missing:
            problems.add(
                f"{path} is {format_ids(ids)}, and {host.name} has no CPU {format_ids(missing)}: choose from"
                f" {format_ids(known)}."
            )
            sound = False
            continue
        cores = tuple(core for core in host.cores if set(core) & set(ids))
        for core in cores:
            other = owners.setdefault(core, model)
            if other is not model:
                problems.add(
                    f"{path} is {format_ids(ids)}, which shares a core (CPU {format_ids(core)}) with"
                    f" {other.path}.pin.cpu_set: choose sets that do not overlap."
                )
                sound = False
        pinned[model.name] = cores
    return pinned if sound else None


def _node_of(core: Core, host: Host) -> int:
    return next((node.id for node in host.numa_nodes if core[0] in node.cpu_ids), host.numa_nodes[0].id)


def _homes(
    waiting: Sequence[Model],
    counts: Mapping[str, int],
    pinned: Mapping[str, Sequence[Core]],
    granted_bytes: Mapping[str, int],
    host: Host,
    free: Sequence[Core],
    reserve_bytes: int,
    shared: bool,
    problems: Problems,
) -> dict[str, int] | None:
    """Choose the node of each service: the one that holds its memory and, where it can be helped, all its cores.

    First by port, then, where that leaves somebody out, the largest first; where still no node has both, a node with
    the memory and the most free cores. On a host with one node there is nothing to choose.
    """
    fixed = {name: _node_of(cores[0], host) for name, cores in pinned.items()}
    if len(host.numa_nodes) == 1:
        return {**fixed, **{model.name: host.numa_nodes[0].id for model in waiting}}
    memory = {node.id: usable_node_bytes(node, host, reserve_bytes) for node in host.numa_nodes}
    cores = {node.id: sum(1 for core in free if _node_of(core, host) == node.id) for node in host.numa_nodes}
    for name, node_id in fixed.items():
        memory[node_id] -= granted_bytes[name]
        if memory[node_id] < 0:
            model_path = next(iter(pinned))
            problems.add(
                f"NUMA node {node_id} has no room for {gib(granted_bytes[name])} of {name}, whose cpu_set is pinned"
                f" there: pin it to another node or lower its request ({model_path})."
            )
            return None
    by_port = list(waiting)
    by_size = sorted(waiting, key=lambda model: (-granted_bytes[model.name], model.request.port, model.name))
    for strict in (True, False):
        for order in (by_port, by_size):
            placed = _place(order, counts, granted_bytes, dict(memory), dict(cores), strict and not shared)
            if placed is not None:
                return {**fixed, **placed}
    sizes = ", ".join(f"{model.name} {gib(granted_bytes[model.name])}" for model in by_size)
    rooms = ", ".join(f"node {node_id} {gib(max(0, room))}" for node_id, room in sorted(memory.items()))
    problems.add(
        f"The services do not fit the NUMA nodes of {host.name}, and vLLM keeps each model on one node: {sizes};"
        f" there is room for {rooms}. Lower request.memory of the largest, or set enabled: false on one."
    )
    return None


def _place(
    order: Sequence[Model],
    counts: Mapping[str, int],
    granted_bytes: Mapping[str, int],
    memory: dict[int, int],
    cores: dict[int, int],
    strict: bool,
) -> dict[str, int] | None:
    placed: dict[str, int] = {}
    for model in order:
        wanted, size = counts.get(model.name, 0), granted_bytes[model.name]
        # A node without a free core cannot be home: memory goes where the first CPU is.
        roomy = [node_id for node_id in sorted(memory) if memory[node_id] >= size and (cores[node_id] or not wanted)]
        whole = [node_id for node_id in roomy if cores[node_id] >= wanted]
        if whole:
            chosen = whole[0]
        elif roomy and not strict:
            chosen = max(roomy, key=lambda node_id: (cores[node_id], -node_id))
        else:
            return None
        placed[model.name] = chosen
        memory[chosen] -= size
        cores[chosen] = max(0, cores[chosen] - wanted)
    return placed


def _share(cores: Sequence[Core], home: int, host: Host, *, exclusive: bool, bind: Sequence[Core]) -> CpuShare:
    nodes = sorted({_node_of(core, host) for core in cores} - {home})
    # The first CPU decides where vLLM binds its memory, so the home node's cores come first.
    ordered = sorted(bind, key=lambda core: (_node_of(core, host) != home, core))
    return CpuShare(
        cpu_ids=tuple(sorted(cpu for core in cores for cpu in core)),
        exclusive=exclusive,
        numa_nodes=(home, *nodes),
        omp_cpu_ids=tuple(core[0] for core in ordered),
    )


def _pinned_share(model: Model, cores: Sequence[Core], home: int, host: Host, *, exclusive: bool) -> CpuShare:
    """Honour a pin to the letter: its own CPUs, even where it leaves out a thread of a core."""
    ids = model.pin.cpu_ids or ()
    return _share([tuple(cpu for cpu in core if cpu in ids) for core in cores], home, host, exclusive=exclusive,
                  bind=[tuple(cpu for cpu in core if cpu in ids) for core in cores])


def _share_all(
    models: Sequence[Model],
    pinned: Mapping[str, Sequence[Core]],
    homes: Mapping[str, int],
    host: Host,
    asked: int,
) -> CpuPlan:
    services: dict[str, CpuShare] = {}
    for model in models:
        home = homes[model.name]
        if model.name in pinned:
            services[model.name] = _pinned_share(model, pinned[model.name], home, host, exclusive=False)
            continue
        local = [core for core in host.cores if _node_of(core, host) == home]
        services[model.name] = _share(host.cores, home, host, exclusive=False, bind=local)
    gateway = _share(host.cores, host.numa_nodes[0].id, host, exclusive=False, bind=host.cores)
    return CpuPlan(
        sharing=Sharing.SHARED,
        services=services,
        gateway=gateway,
        warnings=(
            f"cpus: {asked} cores are requested and {host.name} has {len(host.cores)}, fewer than one per service:"
            " all share them, in proportion to their weights",
        ),
    )


def _deal(
    models: Sequence[Model],
    pinned: Mapping[str, Sequence[Core]],
    counts: Mapping[str, int],
    homes: Mapping[str, int],
    gateway_count: int,
    host: Host,
    free: Sequence[Core],
    scaled_from: int | None,
) -> CpuPlan:
    left = list(free)
    chosen: dict[str, list[Core]] = {model.name: [] for model in models}
    for model in models:
        local = [core for core in left if _node_of(core, host) == homes[model.name]]
        chosen[model.name] = local[: counts.get(model.name, 0)]
        left = [core for core in left if core not in chosen[model.name]]
    warnings: list[str] = []
    services: dict[str, CpuShare] = {}
    for model in models:
        home = homes[model.name]
        if model.name in pinned:
            services[model.name] = _pinned_share(model, pinned[model.name], home, host, exclusive=True)
            continue
        missing = counts[model.name] - len(chosen[model.name])
        if missing:
            chosen[model.name] += left[:missing]
            left = left[missing:]
            warnings.append(f"{model.name}: its {counts[model.name]} cores span NUMA nodes, no node had them free")
        cores = chosen[model.name]
        services[model.name] = _share(cores, home, host, exclusive=True, bind=cores)
    gateway_cores = _gateway_cores(left, gateway_count, host)
    if scaled_from is not None:
        dealt = ", ".join(
            [f"{model.name} {len(services[model.name].omp_cpu_ids)} of {model.request.cpus}" for model in models]
            + [f"gateway {len(gateway_cores)}"]
        )
        warnings.insert(
            0, f"cpus: {scaled_from} cores are requested and {host.name} has {len(host.cores)}: scaled down to {dealt}"
        )
    gateway_home = _node_of(gateway_cores[0], host)
    return CpuPlan(
        sharing=Sharing.AS_REQUESTED if scaled_from is None else Sharing.SCALED,
        services=services,
        gateway=_share(gateway_cores, gateway_home, host, exclusive=True, bind=gateway_cores),
        warnings=tuple(warnings),
    )


def _gateway_cores(left: Sequence[Core], count: int, host: Host) -> list[Core]:
    """Take the gateway's cores from one node where one has enough left; its memory is not bound."""
    for node in host.numa_nodes:
        local = [core for core in left if _node_of(core, host) == node.id]
        if len(local) >= count:
            return local[:count]
    return list(left[:count])


def quota_percent(share: CpuShare, override: int | None) -> int | None:
    """CPUQuota of a service: what its set can give, the operator's own figure, or none where CPUs are shared."""
    if override is not None:
        return override
    return QUOTA_PERCENT_PER_CPU * len(share.cpu_ids) if share.exclusive else None


def check_quota(path: str, quota: int | None, host: Host, problems: Problems) -> None:
    """Refuse a quota above what the whole host could give: it would limit nothing."""
    most = QUOTA_PERCENT_PER_CPU * len(host.cpu_ids)
    if quota is not None and quota > most:
        problems.add(
            f"{path}.cpu_quota_percent is {quota}, which is more than the {most} of all {len(host.cpu_ids)} CPUs of"
            f" {host.name}: lower it or leave it out."
        )


def cpu_weight(cores: int, override: int | None) -> int:
    """CPUWeight in proportion to the cores asked for, within systemd's 1 to 10000."""
    return min(_MAX_WEIGHT, max(1, WEIGHT_PER_CORE * cores)) if override is None else override
