"""From plain mappings to frozen inputs; every error is a sentence that names a path in the inventory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .id_lists import parse_ids
from .inputs import (
    Architecture,
    Device,
    Engine,
    GatewayRequest,
    Gpu,
    Host,
    Isa,
    Listener,
    Model,
    NumaNode,
    Pin,
    Policy,
    Request,
    Settings,
    Source,
    SourceType,
    Variant,
    WeightFormat,
)
from .reader import Reader, display
from .units import GIB, MIB, TIB, gib

if TYPE_CHECKING:
    from .catalogue import Catalogue
    from .problems import Problems

SETTINGS: Final = "citadel_plan_settings"
HOST_FACTS: Final = "citadel_host_facts"

NO_ISA: Final = "none"
MAX_PORT: Final = 65535
_FIRST_FREE_PORT: Final = 1024
"""Below it only root may listen, and none of our services runs as root."""
_MAX_MEMORY: Final = 64 * TIB
_MEMORY_TOLERANCE_PERCENT: Final = 1
"""The kernel counts the memory of the host and that of its nodes at different times."""
_MAX_STORAGE: Final = 1024 * TIB
_MAX_PARAMETERS: Final = 10**13
_MAX_CPUS: Final = 4096
_MAX_WEIGHT: Final = 10_000
_MAX_TASKS: Final = 4_194_304
_DEFAULT_TASKS_MAX: Final = 512
"""Three vLLM processes with their thread pools stay well below it; a fork bomb does not."""
_DEFAULT_IO_WEIGHT: Final = 100

_SERVICE_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
_SERVICE_NAME_RULE: Final = "cannot name a systemd instance and a folder: use lower-case letters, digits, dots and dashes, 63 at most"
_REVISION: Final = re.compile(r"[0-9a-f]{40}")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ABSOLUTE: Final = re.compile(r"/[^\0\n]*")
_MODES: Final = ("chat", "completion")
_KV_CACHE_DTYPES: Final = ("auto", "fp8")

OWNED_ARGUMENTS: Final = frozenset(
    {
        "--api-key",
        "--block-size",
        "--config",
        "--data-parallel-size",
        "--disable-log-stats",
        "--dtype",
        "--enforce-eager",
        "--gpu-memory-utilization",
        "--host",
        "--kv-cache-dtype",
        "--kv-cache-memory-bytes",
        "--max-model-len",
        "--max-num-batched-tokens",
        "--max-num-seqs",
        "--model",
        "--no-enforce-eager",
        "--num-gpu-blocks-override",
        "--pipeline-parallel-size",
        "--port",
        "--quantization",
        "--served-model-name",
        "--shutdown-timeout",
        "--tensor-parallel-size",
        "--uds",
    }
)
"""Options of vLLM that are rendered from the plan, or would make it untrue."""

_SHORT_ARGUMENTS: Final = {
    "-dp": "--data-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-q": "--quantization",
    "-tp": "--tensor-parallel-size",
}
_ARGUMENT: Final = re.compile(r"[^\s\"'\\$%]+")
"""systemd splits, unquotes and expands a command line; an argument without these characters reaches vLLM as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEntry:
    """An entry that was read before, and nothing was wrong."""

    entry: object
    overridden: frozenset[str]
    model: Model
    enabled: bool


def parse_models(catalogue: Catalogue, problems: Problems, known: dict[str, KnownEntry] | None = None) -> tuple[Model, ...]:
    """Read the merged catalogue.

    Args:
        catalogue: Merged entries.
        problems: Takes what is wrong.
        known: What was read of catalogues before this one: what is the same is not read again. Is kept up to date.

    Returns:
        The enabled models, ordered by API port and name whatever the order of the inventory's keys.

    """
    models: list[Model] = []
    overridden: dict[str, list[str]] = {name: [] for name in catalogue.entries}
    for path in catalogue.overridden:
        overridden[path[0]].append(".".join(path[1:]))
    for name in sorted(catalogue.entries):
        keys = frozenset(overridden[name])
        before = None if known is None else known.get(name)
        if before is not None and before.overridden == keys and before.entry == catalogue.entries[name]:
            if before.enabled:
                models.append(before.model)
            continue
        reader = Reader(catalogue.entries[name], (name,), catalogue.name, problems)
        if not reader.usable:
            continue
        if _SERVICE_NAME.fullmatch(name) is None:
            problems.add(f'{catalogue.name((name,))} has the name "{name}", which {_SERVICE_NAME_RULE}.')
        enabled = reader.flag("enabled", default=True)
        model = _parse_model(name, reader, keys, catalogue, problems)
        if known is not None and not problems:
            known[name] = KnownEntry(entry=catalogue.entries[name], overridden=keys, model=model, enabled=enabled)
        if enabled:
            models.append(model)
    if catalogue.entries and not models and not problems:
        problems.add("citadel_models has no enabled entry: leave enabled: true (or nothing) on at least one model.")
    return tuple(sorted(models, key=lambda model: (model.request.port, model.name)))


def _parse_model(name: str, reader: Reader, overridden: frozenset[str], catalogue: Catalogue, problems: Problems) -> Model:
    architecture = _parse_architecture(reader.child("architecture"))
    min_num_seqs = reader.integer("min_num_seqs", low=1, high=4096, default=1)
    max_num_seqs = reader.integer("max_num_seqs", low=1, high=4096)
    if reader.has("max_num_seqs") and max_num_seqs < min_num_seqs:
        reader.complain("max_num_seqs", f"is below min_num_seqs ({min_num_seqs}): raise it or lower min_num_seqs")
    request = _parse_request(reader.child("request"), architecture)
    engine = _parse_engine(reader.child("engine", required=False), max_num_seqs)
    variants = _parse_variants(reader, catalogue, name, problems)
    pin = _parse_pin(reader.child("pin", required=False), variants)
    modes = reader.texts("modes")
    for mode in modes:
        if mode not in _MODES:
            reader.complain("modes", f'holds "{mode}": use {" and ".join(_MODES)} only')
    model = Model(
        name=name,
        overridden=overridden,
        description=reader.text("description"),
        specialisation=reader.texts("specialisation"),
        modes=modes,
        architecture=architecture,
        request=request,
        min_num_seqs=min_num_seqs,
        max_num_seqs=max_num_seqs,
        pin=pin,
        engine=engine,
        variants=variants,
    )
    reader.finish()
    return model


def _parse_architecture(reader: Reader) -> Architecture:
    heads = reader.integer("heads", low=1, high=1024)
    kv_heads = reader.integer("kv_heads", low=1, high=1024)
    if reader.has("heads") and reader.has("kv_heads") and heads % kv_heads:
        reader.complain("kv_heads", f"does not divide heads ({heads}): take both from the model's config.json")
    experts = reader.integer("experts", low=0, high=1024, default=0)
    experts_per_token = reader.integer("experts_per_token", low=0, high=1024, default=0)
    if experts_per_token > experts or (experts > 1 and not experts_per_token):
        reader.complain("experts_per_token", f"is not between 1 and experts ({experts}), or 0 where there are none")
    architecture = Architecture(
        model_class=reader.text("class"),
        layers=reader.integer("layers", low=1, high=1024),
        hidden=reader.integer("hidden", low=1, high=2**20),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.integer("head_dim", low=1, high=4096),
        experts=experts,
        experts_per_token=experts_per_token,
        vocabulary=reader.integer("vocabulary", low=1, high=2**24),
        intermediate=reader.integer("intermediate", low=1, high=2**24),
        sliding_window_tokens=reader.optional_integer("sliding_window_tokens", low=1, high=2**24),
        native_context_tokens=reader.integer("native_context_tokens", low=1, high=2**24),
        linear_parameters=reader.integer("linear_parameters", low=1, high=_MAX_PARAMETERS),
        other_parameters=reader.integer("other_parameters", low=1, high=_MAX_PARAMETERS),
    )
    reader.finish()
    return architecture


def _parse_request(reader: Reader, architecture: Architecture) -> Request:
    native = architecture.native_context_tokens
    context_tokens = reader.integer("context_tokens", low=2, high=2**24)
    if reader.has("context_tokens") and 1 < native < context_tokens:
        reader.complain("context_tokens", f"is more than the model was made for: write {native} (native_context_tokens) or less")
    request = Request(
        port=reader.integer("port", low=_FIRST_FREE_PORT, high=MAX_PORT),
        memory_bytes=reader.size("memory", low=64 * MIB, high=_MAX_MEMORY),
        cpus=reader.integer("cpus", low=1, high=_MAX_CPUS),
        context_tokens=context_tokens,
        # A prompt has at least one token, so this is the longest answer that vLLM can give.
        max_output_tokens=reader.integer(
            "max_output_tokens",
            low=1,
            high=max(1, context_tokens - 1),
            default=max(1, context_tokens - 1),
            way_out="prompt and answer share context_tokens",
        ),
        storage_bytes=reader.size("storage", low=MIB, high=_MAX_STORAGE),
        target_latency_milliseconds=reader.integer("target_latency_milliseconds", low=1, high=3_600_000),
        cpu_quota_percent=reader.optional_integer("cpu_quota_percent", low=1, high=100 * _MAX_CPUS),
        cpu_weight=reader.optional_integer("cpu_weight", low=1, high=_MAX_WEIGHT),
        io_weight=reader.integer("io_weight", low=1, high=_MAX_WEIGHT, default=_DEFAULT_IO_WEIGHT),
        tasks_max=reader.integer("tasks_max", low=16, high=_MAX_TASKS, default=_DEFAULT_TASKS_MAX),
    )
    reader.finish()
    return request


def _parse_engine(reader: Reader, max_num_seqs: int) -> Engine:
    batched = reader.integer("max_num_batched_tokens", low=16, high=2**20, default=2048)
    if batched < max_num_seqs:
        reader.complain(
            "max_num_batched_tokens",
            f"is below max_num_seqs ({max_num_seqs}), which vLLM refuses: raise it or lower max_num_seqs",
        )
    extra_arguments = reader.texts("extra_arguments", default=())
    for argument in extra_arguments:
        owned = _owned_argument(argument)
        if owned is not None:
            reader.complain("extra_arguments", f"sets {owned}, which the plan decides: leave it out")
        if _ARGUMENT.fullmatch(argument) is None:
            reader.complain(
                "extra_arguments",
                f"holds {display(argument)}: a space, quote, backslash, $ or % would not reach vLLM as it is; write one argument per"
                " line, option and value as --option=value",
            )
    engine = Engine(
        max_num_batched_tokens=batched,
        prompt_logprobs=reader.optional_flag("prompt_logprobs") or False,
        enforce_eager=reader.optional_flag("enforce_eager"),
        load_timeout_seconds=reader.optional_integer("load_timeout_seconds", low=10, high=86_400),
        stall_timeout_seconds=reader.optional_integer("stall_timeout_seconds", low=10, high=86_400),
        extra_arguments=extra_arguments,
    )
    reader.finish()
    return engine


def _owned_argument(argument: str) -> str | None:
    """Find the option that an argument sets, if it is one of the plan's: vLLM also takes unique beginnings of names."""
    option = argument.split("=", 1)[0].replace("_", "-")
    if option in _SHORT_ARGUMENTS:
        return _SHORT_ARGUMENTS[option]
    if not option.startswith("--") or len(option) <= len("--"):
        return None
    return min((owned for owned in OWNED_ARGUMENTS if owned.startswith(option)), default=None)


def _parse_variants(parent: Reader, catalogue: Catalogue, name: str, problems: Problems) -> tuple[Variant, ...]:
    variants = parent.raw("variants")
    if not isinstance(variants, Mapping):
        return ()
    if not variants:
        problems.add(f"{parent.name('variants')} is empty: describe at least one variant, such as bf16.")
    found: list[Variant] = []
    for variant_name, data in variants.items():
        reader = Reader(data, (name, "variants", variant_name), catalogue.name, problems)
        found.append(
            Variant(
                name=reader.text("name"),
                weight_format=WeightFormat(reader.choice("weight_format", list(WeightFormat))),
                weights_bytes=reader.integer("weights_bytes", low=1, high=_MAX_MEMORY),
                source=_parse_source(reader.child("source")),
                quantization=reader.optional_text("quantization"),
                kv_cache_dtype=reader.choice("kv_cache_dtype", _KV_CACHE_DTYPES, default="auto"),
            )
        )
        reader.finish()
    return tuple(found)


def _parse_source(reader: Reader) -> Source:
    kind = SourceType(reader.choice("type", list(SourceType)))
    repository = reader.optional_text(
        "repository",
        pattern=_REPOSITORY,
        rule='is not a repository of the hub: write "owner/name"',
        required=kind is SourceType.HUB and reader.has("type"),
    )
    revision = reader.optional_text(
        "revision",
        pattern=_REVISION,
        rule="is not a commit: write its 40 hexadecimal digits, a branch or tag can move",
    )
    path = reader.optional_text(
        "path",
        pattern=_ABSOLUTE,
        rule="is not an absolute path: begin it with /",
        required=kind is not SourceType.HUB,
    )
    reader.finish()
    # An override that changes the type leaves the other type's values behind: they do not apply.
    hub = kind is SourceType.HUB
    return Source(
        type=kind,
        repository=repository if hub else None,
        revision=revision if hub else None,
        path=None if hub else path,
    )


def _parse_pin(reader: Reader, variants: tuple[Variant, ...]) -> Pin:
    names = [variant.name for variant in variants]
    variant = reader.choice("variant", names) if reader.has("variant") and names else None
    cpu_text = reader.optional_text("cpu_set")
    pin = Pin(
        variant=variant,
        memory_bytes=reader.optional_size("memory", low=64 * MIB, high=_MAX_MEMORY),
        cpu_ids=None if cpu_text is None else _ids(reader, "cpu_set", cpu_text),
        gpu_ids=_gpu_pin(reader),
    )
    reader.raw("variant", required=False)
    reader.finish()
    return pin


def _gpu_pin(reader: Reader) -> tuple[int, ...] | None:
    if not reader.has("gpu_ids"):
        reader.raw("gpu_ids", required=False)
        return None
    ids: list[int] = []
    for item in reader.items("gpu_ids"):
        if isinstance(item, bool) or not isinstance(item, int) or item < 0 or item in ids:
            reader.complain("gpu_ids", "is not a list of different GPU numbers such as [0, 1]")
            return None
        ids.append(item)
    return tuple(sorted(ids)) or None


def _ids(reader: Reader, key: str, value: object) -> tuple[int, ...]:
    """Read logical CPUs, either as "0-3,8" or as a list of numbers."""
    if isinstance(value, list | tuple):
        if all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value):
            return tuple(sorted(set(value)))
        reader.complain(key, "is not a list of CPU numbers")
        return ()
    if not isinstance(value, str):
        reader.complain(key, 'is not a list of ids such as "0-3,8"')
        return ()
    try:
        return parse_ids(value)
    except ValueError as error:
        reader.complain(key, str(error))
        return ()


def parse_settings(value: object, problems: Problems) -> Settings:
    """Read ``citadel_plan_settings``."""
    reader = Reader(value, (SETTINGS,), ".".join, problems)
    gateway = reader.child("gateway")
    device = reader.choice("device", ["auto", *Device], default="auto")
    settings = Settings(
        policy=Policy(reader.choice("policy", list(Policy), default=Policy.REBALANCE)),
        device=None if device == "auto" else Device(device),
        memory_reserve_bytes=reader.size("memory_reserve", low=0, high=_MAX_MEMORY),
        storage_reserve_bytes=reader.size("storage_reserve", low=0, high=_MAX_STORAGE),
        gateway=GatewayRequest(
            name=gateway.text("name", pattern=_SERVICE_NAME, rule=_SERVICE_NAME_RULE),
            port=gateway.integer("port", low=_FIRST_FREE_PORT, high=MAX_PORT),
            memory_bytes=gateway.size("memory", low=256 * MIB, high=_MAX_MEMORY),
            cpus=gateway.integer("cpus", low=1, high=_MAX_CPUS),
            storage_bytes=gateway.size("storage", low=MIB, high=_MAX_STORAGE),
            workers=gateway.optional_integer("workers", low=1, high=1024),
            cpu_quota_percent=gateway.optional_integer("cpu_quota_percent", low=1, high=100 * _MAX_CPUS),
            cpu_weight=gateway.optional_integer("cpu_weight", low=1, high=_MAX_WEIGHT),
            io_weight=gateway.integer("io_weight", low=1, high=_MAX_WEIGHT, default=_DEFAULT_IO_WEIGHT),
            tasks_max=gateway.integer("tasks_max", low=16, high=_MAX_TASKS, default=_DEFAULT_TASKS_MAX),
        ),
        prometheus_port=reader.integer("prometheus_port", low=_FIRST_FREE_PORT, high=MAX_PORT),
        ephemeral_ports=_parse_port_range(reader, "ephemeral_ports"),
    )
    gateway.finish()
    reader.finish()
    return settings


def _parse_port_range(reader: Reader, key: str) -> tuple[int, int]:
    text = reader.text(key)
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if match is None or not 0 < int(match[1]) <= int(match[2]) <= MAX_PORT:
        if text:
            reader.complain(key, 'is not a range of ports: write "32768-60999", as in net.ipv4.ip_local_port_range')
        return (1, 1)
    return (int(match[1]), int(match[2]))


def parse_host(name: str, value: object, problems: Problems) -> Host:
    """Read ``citadel_host_facts``, the same shape whether gathered or given."""
    reader = Reader(value, (HOST_FACTS,), ".".join, problems)
    memory_bytes = reader.integer("memory_bytes", low=256 * MIB, high=_MAX_MEMORY)
    cpus = reader.raw("cpus")
    cpu_ids = _ids(reader, "cpus", cpus) if reader.has("cpus") and cpus != [] else ()
    if reader.present("cpus") and cpus in (None, []):
        reader.complain("cpus", "holds no CPU: list the host's logical CPUs")
    if len(cpu_ids) > _MAX_CPUS:
        reader.complain("cpus", f"holds {len(cpu_ids)} CPUs, more than the {_MAX_CPUS} that are planned for")
    nodes = _parse_numa_nodes(reader, cpu_ids, memory_bytes, problems)
    host = Host(
        name=name,
        memory_bytes=memory_bytes,
        isa=_parse_isa(reader),
        numa_nodes=nodes,
        cores=_parse_cores(reader, cpu_ids),
        gpus=_parse_gpus(reader, problems),
        storage_free_bytes=reader.integer("storage_free_bytes", low=0, high=_MAX_STORAGE),
        listeners=_parse_listeners(reader, problems),
    )
    reader.finish()
    return host


def _parse_isa(reader: Reader) -> Isa | None:
    """Read the instruction set; a host with less than AVX2 says "none", and can still have GPUs."""
    word = reader.choice("isa", [*Isa, NO_ISA], default=NO_ISA)
    return None if word == NO_ISA else Isa(word)


def _parse_cores(reader: Reader, cpu_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Read the physical cores; a host that does not tell its siblings has one logical CPU per core."""
    siblings: list[tuple[int, ...]] = []
    for item in reader.items("thread_siblings", required=False):
        if not isinstance(item, str):
            reader.complain("thread_siblings", 'is not a list of texts such as ["0,24", "1,25"]')
            return tuple((cpu,) for cpu in cpu_ids)
        siblings.append(tuple(cpu for cpu in _ids(reader, "thread_siblings", item) if cpu in set(cpu_ids)))
    seen: set[int] = set()
    cores: list[tuple[int, ...]] = []
    for core in sorted({core for core in siblings if core}):
        if seen & set(core):
            reader.complain("thread_siblings", f"names CPU {min(seen & set(core))} in two cores")
            return tuple((cpu,) for cpu in cpu_ids)
        seen.update(core)
        cores.append(core)
    cores.extend((cpu,) for cpu in cpu_ids if cpu not in seen)
    return tuple(sorted(cores))


def _parse_numa_nodes(parent: Reader, cpu_ids: tuple[int, ...], memory_bytes: int, problems: Problems) -> tuple[NumaNode, ...]:
    nodes: list[NumaNode] = []
    owner: dict[int, int] = {}
    sound = True
    for position, item in enumerate(parent.items("numa_nodes", required=False)):
        reader = Reader(item, (HOST_FACTS, f"numa_nodes[{position}]"), ".".join, problems)
        node_id = reader.integer("id", low=0, high=4095)
        node_cpus = _node_cpus(reader)
        node_memory = reader.integer("memory_bytes", low=0, high=_MAX_MEMORY)
        reader.finish()
        for cpu in node_cpus:
            if owner.setdefault(cpu, node_id) != node_id:
                reader.complain("cpus", f"names CPU {cpu}, which node {owner[cpu]} has already: list each CPU in one node")
        if any(node.id == node_id for node in nodes):
            reader.complain("id", "is the id of another node already: number the nodes as the kernel does")
        sound = sound and reader.usable
        nodes.append(NumaNode(id=node_id, cpu_ids=tuple(cpu for cpu in node_cpus if cpu in set(cpu_ids)), memory_bytes=node_memory))
    if not nodes:
        return (NumaNode(id=0, cpu_ids=cpu_ids, memory_bytes=memory_bytes),)
    stray = sorted(set(cpu_ids) - set(owner))
    if stray and sound:
        problems.add(f"{HOST_FACTS}.numa_nodes has no node for CPU {stray[0]} of {HOST_FACTS}.cpus: list every CPU in one node.")
    together = sum(node.memory_bytes for node in nodes)
    if not problems and together > memory_bytes * (100 + _MEMORY_TOLERANCE_PERCENT) // 100:
        problems.add(
            f"{HOST_FACTS}.numa_nodes have {gib(together)} together, which is more than {HOST_FACTS}.memory_bytes ({gib(memory_bytes)}):"
            " take all of them from the same host."
        )
    return tuple(sorted(nodes, key=lambda node: node.id))


def _node_cpus(reader: Reader) -> tuple[int, ...]:
    """Read the CPUs of a node; the kernel's list is empty for a node of memory only."""
    value = reader.raw("cpus")
    return () if value in ("", []) or not reader.present("cpus") else _ids(reader, "cpus", value)


def _parse_gpus(parent: Reader, problems: Problems) -> tuple[Gpu, ...]:
    gpus: dict[int, Gpu] = {}
    for position, item in enumerate(parent.items("gpus", required=False)):
        reader = Reader(item, (HOST_FACTS, f"gpus[{position}]"), ".".join, problems)
        gpu = Gpu(
            id=reader.integer("id", low=0, high=1023),
            memory_bytes=reader.integer("memory_bytes", low=GIB, high=_MAX_MEMORY),
        )
        reader.finish()
        if gpu.id in gpus:
            reader.complain("id", "is the id of another GPU already")
        gpus[gpu.id] = gpu
    return tuple(gpus[key] for key in sorted(gpus))


def _unit(reader: Reader) -> str | None:
    """Read the unit of a listener, which is empty for a program that none holds."""
    value = reader.raw("unit", required=False)
    if value is not None and not isinstance(value, str):
        reader.complain("unit", "is not the name of a unit")
    return value if isinstance(value, str) and value else None


def _parse_listeners(parent: Reader, problems: Problems) -> tuple[Listener, ...]:
    listeners: list[Listener] = []
    for position, item in enumerate(parent.items("listening_ports", required=False)):
        reader = Reader(item, (HOST_FACTS, f"listening_ports[{position}]"), ".".join, problems)
        listeners.append(
            Listener(
                address=reader.text("address"),
                port=reader.integer("port", low=1, high=MAX_PORT),
                unit=_unit(reader),
            )
        )
        reader.finish()
    return tuple(sorted(listeners, key=lambda entry: (entry.port, entry.address, entry.unit or "")))
