"""Which service runs on which CPUs, and on which NUMA node its memory lies.

vLLM's worker binds its memory strictly to the node of its first CPU (vllm/v1/worker/cpu_worker.py), so a node is a
wall for memory and not only for speed. Sets are whole physical cores: two services on two threads of one core would
slow each other down by a share that nobody can plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from .id_lists import format_ids
from .units import gib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .inputs import GatewayRequest, Host, Model, NumaNode
    from .problems import Problems

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
    dealer = _Dealer(models, pinned, gateway, host)
    homes = dealer.homes(granted_bytes, reserve_bytes, problems)
    if homes is None:
        return None
    return dealer.share_all(homes) if dealer.shared else dealer.deal(homes)


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
        path = model.path("pin.cpu_set")
        missing = [cpu for cpu in ids if cpu not in known]
        if missing:
            problems.add(f"{path} is {format_ids(ids)}, and {host.name} has no CPU {format_ids(missing)}: choose from {format_ids(known)}.")
            sound = False
            continue
        cores = tuple(core for core in host.cores if set(core) & set(ids))
        for core in cores:
            other = owners.setdefault(core, model)
            if other is not model:
                problems.add(
                    f"{path} is {format_ids(ids)}, which shares a core (CPU {format_ids(core)}) with"
                    f" {other.path('pin.cpu_set')}: choose sets that do not overlap."
                )
                sound = False
        pinned[model.name] = cores
    return pinned if sound else None


class _Dealer:
    """Deals the cores of one host."""

    def __init__(self, models: Sequence[Model], pinned: Mapping[str, Sequence[Core]], gateway: GatewayRequest, host: Host) -> None:
        self.models = models
        self.pinned = pinned
        self.host = host
        taken = {core for cores in pinned.values() for core in cores}
        self.free = [core for core in host.cores if core not in taken]
        self.waiting = [model for model in models if model.name not in pinned]
        requests = [*(model.request.cpus for model in self.waiting), gateway.cpus]
        self.asked = sum(model.request.cpus for model in models) + gateway.cpus
        self.shared = len(self.free) < len(requests)
        self.scaled = sum(requests) > len(self.free)
        dealt = tuple(requests) if self.shared else deal_cores(requests, len(self.free))
        self.gateway_count = dealt[-1]
        self.counts = {model.name: count for model, count in zip(self.waiting, dealt[:-1], strict=True)}
        self.node_by_cpu = {cpu: node.id for node in host.numa_nodes for cpu in node.cpu_ids}

    def node_of(self, core: Core) -> int:
        return self.node_by_cpu.get(core[0], self.host.numa_nodes[0].id)

    def homes(self, granted_bytes: Mapping[str, int], reserve_bytes: int, problems: Problems) -> dict[str, int] | None:
        """Choose the node of each service: it holds its memory and, where it can be helped, all its cores.

        First by port, then, where that leaves somebody out, the largest first; where still no node has both, a node
        with the memory and the most free cores. On a host with one node there is nothing to choose.
        """
        nodes = self.host.numa_nodes
        fixed = {name: self.node_of(cores[0]) for name, cores in self.pinned.items()}
        if len(nodes) == 1:
            return {model.name: nodes[0].id for model in self.models}
        memory = {node.id: usable_node_bytes(node, self.host, reserve_bytes) for node in nodes}
        cores = {node.id: sum(1 for core in self.free if self.node_of(core) == node.id) for node in nodes}
        for name, node_id in fixed.items():
            memory[node_id] -= granted_bytes[name]
            if memory[node_id] < 0:
                problems.add(
                    f"NUMA node {node_id} has no room for the {gib(granted_bytes[name])} of {name}, whose pin.cpu_set is on"
                    " it: pin it to another node, or lower its request.memory."
                )
                return None
        by_size = sorted(self.waiting, key=lambda model: (-granted_bytes[model.name], model.request.port, model.name))
        for whole in (True, False):
            for order in (self.waiting, by_size):
                placed = self._place(order, granted_bytes, dict(memory), dict(cores), whole=whole)
                if placed is not None:
                    return fixed | placed
        sizes = ", ".join(f"{model.name} {gib(granted_bytes[model.name])}" for model in by_size)
        rooms = ", ".join(f"node {node_id} {gib(room)}" for node_id, room in sorted(memory.items()))
        problems.add(
            f"The services do not fit the NUMA nodes of {self.host.name}, and vLLM keeps each model on one node: {sizes};"
            f" there is room for {rooms}. Lower request.memory of the largest, or set enabled: false on one."
        )
        return None

    def _place(
        self, order: Sequence[Model], granted_bytes: Mapping[str, int], memory: dict[int, int], cores: dict[int, int], *, whole: bool
    ) -> dict[str, int] | None:
        """Place services in an order; ``whole`` insists on a node that has all cores of a service."""
        placed: dict[str, int] = {}
        for model in order:
            wanted, size = self.counts[model.name], granted_bytes[model.name]
            # A node without a free core cannot be home: memory goes where the first CPU is.
            roomy = [node_id for node_id in sorted(memory) if memory[node_id] >= size and (cores[node_id] or self.shared)]
            complete = [node_id for node_id in roomy if cores[node_id] >= wanted]
            if complete and not self.shared:
                chosen = complete[0]
            elif roomy and (self.shared or not whole):
                chosen = max(roomy, key=lambda node_id: (cores[node_id], -node_id))
            else:
                return None
            placed[model.name] = chosen
            memory[chosen] -= size
            cores[chosen] = max(0, cores[chosen] - wanted)
        return placed

    def _share(self, cores: Sequence[Core], home: int, *, exclusive: bool, bind: Sequence[Core]) -> CpuShare:
        # The first CPU decides where vLLM binds its memory, so the home node's cores come first.
        ordered = sorted(bind, key=lambda core: (self.node_of(core) != home, core))
        return CpuShare(
            cpu_ids=tuple(sorted(cpu for core in cores for cpu in core)),
            exclusive=exclusive,
            numa_nodes=(home, *sorted({self.node_of(core) for core in cores} - {home})),
            omp_cpu_ids=tuple(core[0] for core in ordered),
        )

    def _pinned_share(self, model: Model, home: int, *, exclusive: bool) -> CpuShare:
        """Honour a pin to the letter: its own CPUs, even where it leaves out a thread of a core."""
        ids = model.pin.cpu_ids or ()
        own = [tuple(cpu for cpu in core if cpu in ids) for core in self.pinned[model.name]]
        return self._share(own, home, exclusive=exclusive, bind=own)

    def share_all(self, homes: Mapping[str, int]) -> CpuPlan:
        """Give all cores to everybody; each computes on those of its home node."""
        host = self.host
        services: dict[str, CpuShare] = {}
        for model in self.models:
            home = homes[model.name]
            local = [core for core in host.cores if self.node_of(core) == home]
            services[model.name] = (
                self._pinned_share(model, home, exclusive=False)
                if model.name in self.pinned
                else self._share(host.cores, home, exclusive=False, bind=local)
            )
        return CpuPlan(
            sharing=Sharing.SHARED,
            services=services,
            gateway=self._share(host.cores, host.numa_nodes[0].id, exclusive=False, bind=host.cores),
            warnings=(
                f"cpus: {self.asked} cores are requested and {host.name} has {len(host.cores)}, fewer than one per service:"
                " all share them, in proportion to their weights",
            ),
        )

    def deal(self, homes: Mapping[str, int]) -> CpuPlan:
        """Give every service cores of its own: of its home node first, then, where these do not suffice, of others."""
        left = list(self.free)
        chosen: dict[str, list[Core]] = {}
        for model in self.waiting:
            local = [core for core in left if self.node_of(core) == homes[model.name]]
            chosen[model.name] = local[: self.counts[model.name]]
            left = [core for core in left if core not in chosen[model.name]]
        warnings: list[str] = []
        for model in self.waiting:
            missing = self.counts[model.name] - len(chosen[model.name])
            if missing:
                more = self._from_few_nodes(left, missing)
                chosen[model.name] += more
                left = [core for core in left if core not in more]
                warnings.append(f"{model.name}: its {self.counts[model.name]} cores span NUMA nodes, no node had them free")
        # The gateway's memory is not bound, but one node is as good for it as for anybody.
        gateway_cores = self._from_few_nodes(left, self.gateway_count)
        if self.scaled:
            dealt = ", ".join(f"{model.name} {self.counts[model.name]} of {model.request.cpus}" for model in self.waiting)
            warnings.insert(
                0,
                f"cpus: {self.asked} cores are requested and {self.host.name} has {len(self.host.cores)}: scaled down to"
                f" {dealt}{', ' if dealt else ''}gateway {len(gateway_cores)}",
            )
        services = {
            model.name: self._pinned_share(model, homes[model.name], exclusive=True)
            if model.name in self.pinned
            else self._share(chosen[model.name], homes[model.name], exclusive=True, bind=chosen[model.name])
            for model in self.models
        }
        return CpuPlan(
            sharing=Sharing.SCALED if self.scaled else Sharing.AS_REQUESTED,
            services=services,
            gateway=self._share(gateway_cores, self.node_of(gateway_cores[0]), exclusive=True, bind=gateway_cores),
            warnings=tuple(warnings),
        )

    def _from_few_nodes(self, left: Sequence[Core], count: int) -> list[Core]:
        """Take cores from one node where one has enough left, else in order."""
        for node in self.host.numa_nodes:
            local = [core for core in left if self.node_of(core) == node.id]
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
            f"{path} is {quota}, which is more than the {most} of all {len(host.cpu_ids)} CPUs of {host.name}: lower it or leave it out."
        )


def cpu_weight(cores: int, override: int | None) -> int:
    """CPUWeight in proportion to the cores asked for, within systemd's 1 to 10000."""
    return min(_MAX_WEIGHT, max(1, WEIGHT_PER_CORE * cores)) if override is None else override
