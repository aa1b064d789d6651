"""What a plan is made from: the catalogue, the host and the settings, checked and frozen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Device(StrEnum):
    """What the models run on."""

    CPU = "cpu"
    CUDA = "cuda"


class Isa(StrEnum):
    """The widest x86 instruction set that vLLM's CPU backend finds, each including the ones before it."""

    AVX2 = "avx2"
    AVX512 = "avx512"
    AMX = "amx"


class Policy(StrEnum):
    """What to do when no variant of a model fits what the operator asked for it."""

    REBALANCE = "rebalance"
    STRICT = "strict"


class WeightFormat(StrEnum):
    """How the linear layers are stored."""

    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"


class SourceType(StrEnum):
    """Where weights come from."""

    HUB = "hub"
    CONTROLLER_FOLDER = "controller_folder"
    HOST_FOLDER = "host_folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Dimensions of a model, as in its ``config.json``.

    ``linear_parameters`` counts the linear layers inside the decoder blocks (the ones a quantization touches),
    ``other_parameters`` everything else: embeddings, output head, norms, expert routers.
    """

    model_class: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    experts_per_token: int
    vocabulary: int
    intermediate: int
    sliding_window_tokens: int | None
    native_context_tokens: int
    linear_parameters: int
    other_parameters: int

    @property
    def is_mixture_of_experts(self) -> bool:
        """Tell whether tokens are routed to experts."""
        return self.experts > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights of a variant come from; what does not apply is None."""

    type: SourceType
    repository: str | None
    revision: str | None
    path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to store a model: the same model in another number format."""

    name: str
    weight_format: WeightFormat
    weights_bytes: int
    source: Source
    quantization: str | None
    kv_cache_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the operator asks for a service; None where the plan decides."""

    port: int
    memory_bytes: int
    cpus: int
    context_tokens: int
    max_output_tokens: int
    storage_bytes: int
    target_latency_milliseconds: int
    cpu_quota_percent: int | None
    cpu_weight: int | None
    io_weight: int
    tasks_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Decisions that the operator takes away from the plan: honoured or refused, never changed."""

    variant: str | None
    memory_bytes: int | None
    cpu_ids: tuple[int, ...] | None
    gpu_ids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Options of vLLM that change how much a service needs, and free ones behind them."""

    max_num_batched_tokens: int
    prompt_logprobs: bool
    """Whether clients may ask for the log probabilities of their prompts, which takes memory of its own."""
    enforce_eager: bool | None
    """None: on the CPU, where compiling costs a compiler and memory; not on CUDA, where graphs pay off."""
    load_timeout_seconds: int | None
    stall_timeout_seconds: int | None
    extra_arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One entry of the catalogue: a service."""

    name: str
    overridden: frozenset[str]
    """Keys such as ``request.memory`` that ``citadel_model_overrides`` sets; all others are the catalogue's."""
    description: str
    specialisation: tuple[str, ...]
    modes: tuple[str, ...]
    architecture: Architecture
    request: Request
    min_num_seqs: int
    max_num_seqs: int
    pin: Pin
    engine: Engine
    variants: tuple[Variant, ...]

    def path(self, key: str = "") -> str:
        """Name a key as the operator finds it: ``citadel_models.hermes-2.request.memory``, or under the overrides."""
        root = "citadel_model_overrides" if key in self.overridden else "citadel_models"
        return f"{root}.{self.name}.{key}" if key else f"{root}.{self.name}"

    def override_path(self, key: str) -> tuple[str, ...]:
        """Give the path with which an operator sets a key, whoever has set it so far."""
        return ("citadel_model_overrides", self.name, *key.split("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class NumaNode:
    """One NUMA node of the host."""

    id: int
    cpu_ids: tuple[int, ...]
    """Empty for a memory expander, whose memory no model service can use: vLLM binds to a node with CPUs."""
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of the host."""

    id: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A port that something on the host already listens on."""

    address: str
    port: int
    unit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host, as gathered or as given."""

    name: str
    memory_bytes: int
    isa: Isa | None
    numa_nodes: tuple[NumaNode, ...]
    cores: tuple[tuple[int, ...], ...]
    """Physical cores, each the ascending ids of its logical CPUs; ordered by first id."""
    gpus: tuple[Gpu, ...]
    storage_free_bytes: int
    listeners: tuple[Listener, ...]

    @property
    def cpu_ids(self) -> tuple[int, ...]:
        """All logical CPUs, ascending."""
        return tuple(sorted(cpu for core in self.cores for cpu in core))


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRequest:
    """What the operator asks for the gateway."""

    name: str
    port: int
    memory_bytes: int
    cpus: int
    storage_bytes: int
    workers: int | None
    cpu_quota_percent: int | None
    cpu_weight: int | None
    io_weight: int
    tasks_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for the whole host."""

    policy: Policy
    device: Device | None
    """None: CUDA where the host has GPUs, the CPU elsewhere."""
    memory_reserve_bytes: int
    storage_reserve_bytes: int
    gateway: GatewayRequest
    prometheus_port: int
    ephemeral_ports: tuple[int, int]
