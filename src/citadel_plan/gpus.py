"""Which service runs on which GPUs.

GPUs are bins. A service takes one of them where one is large enough, else the fewest equal ones that can share it
(tensor parallel), or more of them where the services cannot be placed otherwise. Services are packed first-fit by
decreasing size; where that leaves somebody out, all ways are tried.
Where the best variants of all do not fit together, quality goes down evenly, the service whose variant is nearest to
the best first, the largest saving first; what then is left over lifts services again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

from .memory import activation_bytes, kv_pool_bytes
from .problems import Change, Kind
from .storage import storage_needed
from .units import GIB, MIB, gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .inputs import Gpu, Host, Model, Variant
    from .problems import Problems

GPU_LIMIT_THOUSANDTHS: Final = 950
"""Sum of --gpu-memory-utilization of all services on one GPU: drivers and other contexts need the rest."""

GPU_BASE_BYTES: Final = 1536 * MIB
"""CUDA context, graphs and workspaces of one worker. General knowledge, not measured: no GPU was at hand."""

GPU_HEADROOM_PERCENT: Final = 3
GPU_BLOCK_TOKENS: Final = 16
GPU_CONCURRENT_BATCHES: Final = 2
"""Asynchronous scheduling is on with CUDA: one batch runs while the next is prepared."""

HOST_BASE_BYTES: Final = 5 * GIB
"""Host memory of a service on CUDA with one worker: API server, engine core, a CUDA worker, pinned buffers."""

HOST_WORKER_BYTES: Final = 2 * GIB
"""Host memory of each further worker of a tensor-parallel service."""

MAX_STATES: Final = 100
"""States of the search after which it gives up: six services on six GPUs were never seen to need 50, and twenty
are to be planned within 50 ms."""

_THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """A service on its GPUs; bytes are sums over all of them."""

    variant: Variant
    gpu_ids: tuple[int, ...]
    num_seqs: int
    thousandths: int
    """--gpu-memory-utilization x 1000, the same on each of its GPUs."""
    memory_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    gpu_ids: tuple[int, ...]
    thousandths: int


def host_bytes(workers: int) -> int:
    """Host memory that a CUDA service needs, before headroom."""
    return HOST_BASE_BYTES + (workers - 1) * HOST_WORKER_BYTES


def plan_gpus(
    models: Sequence[Model], variants: Mapping[str, Sequence[Variant]], host: Host, disk_bytes: int, problems: Problems
) -> dict[str, GpuShare] | None:
    """Pack all services.

    Args:
        models: The services, ordered by API port.
        variants: Per service the variants that may run, by preference, at least one each.
        host: Its GPUs.
        disk_bytes: What the weights of all services may take together: a better variant must not be chosen that the
            disk then refuses.
        problems: Takes what is wrong.

    Returns:
        Variant, GPUs and sequences per service, or None where they do not fit.

    """
    if not _pins_exist(models, host, problems):
        return None
    ladders = {model.name: _ladder(model, variants[model.name], host) for model in models}
    for model in models:
        if not ladders[model.name]:
            problems.add(_too_large(model, variants[model.name], host), kind=Kind.SIZE)
    if not all(ladders.values()):
        return None
    found = _choose(models, ladders, host, disk_bytes, widest=False) or _choose(models, ladders, host, disk_bytes, widest=True)
    if found is not None:
        return _grow(models, *found, host)
    smallest = {model.name: ladders[model.name][-1].variant for model in models}
    sizes = ", ".join(f"{model.name} {gib(_bytes_on_one(model, smallest[model.name]))}" for model in models)
    gpus = ", ".join(f"GPU {gpu.id} {gib(gpu.memory_bytes)}" for gpu in host.gpus)
    problems.add(
        f"The services do not fit the GPUs of {host.name} together, even in their smallest variants: {sizes}; there are"
        f" {gpus}, of which {GPU_LIMIT_THOUSANDTHS / 10:.0f} % may be used: set enabled: false on a model, or lower"
        " context_tokens or min_num_seqs.",
        kind=Kind.SIZE,
    )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One step of a service's ladder."""

    variant: Variant
    depth: int
    """Place in the order of preference."""
    size: int
    """Bytes on one GPU that has it alone."""
    job: _Job


def _ladder(model: Model, variants: Sequence[Variant], host: Host) -> list[_Step]:
    """Give the variants that fit empty GPUs, best first; one that needs as much as a better one is no step down."""
    ladder: list[_Step] = []
    for depth, variant in enumerate(variants):
        size = _bytes_on_one(model, variant)
        job = _job(model, variant, host) if not ladder or size < ladder[-1].size else None
        if job is not None:
            ladder.append(_Step(variant=variant, depth=depth, size=size, job=job))
    return ladder


def _too_large(model: Model, variants: Sequence[Variant], host: Host) -> str:
    smallest = min(variants, key=lambda variant: _bytes_on_one(model, variant))
    needed = f"{smallest.name} needs {gib(_bytes_on_one(model, smallest))} on one GPU"
    heads = f"{model.architecture.heads} heads ({model.architecture.kv_heads} of keys and values)"
    if model.pin.gpu_ids is not None:
        return (
            f"{model.path('pin.gpu_ids')} is {list(model.pin.gpu_ids)}, on which {model.name} does not fit: {needed}, and several are used"
            f" only where they are equal and its {heads} can be split over them: pin others, or leave it out."
        )
    return (
        f"{model.path()} fits no GPU of {host.name}: {needed}, and its {heads} cannot be split over enough equal ones: add a smaller"
        " variant, or lower context_tokens or min_num_seqs."
    )


def _choose(
    models: Sequence[Model], ladders: Mapping[str, Sequence[_Step]], host: Host, disk_bytes: int, *, widest: bool
) -> tuple[dict[str, Variant], dict[str, _Placed]] | None:
    """Choose a step of each ladder so that all services fit together, or None where not even the lowest do.

    First down, evenly; then each service up again as far as the rest allows, the one furthest down first. ``widest``
    lets services spread over more GPUs than they need.
    """
    levels = {model.name: 0 for model in models}
    lowest = {name: len(ladder) - 1 for name, ladder in ladders.items()}

    def disk(tried: Mapping[str, int]) -> int:
        return sum(storage_needed(ladders[name][level].variant) for name, level in tried.items())

    # Where not even the smallest find room on the disk, that is refused elsewhere.
    limit = max(disk_bytes, disk(lowest))

    def pack(tried: Mapping[str, int]) -> dict[str, _Placed] | None:
        if disk(tried) > limit:
            return None
        return _pack([ladders[model.name][tried[model.name]].job for model in models], host, widest=widest)

    def step_key(model: Model) -> tuple[int, int, int]:
        here, below = (ladders[model.name][levels[model.name] + step] for step in (0, 1))
        return (here.depth, below.size - here.size, model.request.port)

    # Mostly it is all or nothing: whether even the smallest fit tells at once that nothing does.
    if pack(lowest) is None:
        return None
    placed = pack(levels)
    while placed is None:
        steps = [model for model in models if levels[model.name] + 1 < len(ladders[model.name])]
        levels[min(steps, key=step_key).name] += 1
        placed = pack(levels)
    for model in sorted(models, key=lambda model: (-ladders[model.name][levels[model.name]].depth, model.request.port)):
        while levels[model.name]:
            better = levels | {model.name: levels[model.name] - 1}
            higher = pack(better)
            if higher is None:
                break
            levels, placed = better, higher
    return {model.name: ladders[model.name][levels[model.name]].variant for model in models}, placed


def _pins_exist(models: Sequence[Model], host: Host, problems: Problems) -> bool:
    known = [gpu.id for gpu in host.gpus]
    sound = True
    for model in models:
        missing = [gpu_id for gpu_id in model.pin.gpu_ids or () if gpu_id not in known]
        if missing:
            problems.add(
                f"{model.path('pin.gpu_ids')} names GPU {missing[0]}, which {host.name} does not have: choose from {known}.",
                repair=Change(model.override_path("pin.gpu_ids"), None),
            )
            sound = False
    return sound


def _parts(model: Model, variant: Variant, num_seqs: int, workers: int) -> tuple[int, int, int]:
    """Bytes of weights, KV cache and the rest on one GPU of ``workers``."""
    kv_cache = kv_pool_bytes(
        model.architecture,
        kv_cache_dtype=variant.kv_cache_dtype,
        context_tokens=model.request.context_tokens,
        in_flight_tokens=GPU_CONCURRENT_BATCHES * model.engine.max_num_batched_tokens,
        num_seqs=num_seqs,
        block_tokens=GPU_BLOCK_TOKENS,
    )
    activations = activation_bytes(model, num_seqs=num_seqs)
    # Key and value heads that cannot be split are repeated on every worker.
    split = min(workers, model.architecture.kv_heads)
    return -(-variant.weights_bytes // workers), -(-kv_cache // split), GPU_BASE_BYTES + activations


def _bytes_on_one(model: Model, variant: Variant) -> int:
    """Give what a variant takes of one GPU that has it alone, with its headroom."""
    return sum(_parts(model, variant, model.min_num_seqs, 1)) * (100 + GPU_HEADROOM_PERCENT) // 100


def _thousandths(model: Model, variant: Variant, num_seqs: int, workers: int, gpu: Gpu) -> int:
    """Utilization of one GPU, rounded up."""
    needed = sum(_parts(model, variant, num_seqs, workers)) * (100 + GPU_HEADROOM_PERCENT)
    return -(-needed * _THOUSAND // (100 * gpu.memory_bytes))


def _groups(host: Host) -> list[tuple[Gpu, ...]]:
    """Group equal GPUs, the largest first: a tensor-parallel service needs equal ones."""
    sizes = sorted({gpu.memory_bytes for gpu in host.gpus}, reverse=True)
    return [tuple(gpu for gpu in host.gpus if gpu.memory_bytes == size) for size in sizes]


def _splits(model: Model, workers: int) -> bool:
    """Tell whether a model can be split over workers.

    Source: vllm/model_executor/models/{mixtral,llama}.py: the heads are dealt out evenly; heads of keys and values too,
    or each is repeated on the same number of workers; vllm/model_executor/layers/linear.py: so is the feed-forward layer.
    """
    architecture = model.architecture
    keys = architecture.kv_heads
    even = keys % workers == 0 if keys >= workers else workers % keys == 0
    return even and architecture.heads % workers == 0 and architecture.intermediate % workers == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """A number of GPUs of one size that a service could take."""

    workers: int
    gpu_ids: tuple[int, ...]
    """All GPUs of that size that it may use."""
    thousandths: int
    weight: int
    """What it takes of all GPUs together, in thousandths of a byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A service to be packed, in a variant."""

    model: Model
    options: tuple[_Option, ...]
    """The fewest GPUs first, the largest GPUs first."""
    size: int
    """Bytes on each GPU of the first option."""
    fewest: tuple[_Option, ...]
    """The options with the fewest GPUs."""

    def least(self, *, widest: bool) -> int:
        """Give the least that it takes of all GPUs together, in thousandths of a byte."""
        return min(option.weight for option in (self.options if widest else self.fewest))


def _job(model: Model, variant: Variant, host: Host) -> _Job | None:
    """Look up on how many empty GPUs of which size a variant fits, or None where on none."""
    pinned = model.pin.gpu_ids
    options: list[_Option] = []
    for group in _groups(host):
        usable = tuple(gpu.id for gpu in group if pinned is None or gpu.id in pinned)
        for workers in range(1, len(usable) + 1) if pinned is None else [len(pinned)]:
            if workers > len(usable) or not _splits(model, workers):
                continue
            thousandths = _thousandths(model, variant, model.min_num_seqs, workers, group[0])
            if thousandths <= GPU_LIMIT_THOUSANDTHS:
                weight = workers * thousandths * group[0].memory_bytes
                options.append(_Option(workers=workers, gpu_ids=usable, thousandths=thousandths, weight=weight))
    if not options:
        return None
    options.sort(key=lambda option: option.workers)
    return _Job(
        model=model,
        options=tuple(options),
        size=sum(_parts(model, variant, model.min_num_seqs, options[0].workers)),
        fewest=tuple(option for option in options if option.workers == options[0].workers),
    )


def _pack(jobs: Sequence[_Job], host: Host, *, widest: bool) -> dict[str, _Placed] | None:
    """Place all services, or None where there is no way (or none was found in time)."""
    room = GPU_LIMIT_THOUSANDTHS * sum(gpu.memory_bytes for gpu in host.gpus)
    if sum(job.least(widest=widest) for job in jobs) > room:
        return None
    ordered = sorted(
        jobs,
        key=lambda job: (job.model.pin.gpu_ids is None, -job.options[0].workers, -job.size, job.model.request.port, job.model.name),
    )
    return _first_fit(ordered, host) or _Search(ordered, host, widest=widest).run()


def _first_fit(jobs: Sequence[_Job], host: Host) -> dict[str, _Placed] | None:
    """Place each service on the fewest GPUs that would do, the first ones that have room."""
    used = {gpu.id: 0 for gpu in host.gpus}
    placed: dict[str, _Placed] = {}
    for job in jobs:
        spot = next(_spots(job.fewest, used), None)
        if spot is None:
            return None
        placed[job.model.name] = spot
        for gpu_id in spot.gpu_ids:
            used[gpu_id] += spot.thousandths
    return placed


def _spots(options: Sequence[_Option], used: Mapping[int, int]) -> Iterator[_Placed]:
    """Give every place that a service can take; GPUs of one size in the same state count as one."""
    for option in options:
        roomy = [gpu_id for gpu_id in option.gpu_ids if used[gpu_id] + option.thousandths <= GPU_LIMIT_THOUSANDTHS]
        seen: set[tuple[int, ...]] = set()
        for gpu_ids in combinations(roomy, option.workers):
            state = tuple(sorted(used[gpu_id] for gpu_id in gpu_ids))
            if state not in seen:
                seen.add(state)
                yield _Placed(gpu_ids=gpu_ids, thousandths=option.thousandths)


class _Search:
    """Depth first over states that have not failed before."""

    def __init__(self, jobs: Sequence[_Job], host: Host, *, widest: bool) -> None:
        self.jobs = jobs
        self.options = [job.options if widest else job.fewest for job in jobs]
        self.sizes = {gpu.id: gpu.memory_bytes for gpu in host.gpus}
        self.used = {gpu.id: 0 for gpu in host.gpus}
        self.placed: dict[str, _Placed] = {}
        self.failed: set[tuple[int, tuple[int, ...]]] = set()
        # The least that the services from each step on take: where less is left on all GPUs, no way leads on.
        least = [job.least(widest=widest) for job in jobs]
        self.remaining = [sum(least[step:]) for step in range(len(jobs) + 1)]

    def run(self) -> dict[str, _Placed] | None:
        return dict(self.placed) if self._place(0, GPU_LIMIT_THOUSANDTHS * sum(self.sizes.values())) else None

    def _place(self, step: int, left: int) -> bool:
        if step == len(self.jobs):
            return True
        state = (step, tuple(self.used.values()))
        if self.remaining[step] > left or state in self.failed or len(self.failed) >= MAX_STATES:
            return False
        for spot in _spots(self.options[step], self.used):
            for gpu_id in spot.gpu_ids:
                self.used[gpu_id] += spot.thousandths
            self.placed[self.jobs[step].model.name] = spot
            if self._place(step + 1, left - spot.thousandths * sum(self.sizes[gpu_id] for gpu_id in spot.gpu_ids)):
                return True
            for gpu_id in spot.gpu_ids:
                self.used[gpu_id] -= spot.thousandths
        self.failed.add(state)
        return False


def _grow(models: Sequence[Model], chosen: Mapping[str, Variant], placed: Mapping[str, _Placed], host: Host) -> dict[str, GpuShare]:
    """Give what is left of each GPU to KV cache: one sequence each in turn, up to ``max_num_seqs``."""
    by_id = {gpu.id: gpu for gpu in host.gpus}
    seqs = {model.name: model.min_num_seqs for model in models}
    shares = {name: spot.thousandths for name, spot in placed.items()}
    used = {gpu_id: sum(shares[name] for name, spot in placed.items() if gpu_id in spot.gpu_ids) for gpu_id in by_id}
    growing = list(models)
    while growing:
        for model in list(growing):
            name, spot = model.name, placed[model.name]
            if seqs[name] >= model.max_num_seqs:
                growing.remove(model)
                continue
            wanted = _thousandths(model, chosen[name], seqs[name] + 1, len(spot.gpu_ids), by_id[spot.gpu_ids[0]])
            more = wanted - shares[name]
            if any(used[gpu_id] + more > GPU_LIMIT_THOUSANDTHS for gpu_id in spot.gpu_ids):
                growing.remove(model)
                continue
            seqs[name] += 1
            shares[name] = wanted
            for gpu_id in spot.gpu_ids:
                used[gpu_id] += more
    result: dict[str, GpuShare] = {}
    for model in models:
        spot, variant = placed[model.name], chosen[model.name]
        workers = len(spot.gpu_ids)
        weights, kv_cache, rest = _parts(model, variant, seqs[model.name], workers)
        each = by_id[spot.gpu_ids[0]].memory_bytes * shares[model.name] // _THOUSAND
        result[model.name] = GpuShare(
            variant=variant,
            gpu_ids=spot.gpu_ids,
            num_seqs=seqs[model.name],
            thousandths=shares[model.name],
            memory_bytes=each * workers,
            weights_bytes=weights * workers,
            kv_cache_bytes=kv_cache * workers,
            runtime_bytes=rest * workers,
        )
    return result
