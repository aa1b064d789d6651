"""Which service runs on which CPUs, and on which NUMA node its memory lies.

vLLM's worker binds its memory strictly to one node (vllm/v1/worker/cpu_worker.py), so a node is a wall for memory and
not only for speed. Sets are whole physical cores: two services on two threads of one core would slow each other down
by a share that nobody can plan.

Which node the worker takes: that of the lowest CPU of its thread list, whatever the order the list is written in, as
libgomp has bound the worker's main thread to it when vLLM asks; unless that node is not among the memory nodes that
the process may use, then the first of those. So the unit's memory node is part of the plan, the first of
``numa_nodes``, and the only one that the process is let see. Whether there is room for the KV cache is asked of the
node of that lowest CPU all the same (determine_available_memory), so no thread runs on a CPU below those at home.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from .bins import pack
from .id_lists import format_ids
from .problems import Change
from .units import MIB, gib

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
    """The node that holds its memory first, then the other nodes of its CPUs."""
    omp_cpu_ids: tuple[int, ...]
    """One logical CPU per physical core, for the threads that compute. The lowest is at home, unless others have
    pinned every core there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPlan:
    """The CPUs of a whole host."""

    sharing: Sharing
    services: Mapping[str, CpuShare]
    gateway: CpuShare
    warnings: tuple[str, ...]


def usable_node_bytes(node: NumaNode, host: Host, reserve_bytes: int) -> int:
    """Give what services may have of a node, in bytes: its memory without its part of the reserve, in proportion."""
    total = sum(entry.memory_bytes for entry in host.numa_nodes)
    return node.memory_bytes - -(-reserve_bytes * node.memory_bytes // max(1, total))


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


def prepare_cpus(models: Sequence[Model], gateway: GatewayRequest, host: Host, reserve_bytes: int, problems: Problems) -> Dealer | None:
    """Count cores, and look up the pinned ones.

    Args:
        models: The services, ordered by API port; cores are dealt in this order, to the gateway last.
        gateway: The gateway's request.
        host: Cores and nodes.
        reserve_bytes: Memory that no service may have.
        problems: Takes what is wrong.

    Returns:
        What deals the CPUs, or None where a pin cannot be honoured.

    """
    pinned = _pinned_cores(models, host, problems)
    return None if pinned is None else Dealer(models, pinned, gateway, host, reserve_bytes)


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
        repair = Change(model.override_path("pin.cpu_set"), None)
        missing = [cpu for cpu in ids if cpu not in known]
        if missing:
            problems.add(
                f"{path} is {format_ids(ids)}, and {host.name} has no CPU {format_ids(missing)}: choose from {format_ids(known)}.",
                repair=repair,
            )
            sound = False
            continue
        cores = tuple(core for core in host.cores if set(core) & set(ids))
        for core in cores:
            other = owners.setdefault(core, model)
            if other is not model:
                problems.add(
                    f"{path} is {format_ids(ids)}, which shares a core (CPU {format_ids(core)}) with"
                    f" {other.path('pin.cpu_set')}: choose sets that do not overlap.",
                    repair=repair,
                )
                sound = False
        pinned[model.name] = cores
    return pinned if sound else None


class Dealer:
    """Deals the cores of one host, and says which NUMA node holds which service's memory."""

    def __init__(
        self,
        models: Sequence[Model],
        pinned: Mapping[str, Sequence[Core]],
        gateway: GatewayRequest,
        host: Host,
        reserve_bytes: int,
    ) -> None:
        """Count cores, without dealing any yet."""
        self._models = models
        self._pinned = pinned
        self._host = host
        taken = {core for cores in pinned.values() for core in cores}
        self._free = [core for core in host.cores if core not in taken]
        self._waiting = [model for model in models if model.name not in pinned]
        requests = [*(model.request.cpus for model in self._waiting), gateway.cpus]
        self._asked = sum(model.request.cpus for model in models) + gateway.cpus
        self._too_few = len(self._free) < len(requests)
        self._scaled = sum(requests) > len(self._free)
        dealt = tuple(requests) if self._too_few else deal_cores(requests, len(self._free))
        self._gateway_count = dealt[-1]
        self._counts = {model.name: count for model, count in zip(self._waiting, dealt[:-1], strict=True)}
        self._node_by_cpu = {cpu: node.id for node in host.numa_nodes for cpu in node.cpu_ids}
        self._rooms = {node.id: usable_node_bytes(node, host, reserve_bytes) for node in host.numa_nodes if node.cpu_ids}
        self._cores = {node_id: sum(1 for core in self._free if self._node_of(core) == node_id) for node_id in self._rooms}
        self._fixed = {model.name: self._node_by_cpu[min(model.pin.cpu_ids or ())] for model in models if model.name in pinned}

    def _node_of(self, core: Core) -> int:
        return self._node_by_cpu[core[0]]

    @property
    def has_walls(self) -> bool:
        """Tell whether a service could find its memory on the wrong node."""
        return len(self._host.numa_nodes) > 1

    def room_bytes(self, node_id: int) -> int:
        """Give what services may have of a node, in bytes."""
        return self._rooms[node_id]

    def widest_bytes(self) -> int:
        """Give what one service may have at most, in bytes; whole MiB."""
        return max(self._rooms.values()) // MIB * MIB

    def place(self, sizes: Mapping[str, int], *, sharing: bool) -> dict[str, int] | None:
        """Choose the node of each service: it holds its memory and, where it can be helped, all its cores.

        Where no node has both, a node with the memory and at least one core of the service's own.

        Args:
            sizes: Memory of each service, in bytes.
            sharing: Whether the memory alone may decide, so that services without a core at home share all cores.

        Returns:
            A node per service, or None where there is no way.

        """
        left = dict(self._rooms)
        for name, node_id in self._fixed.items():
            left[node_id] -= sizes[name]
        if any(room < 0 for room in left.values()):
            return None
        placed: dict[str, int] | None = None
        if not self._too_few:
            counts = [self._counts[model.name] for model in self._waiting]
            placed = self._pack(sizes, left, counts) or self._spread(sizes, left) or self._pack(sizes, left, [1] * len(counts))
        if placed is None and (sharing or self._too_few):
            placed = self._spread(sizes, left, sharing=True) or self._pack(sizes, left, [0] * len(self._waiting))
        return None if placed is None else self._fixed | placed

    def _pack(self, sizes: Mapping[str, int], left: Mapping[int, int], counts: Sequence[int]) -> dict[str, int] | None:
        nodes = sorted(left)
        found = pack(
            [(sizes[model.name], count) for model, count in zip(self._waiting, counts, strict=True)],
            [(left[node_id], self._cores[node_id]) for node_id in nodes],
        )
        return None if found is None else {model.name: nodes[index] for model, index in zip(self._waiting, found, strict=True)}

    def _spread(self, sizes: Mapping[str, int], left: Mapping[int, int], *, sharing: bool = False) -> dict[str, int] | None:
        """Put each service where most cores are left, the largest first."""
        memory, cores, homed = dict(left), dict(self._cores), dict.fromkeys(left, 0)
        placed: dict[str, int] = {}
        for model in sorted(self._waiting, key=lambda model: (-sizes[model.name], model.request.port, model.name)):
            name = model.name
            roomy = [
                node_id
                for node_id in sorted(memory)
                if memory[node_id] >= sizes[name] and (sharing or homed[node_id] < self._cores[node_id])
            ]
            if not roomy:
                return None
            chosen = max(roomy, key=lambda node_id: (cores[node_id], -node_id))
            placed[name] = chosen
            homed[chosen] += 1
            memory[chosen] -= sizes[name]
            cores[chosen] -= self._counts[name]
        return placed

    def explain(self, sizes: Mapping[str, int], keys: Mapping[str, str]) -> list[str]:
        """Say why services find no nodes.

        Args:
            sizes: Memory of each service, in bytes.
            keys: The key of the inventory that demands exactly this size, where one does.

        Returns:
            Sentences.

        """
        widest = self.widest_bytes()
        sentences: list[str] = []
        for model in self._models:
            size = sizes[model.name]
            if size <= widest:
                continue
            sentences.append(
                f"{keys[model.name]} is {gib(size)}, which is more than the {gib(widest)} that a NUMA node has for a service,"
                " and vLLM keeps a model on one node: lower it."
                if model.name in keys
                else f"{model.path()} needs {gib(size)} at least, and no NUMA node has more than {gib(widest)} for a service, and"
                " vLLM keeps a model on one node: take a smaller variant, or lower context_tokens or min_num_seqs."
            )
        return sentences or [self._explain_together(sizes)]

    def _explain_together(self, sizes: Mapping[str, int]) -> str:
        by_size = sorted(self._models, key=lambda model: (-sizes[model.name], model.request.port, model.name))
        wanted = ", ".join(f"{model.name} {gib(sizes[model.name])}{self._pin_note(model)}" for model in by_size)
        rooms = ", ".join(f"node {node_id} {gib(room)}" for node_id, room in sorted(self._rooms.items()))
        return (
            f"The services do not fit the NUMA nodes of {self._host.name}, and vLLM keeps each model on one node: {wanted} at least;"
            f" there is room for {rooms}: take smaller variants or shorter contexts, or set enabled: false on a model."
        )

    def _pin_note(self, model: Model) -> str:
        return f" ({model.path('pin.cpu_set')} puts it on node {self._fixed[model.name]})" if model.name in self._fixed else ""

    def deal(self, homes: Mapping[str, int] | None) -> CpuPlan:
        """Deal the cores.

        Args:
            homes: The node of each service as :meth:`place` chose it; None where memory has no walls.

        Returns:
            The CPUs of all services and of the gateway.

        """
        if homes is None:
            nothing = {model.name: 0 for model in self._models}
            homes = self.place(nothing, sharing=False) or self.place(nothing, sharing=True)
        if homes is None:
            raise AssertionError("a service without memory fits everywhere")
        at_home = {node_id: [model for model in self._waiting if homes[model.name] == node_id] for node_id in self._rooms}
        if self._too_few:
            reason = f"{self._asked} cores are requested and {self._host.name} has {len(self._host.cores)}, fewer than one per service"
            return self._share_all(homes, reason)
        if any(len(residents) > self._cores[node_id] for node_id, residents in at_home.items()):
            return self._share_all(homes, "not every service finds a core on the NUMA node that holds its memory")
        return self._deal(homes, at_home)

    def _share(self, cores: Sequence[Core], home: int, *, exclusive: bool, bind: Sequence[Core]) -> CpuShare:
        return CpuShare(
            cpu_ids=tuple(sorted(cpu for core in cores for cpu in core)),
            exclusive=exclusive,
            numa_nodes=(home, *sorted({self._node_of(core) for core in cores} - {home})),
            omp_cpu_ids=tuple(sorted(core[0] for core in bind)),
        )

    def _pinned_share(self, model: Model, home: int, *, exclusive: bool) -> CpuShare:
        """Honour a pin to the letter: its own CPUs, even where it leaves out a thread of a core."""
        ids = model.pin.cpu_ids or ()
        own = [tuple(cpu for cpu in core if cpu in ids) for core in self._pinned[model.name]]
        return self._share(own, home, exclusive=exclusive, bind=own)

    def _share_all(self, homes: Mapping[str, int], reason: str) -> CpuPlan:
        """Give all cores that nobody has pinned to everybody; each computes on those of its home node."""
        pool = self._free or self._host.cores
        services: dict[str, CpuShare] = {}
        for model in self._models:
            home = homes[model.name]
            if model.name in self._pinned:
                services[model.name] = self._pinned_share(model, home, exclusive=bool(self._free))
            else:
                local = [core for core in pool if self._node_of(core) == home]
                services[model.name] = self._share(pool, home, exclusive=False, bind=local or pool)
        return CpuPlan(
            sharing=Sharing.SHARED,
            services=services,
            gateway=self._share(pool, self._node_of(pool[0]), exclusive=False, bind=pool),
            warnings=(f"cpus: {reason}: all share them, in proportion to their weights",),
        )

    def _deal(self, homes: Mapping[str, int], at_home: Mapping[int, Sequence[Model]]) -> CpuPlan:
        """Give every service cores of its own: of its home node first, then, where these do not suffice, of others."""
        chosen: dict[str, list[Core]] = {}
        left: list[Core] = []
        for node_id, residents in at_home.items():
            local = [core for core in self._free if self._node_of(core) == node_id]
            for model, count in zip(residents, self._local_counts(residents, len(local)), strict=True):
                chosen[model.name], local = local[:count], local[count:]
            left += local
        warnings: list[str] = []
        for model in self._waiting:
            missing = self._counts[model.name] - len(chosen[model.name])
            if missing:
                # Behind its own cores where it can be: threads run on no others.
                behind = [core for core in left if core > chosen[model.name][0]]
                more = self._from_few_nodes(behind if len(behind) >= missing else left, missing)
                chosen[model.name] += more
                left = [core for core in left if core not in more]
                warnings.append(f"{model.name}: its {self._counts[model.name]} cores span NUMA nodes, no node had them free")
        # The gateway's memory is not bound, but one node is as good for it as for anybody.
        gateway_cores = self._from_few_nodes(left, self._gateway_count)
        if self._scaled:
            dealt = ", ".join(f"{model.name} {self._counts[model.name]} of {model.request.cpus}" for model in self._waiting)
            warnings.insert(
                0,
                f"cpus: {self._asked} cores are requested and {self._host.name} has {len(self._host.cores)}: scaled down to"
                f" {dealt}{', ' if dealt else ''}gateway {len(gateway_cores)}",
            )
        services = {
            model.name: self._pinned_share(model, homes[model.name], exclusive=True)
            if model.name in self._pinned
            else self._share(
                chosen[model.name],
                homes[model.name],
                exclusive=True,
                bind=[core for core in chosen[model.name] if core >= chosen[model.name][0]],
            )
            for model in self._models
        }
        return CpuPlan(
            sharing=Sharing.SCALED if self._scaled else Sharing.AS_REQUESTED,
            services=services,
            gateway=self._share(gateway_cores, self._node_of(gateway_cores[0]), exclusive=True, bind=gateway_cores),
            warnings=tuple(warnings),
        )

    def _local_counts(self, residents: Sequence[Model], cores: int) -> Sequence[int]:
        """Give the cores of a node to the services that live there: each at least one."""
        return deal_cores([self._counts[model.name] for model in residents], cores) if residents else ()

    def _from_few_nodes(self, left: Sequence[Core], count: int) -> list[Core]:
        """Take cores from one node where one has enough left, else in order."""
        for node in self._host.numa_nodes:
            local = [core for core in left if self._node_of(core) == node.id]
            if len(local) >= count:
                return local[:count]
        return sorted(left)[:count]


def omp_places(share: CpuShare) -> str | None:
    """Write the one place of threads on shared CPUs, as OpenMP's OMP_PLACES has it; None where the service has its CPUs to itself.

    vLLM has libgomp bind each thread to a CPU of its own, and with the first one the worker's main thread, which spins
    for a second after each request (vllm/distributed/device_communicators/shm_broadcast.py). Services that share CPUs
    have the same first one, which would compute for all of them while the last is idle; in one place the kernel spreads them.
    """
    return None if share.exclusive else "{" + ",".join(map(str, share.omp_cpu_ids)) + "}"


def quota_percent(share: CpuShare, override: int | None) -> int | None:
    """CPUQuota of a service: what its set can give, the operator's own figure, or none where CPUs are shared."""
    if override is not None:
        return override
    return QUOTA_PERCENT_PER_CPU * len(share.cpu_ids) if share.exclusive else None


def check_quota(path: str, override: tuple[str, ...], quota: int | None, host: Host, problems: Problems) -> None:
    """Refuse a quota above what the whole host could give: it would limit nothing."""
    if quota is None:
        return
    most = QUOTA_PERCENT_PER_CPU * len(host.cpu_ids)
    if quota > most:
        problems.add(
            f"{path} is {quota}, which is more than the {most} of all {len(host.cpu_ids)} CPUs of {host.name}: lower it or leave it out.",
            repair=Change(override, None),
        )


def cpu_weight(cores: int, override: int | None) -> int:
    """CPUWeight in proportion to the cores asked for, within systemd's 1 to 10000."""
    return min(_MAX_WEIGHT, max(1, WEIGHT_PER_CORE * cores)) if override is None else override


def gateway_cpu_weight(share: CpuShare, cores: int, override: int | None) -> int:
    """CPUWeight of the gateway: where it shares its CPUs with the models, it goes before them.

    It needs little for each token that they make, and without it nobody gets one. With a share in proportion, it falls behind three
    models that answer 50 streams, and of those that arrive meanwhile no more than a few are even begun.
    """
    return cpu_weight(cores, override) if share.exclusive or override is not None else _MAX_WEIGHT
