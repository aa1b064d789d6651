"""Which service runs on which GPUs.

GPUs are bins, services are packed first-fit by decreasing size. Where the best variants of all do not fit together,
quality goes down evenly, the service whose variant is nearest to the best first, the largest saving first; what then is
left over lifts services again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .memory import activation_bytes, kv_pool_bytes
from .units import GIB, MIB, gib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    models: Sequence[Model], variants: Mapping[str, Sequence[Variant]], host: Host, problems: Problems
) -> dict[str, GpuShare] | None:
    """Pack all services.

    Args:
        models: The services, ordered by API port.
        variants: Per service the variants that may run, by preference, at least one each.
        host: Its GPUs.
        problems: Takes what is wrong.

    Returns:
        Variant, GPUs and sequences per service, or None where they do not fit.

    """
    if not _pins_exist(models, host, problems):
        return None
    able = {model.name: [variant for variant in variants[model.name] if _sizes(model, variant, host)] for model in models}
    for model in models:
        if not able[model.name]:
            smallest = min(variants[model.name], key=lambda variant: variant.weights_bytes)
            needed = sum(_parts(model, smallest, model.min_num_seqs, 1))
            problems.add(
                f"{model.path()} fits no GPU of {host.name}: {smallest.name} needs {gib(needed)} on one GPU, and its"
                f" {model.architecture.heads} heads cannot be split over enough equal ones: add a smaller variant, or"
                " lower context_tokens or min_num_seqs."
            )
    if not all(able.values()):
        return None
    levels = _levels(models, able, variants, host)
    if levels is not None:
        chosen = {model.name: able[model.name][levels[model.name]] for model in models}
        placed = _pack(models, chosen, host)
        if placed is not None:
            return _grow(models, chosen, placed, host)
    chosen = {model.name: able[model.name][-1] for model in models}
    sizes = ", ".join(f"{model.name} {gib(sum(_parts(model, chosen[model.name], model.min_num_seqs, 1)))}" for model in models)
    gpus = ", ".join(f"GPU {gpu.id} {gib(gpu.memory_bytes)}" for gpu in host.gpus)
    problems.add(
        f"The services do not fit the GPUs of {host.name} together, even in their smallest variants: {sizes}; there are"
        f" {gpus}, of which {GPU_LIMIT_THOUSANDTHS / 10:.0f} % may be used. Set enabled: false on a model, or lower"
        " context_tokens or min_num_seqs."
    )
    return None


def _levels(
    models: Sequence[Model], able: Mapping[str, Sequence[Variant]], variants: Mapping[str, Sequence[Variant]], host: Host
) -> dict[str, int] | None:
    """Choose a place in each list of variants so that all services fit together, or None where none does.

    First down, evenly; then each service up again as far as the rest allows, the one furthest down first.
    """
    levels = {model.name: 0 for model in models}

    def fits(tried: Mapping[str, int]) -> bool:
        return _pack(models, {model.name: able[model.name][tried[model.name]] for model in models}, host) is not None

    def depth(model: Model) -> int:
        return variants[model.name].index(able[model.name][levels[model.name]])

    def step_key(model: Model) -> tuple[int, int, int]:
        here, below = (able[model.name][levels[model.name] + step].weights_bytes for step in (0, 1))
        return (depth(model), below - here, model.request.port)

    while not fits(levels):
        steps = [model for model in models if levels[model.name] + 1 < len(able[model.name])]
        if not steps:
            return None
        levels[min(steps, key=step_key).name] += 1
    for model in sorted(models, key=lambda model: (-depth(model), model.request.port)):
        while levels[model.name] and fits(levels | {model.name: levels[model.name] - 1}):
            levels[model.name] -= 1
    return levels


def _pins_exist(models: Sequence[Model], host: Host, problems: Problems) -> bool:
    known = [gpu.id for gpu in host.gpus]
    sound = True
    for model in models:
        missing = [gpu_id for gpu_id in model.pin.gpu_ids or () if gpu_id not in known]
        if missing:
            problems.add(f"{model.path('pin.gpu_ids')} names GPU {missing[0]}, which {host.name} does not have: choose from {known}.")
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
    activations = activation_bytes(model.architecture, max_num_batched_tokens=model.engine.max_num_batched_tokens, num_seqs=num_seqs)
    # Key and value heads that cannot be split are repeated on every worker.
    split = min(workers, model.architecture.kv_heads)
    return -(-variant.weights_bytes // workers), -(-kv_cache // split), GPU_BASE_BYTES + activations


def _thousandths(model: Model, variant: Variant, num_seqs: int, workers: int, gpu: Gpu) -> int:
    """Utilization of one GPU, rounded up."""
    needed = sum(_parts(model, variant, num_seqs, workers)) * (100 + GPU_HEADROOM_PERCENT)
    return -(-needed * _THOUSAND // (100 * gpu.memory_bytes))


def _groups(host: Host) -> list[tuple[Gpu, ...]]:
    """Group equal GPUs, the largest first: a tensor-parallel service needs equal ones."""
    sizes = sorted({gpu.memory_bytes for gpu in host.gpus}, reverse=True)
    return [tuple(gpu for gpu in host.gpus if gpu.memory_bytes == size) for size in sizes]


def _sizes(model: Model, variant: Variant, host: Host) -> list[int]:
    """Numbers of workers with which a variant fits empty GPUs, smallest first."""
    if model.pin.gpu_ids is not None:
        pinned = [gpu for gpu in host.gpus if gpu.id in model.pin.gpu_ids]
        options = [(len(pinned), pinned[0])] if len({gpu.memory_bytes for gpu in pinned}) == 1 else []
    else:
        options = [(count, group[0]) for group in _groups(host) for count in range(1, len(group) + 1)]
    fitting = {
        count
        for count, gpu in options
        if model.architecture.heads % count == 0
        and count & (count - 1) == 0
        and _thousandths(model, variant, model.min_num_seqs, count, gpu) <= GPU_LIMIT_THOUSANDTHS
    }
    return sorted(fitting)


def _pack(models: Sequence[Model], chosen: Mapping[str, Variant], host: Host) -> dict[str, _Placed] | None:
    used = {gpu.id: 0 for gpu in host.gpus}
    workers = {model.name: _sizes(model, chosen[model.name], host)[0] for model in models}

    def order(model: Model) -> tuple[bool, int, int, int]:
        size = sum(_parts(model, chosen[model.name], model.min_num_seqs, workers[model.name]))
        return (model.pin.gpu_ids is None, -workers[model.name], -size, model.request.port)

    placed: dict[str, _Placed] = {}
    for model in sorted(models, key=order):
        spot = _spot(model, chosen[model.name], workers[model.name], used, host)
        if spot is None:
            return None
        placed[model.name] = spot
        for gpu_id in spot.gpu_ids:
            used[gpu_id] += spot.thousandths
    return placed


def _spot(model: Model, variant: Variant, workers: int, used: Mapping[int, int], host: Host) -> _Placed | None:
    for group in _groups(host):
        thousandths = _thousandths(model, variant, model.min_num_seqs, workers, group[0])
        roomy = [
            gpu.id
            for gpu in group
            if used[gpu.id] + thousandths <= GPU_LIMIT_THOUSANDTHS and (model.pin.gpu_ids is None or gpu.id in model.pin.gpu_ids)
        ]
        if len(roomy) >= workers:
            return _Placed(gpu_ids=tuple(roomy[:workers]), thousandths=thousandths)
    return None


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
