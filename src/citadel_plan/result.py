"""The plan: the shape of build/plan/HOST.json, a public interface, and its plain form."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .inputs import Source
    from .ports import Edge

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of a service on its GPUs, all of them together, in bytes."""

    memory_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int
    headroom_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePlan:
    """One model service.

    ``memory_max_bytes = weights_bytes + kv_cache_bytes + runtime_bytes + headroom_bytes`` exactly, all in the memory
    of the host. On CUDA weights and KV cache are on the GPUs: they stand in ``gpu`` and are 0 here.
    """

    name: str
    unit: str
    description: str
    specialisation: tuple[str, ...]
    modes: tuple[str, ...]
    target_latency_milliseconds: int
    variant: str
    source: Source
    expected_weights_bytes: int
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    block_tokens: int
    api_port: int
    metrics_port: int
    state_port: int
    upstream_port: int
    context_tokens: int
    max_output_tokens: int
    max_num_seqs: int
    max_waiting: int
    max_num_batched_tokens: int
    prompt_logprobs: bool
    enforce_eager: bool
    tensor_parallel_size: int
    gpu_ids: tuple[int, ...]
    gpu_memory_utilization: float | None
    gpu: GpuMemory | None
    load_timeout_seconds: int
    stall_timeout_seconds: int
    extra_arguments: tuple[str, ...]
    memory_requested_bytes: int
    memory_max_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    runtime_bytes: int
    headroom_bytes: int
    cpus_requested: int
    cpu_set: str
    cpus_exclusive: bool
    cpu_quota_percent: int | None
    cpu_weight: int
    numa_nodes: tuple[int, ...]
    omp_threads_bind: str | None
    """The CPUs of the threads that compute; vLLM's name of it."""
    omp_num_threads: int | None
    omp_places: str | None
    """Where those CPUs are shared: the threads are kept to all of them together instead of each to its own."""
    tasks_max: int
    io_weight: int
    storage_requested_bytes: int
    storage_needed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    """The gateway."""

    name: str
    unit: str
    port: int
    workers: int
    worker_memory_max_bytes: int
    memory_requested_bytes: int
    memory_max_bytes: int
    cpus_requested: int
    cpu_set: str
    cpus_exclusive: bool
    cpu_quota_percent: int | None
    cpu_weight: int
    tasks_max: int
    io_weight: int
    storage_requested_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePlan:
    """The slice that holds all services and the gateway."""

    memory_max_bytes: int
    tasks_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """Monitoring."""

    prometheus_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the host; CPUs are physical cores."""

    memory_capacity_bytes: int
    memory_reserved_bytes: int
    memory_requested_bytes: int
    memory_max_bytes: int
    memory_free_bytes: int
    cpus_available: int
    cpus_requested: int
    storage_reserved_bytes: int
    storage_requested_bytes: int
    storage_needed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of one host."""

    schema_version: int
    host: str
    device: str
    isa: str | None
    policy: str
    services: tuple[ServicePlan, ...]
    gateway: GatewayPlan
    edge: Edge
    monitoring: Monitoring
    slice: SlicePlan
    totals: Totals
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Give the plan as plain dict, list, str, int, float, bool and None."""
        return {field.name: to_plain(getattr(self, field.name)) for field in fields(self)}


def to_plain(value: object) -> object:
    """Turn frozen dataclasses, tuples and enumerations into plain types."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value
