"""The one entrance: from an inventory and a host's facts to a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .admission import max_waiting
from .catalogue import OVERRIDES, merge_catalogue
from .cpus import CpuPlan, CpuShare, Dealer, check_quota, cpu_weight, gateway_cpu_weight, omp_places, prepare_cpus, quota_percent
from .decide import Budget, Candidate, Grant, Grants, asked_bytes, decide
from .gateway import gateway_workers, worker_memory_max_bytes
from .gpus import GPU_BLOCK_TOKENS, GpuShare, host_bytes, plan_gpus
from .id_lists import format_ids
from .inputs import Device, Host, Isa, Model, Policy, Settings, Variant
from .memory import (
    CPU_BLOCK_TOKENS,
    HEADROOM_PERCENT,
    Memory,
    memory_needed,
    spend,
    weights_bytes_by_formula,
)
from .parse import HOST_FACTS, SETTINGS, KnownEntry, parse_host, parse_models, parse_settings
from .ports import METRICS_OFFSET, STATE_OFFSET, UPSTREAM_OFFSET, check_ports, edge_ports
from .problems import Change, PlanError, Problems
from .result import (
    SCHEMA_VERSION,
    GatewayPlan,
    GpuMemory,
    Monitoring,
    Plan,
    ServicePlan,
    SlicePlan,
    Totals,
)
from .storage import Storage, check_storage, storage_needed
from .suggestions import Changes, Outcome, Outlook, suggest, with_changes
from .timeouts import load_timeout_seconds, stall_timeout_seconds
from .units import MIB, gib, round_up
from .variants import why_not

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNIT: Final = "citadel-llm@{name}.service"
DTYPE: Final = "bfloat16"

_FORMULA_TOLERANCE_PERCENT: Final = 10
_THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sized:
    """A service with everything but its CPUs decided."""

    model: Model
    variant: Variant
    num_seqs: int
    memory: Memory
    gpu: GpuShare | None
    home: int | None
    """The NUMA node that holds its memory, where there is a choice."""


def plan(models: object, *, overrides: object, host: str, host_facts: object, settings: object) -> Plan:
    """Compute the plan of one host.

    Args:
        models: ``citadel_models``: the catalogue by service name.
        overrides: ``citadel_model_overrides``: same shape, merged deeply over it; may be None.
        host: The host's name in the inventory.
        host_facts: ``citadel_host_facts``: memory, CPUs, nodes, instruction set, GPUs, disk, listeners.
        settings: ``citadel_plan_settings``: policy, device, reserves, gateway, ports.

    Returns:
        The plan. The same input gives the same plan, whatever the order of its keys.

    Raises:
        PlanError: With a sentence for everything that is wrong: in the input first; once that is sound, every
            violated constraint of ports, memory, CPUs and disk, and the nearest plans that fit.

    """
    # Half of the time of a refusal went into reading again what its trials leave alone.
    known: dict[str, KnownEntry] = {}
    known_host: Host | None = None

    def attempt(changes: Changes) -> Outcome:
        nonlocal known_host
        problems = Problems(host)
        changed = overrides if not changes else with_changes(overrides, OVERRIDES, changes)
        catalogue = merge_catalogue(models, changed, problems)
        services = parse_models(catalogue, problems, known)
        parsed_settings = parse_settings(with_changes(settings, SETTINGS, changes) if changes else settings, problems)
        parsed_host = known_host or parse_host(host, host_facts, problems)
        if problems:
            return Outcome(plan=None, problems=problems, outlooks=(), policy=None)
        known_host = parsed_host
        return _Planner(services, parsed_host, parsed_settings, problems).run()

    outcome = attempt(())
    if outcome.plan is None:
        raise PlanError(host, outcome.problems.sentences, suggest(outcome, attempt))
    return outcome.plan


class _Planner:
    """Holds what every step needs; each step notes problems and the plan is made only when there are none."""

    def __init__(self, models: Sequence[Model], host: Host, settings: Settings, problems: Problems) -> None:
        self.models = models
        self.host = host
        self.settings = settings
        self.problems = problems
        self.warnings: list[str] = []
        self.outlooks: tuple[Outlook, ...] = ()
        automatic = Device.CUDA if host.gpus else Device.CPU
        self.device = automatic if settings.device is None else settings.device

    def run(self) -> Outcome:
        return Outcome(plan=self.plan(), problems=self.problems, outlooks=self.outlooks, policy=self.settings.policy)

    def plan(self) -> Plan | None:
        check_ports(self.models, self.host, self.settings, self.problems)
        self._check_names()
        self._check_quotas()
        self._check_device()
        dealer = prepare_cpus(self.models, self.settings.gateway, self.host, self.settings.memory_reserve_bytes, self.problems)
        sized = self._size(dealer)
        cpus = None if dealer is None or sized is None else self._cpus(dealer, sized)
        self._check_storage(sized)
        if sized is not None:
            self._compare_with_formula(sized)
        workers = gateway_workers(
            self.settings.gateway,
            len(cpus.gateway.omp_cpu_ids) if cpus is not None else self.settings.gateway.cpus,
            self.problems,
        )
        if self.problems:
            return None
        if sized is None or cpus is None:
            raise AssertionError("a step failed without saying why")
        return self._assemble(sized, cpus, workers)

    def _check_names(self) -> None:
        for model in self.models:
            if model.name == self.settings.gateway.name:
                self.problems.add(f"{model.path()} has the name of the gateway ({SETTINGS}.gateway.name): rename one of them.")

    def _check_quotas(self) -> None:
        key = "request.cpu_quota_percent"
        for model in self.models:
            check_quota(model.path(key), model.override_path(key), model.request.cpu_quota_percent, self.host, self.problems)
        path = (SETTINGS, "gateway", "cpu_quota_percent")
        check_quota(".".join(path), path, self.settings.gateway.cpu_quota_percent, self.host, self.problems)

    def _check_device(self) -> None:
        if self.device is Device.CUDA and not self.host.gpus:
            self.problems.add(
                f"{SETTINGS}.device is cuda and {HOST_FACTS}.gpus is empty: set citadel_device to auto or cpu, or"
                " install the driver so that the GPUs are seen.",
                repair=Change((SETTINGS, "device"), Device.CPU.value),
            )
        if self.device is Device.CPU and self.host.isa is None:
            self.problems.add(
                f"{HOST_FACTS}.isa is none and the models run on the CPU, for which vLLM needs AVX2 at least: choose a"
                " host with avx2, avx512 or amx, or one with GPUs."
            )
        if self.device is Device.CPU:
            for model in self.models:
                if model.pin.gpu_ids is not None:
                    self.problems.add(
                        f"{model.path('pin.gpu_ids')} is set and the models run on the CPU: leave it out, or set citadel_device to cuda.",
                        repair=Change(model.override_path("pin.gpu_ids"), None),
                    )

    def _size(self, dealer: Dealer | None) -> list[_Sized] | None:
        """Choose variants and memory."""
        if self.device is Device.CUDA:
            return self._size_cuda() if self.host.gpus else None
        return None if self.host.isa is None else self._size_cpu(self.host.isa, dealer)

    def _eligible(self) -> dict[str, list[Variant]] | None:
        """Find the variants that run here, the pinned one only where one is pinned."""
        eligible: dict[str, list[Variant]] = {}
        complete = True
        for model in self.models:
            offered = [variant for variant in model.variants if model.pin.variant is None or variant.name == model.pin.variant]
            reasons = {variant.name: why_not(variant, model.architecture, self.device, self.host.isa) for variant in offered}
            eligible[model.name] = [variant for variant in offered if reasons[variant.name] is None]
            if not eligible[model.name]:
                complete = False
                why = ", ".join(f"{name} ({reason})" for name, reason in reasons.items())
                cure = (
                    "add a bf16 variant, which runs everywhere"
                    if model.pin.variant is None
                    else f"leave {model.path('pin.variant')} out, or pin another"
                )
                self.problems.add(
                    f"{model.path()} has no variant that runs on {self.host.name}: {why}: {cure}.",
                    repair=Change(model.override_path("enabled"), False)
                    if model.pin.variant is None
                    else Change(model.override_path("pin.variant"), None),
                )
        return eligible if complete else None

    def _budget(self) -> Budget:
        return Budget(
            capacity_bytes=self.host.memory_bytes,
            reserve_bytes=self.settings.memory_reserve_bytes,
            gateway_bytes=self.settings.gateway.memory_bytes,
            policy=self.settings.policy,
            requests_may_exceed=self.device is Device.CUDA and self.settings.policy is Policy.REBALANCE,
        )

    def _decide(self, candidates: Mapping[str, Sequence[Candidate]], walls: Dealer | None) -> Grants | None:
        grants = decide(self.models, candidates, self._budget(), walls=walls, problems=self.problems)
        if grants is not None:
            self.warnings.extend(grants.warnings)
        return grants

    def _size_cpu(self, isa: Isa, dealer: Dealer | None) -> list[_Sized] | None:
        variants = self._eligible()
        if variants is None:
            return None
        candidates = {
            model.name: tuple(
                Candidate(variant=variant, needed_bytes=memory_needed(model, variant, model.min_num_seqs, isa).total_bytes)
                for variant in variants[model.name]
            )
            for model in self.models
        }
        self.outlooks = tuple(Outlook(model=model, candidates=candidates[model.name]) for model in self.models)
        grants = self._decide(candidates, dealer if dealer is not None and dealer.has_walls else None)
        if grants is None:
            return None
        sized: list[_Sized] = []
        for model in self.models:
            grant = grants.by_name[model.name]
            num_seqs, memory = spend(model, grant.variant, grant.granted_bytes, isa)
            home = None if grants.homes is None else grants.homes[model.name]
            sized.append(_Sized(model=model, variant=grant.variant, num_seqs=num_seqs, memory=memory, gpu=None, home=home))
        self._explain_quality(grants, candidates)
        return sized

    def _explain_quality(self, grants: Grants, candidates: Mapping[str, Sequence[Candidate]]) -> None:
        """Say which better variant would run here, had the service asked for more memory."""
        for model in self.models:
            best, grant, asked = candidates[model.name][0], grants.by_name[model.name], asked_bytes(model)
            if grant.variant != best.variant and grant.needed_bytes <= asked:
                self.warnings.append(
                    f"{model.name}: runs as {grant.variant.name}, since {best.variant.name} needs"
                    f" {gib(best.needed_bytes)} and {gib(asked)} are requested"
                )

    def _size_cuda(self) -> list[_Sized] | None:
        variants = self._eligible()
        if variants is None:
            return None
        self._look_ahead(variants, {model.name: _host_memory(1) for model in self.models})
        shares = plan_gpus(self.models, variants, self.host, self._storage(0).usable_bytes, self.problems)
        if shares is None:
            return None
        needed = {name: _host_memory(len(share.gpu_ids)) for name, share in shares.items()}
        candidates = {name: (Candidate(variant=share.variant, needed_bytes=needed[name].total_bytes),) for name, share in shares.items()}
        self._look_ahead(variants, needed)
        # vLLM's worker binds its memory to a node on the CPU only: here nodes are no walls.
        grants = self._decide(candidates, None)
        if grants is None:
            return None
        for model in self.models:
            best, chosen = variants[model.name][0], shares[model.name].variant
            if chosen != best:
                self.warnings.append(f"{model.name}: runs as {chosen.name}, since {best.name} does not fit the GPUs beside the others")
        return [
            _Sized(
                model=model,
                variant=shares[model.name].variant,
                num_seqs=shares[model.name].num_seqs,
                memory=_with_grant(needed[model.name], grants.by_name[model.name]),
                gpu=shares[model.name],
                home=None,
            )
            for model in self.models
        ]

    def _look_ahead(self, variants: Mapping[str, Sequence[Variant]], needed: Mapping[str, Memory]) -> None:
        """Note what suggestions are made from: on CUDA every variant of a service needs the same of the host."""
        self.outlooks = tuple(
            Outlook(
                model=model,
                candidates=tuple(
                    Candidate(variant=variant, needed_bytes=needed[model.name].total_bytes) for variant in variants[model.name]
                ),
            )
            for model in self.models
        )

    def _cpus(self, dealer: Dealer, sized: Sequence[_Sized]) -> CpuPlan:
        homes = {entry.model.name: entry.home for entry in sized if entry.home is not None}
        cpus = dealer.deal(homes or None)
        self.warnings.extend(cpus.warnings)
        return cpus

    def _storage(self, needed_bytes: int) -> Storage:
        requested = sum(model.request.storage_bytes for model in self.models)
        return Storage(
            requested_bytes=requested + self.settings.gateway.storage_bytes,
            needed_bytes=needed_bytes,
            free_bytes=self.host.storage_free_bytes,
            reserved_bytes=self.settings.storage_reserve_bytes,
        )

    def _check_storage(self, sized: Sequence[_Sized] | None) -> None:
        """Compare what was chosen with the disk, or where nothing could be chosen, the least that could have been."""
        if sized is None:
            parts = [
                (outlook.model.name, min(storage_needed(candidate.variant) for candidate in outlook.candidates))
                for outlook in self.outlooks
            ]
        else:
            parts = [(entry.model.name, storage_needed(entry.variant)) for entry in sized]
        self.warnings.extend(check_storage(self._storage(sum(size for _, size in parts)), parts, self.problems))
        needed = dict(parts)
        for model in self.models:
            if needed.get(model.name, 0) > model.request.storage_bytes:
                self.warnings.append(
                    f"storage: {model.name} needs {gib(needed[model.name])} for its weights, which is more than the"
                    f" {gib(model.request.storage_bytes)} of {model.path('request.storage')}"
                )

    def _compare_with_formula(self, sized: Sequence[_Sized]) -> None:
        """Warn of a catalogue whose bytes and parameters contradict each other."""
        for entry in sized:
            expected = weights_bytes_by_formula(entry.model.architecture, entry.variant.weight_format)
            stated = entry.variant.weights_bytes
            if abs(stated - expected) > expected * _FORMULA_TOLERANCE_PERCENT // 100 + MIB:
                self.warnings.append(
                    f"{entry.model.name}: {entry.model.path(f'variants.{entry.variant.name}.weights_bytes')} is"
                    f" {gib(stated)} and its parameters make {gib(expected)} in {entry.variant.weight_format}:"
                    " one of them is wrong"
                )

    def _assemble(self, sized: Sequence[_Sized], cpus: CpuPlan, workers: int) -> Plan:
        services = tuple(self._service(entry, cpus.services[entry.model.name]) for entry in sized)
        gateway = self._gateway(cpus.gateway, workers)
        memory_max = sum(service.memory_max_bytes for service in services) + gateway.memory_max_bytes
        storage = self._storage(sum(storage_needed(entry.variant) for entry in sized))
        settings, host = self.settings, self.host
        return Plan(
            schema_version=SCHEMA_VERSION,
            host=host.name,
            device=self.device.value,
            isa=None if host.isa is None else host.isa.value,
            policy=settings.policy.value,
            services=services,
            gateway=gateway,
            edge=edge_ports(self.models, settings),
            monitoring=Monitoring(prometheus_port=settings.prometheus_port),
            slice=SlicePlan(
                memory_max_bytes=memory_max,
                tasks_max=sum(service.tasks_max for service in services) + gateway.tasks_max,
            ),
            totals=Totals(
                memory_capacity_bytes=host.memory_bytes,
                memory_reserved_bytes=settings.memory_reserve_bytes,
                memory_requested_bytes=sum(service.memory_requested_bytes for service in services) + gateway.memory_requested_bytes,
                memory_max_bytes=memory_max,
                memory_free_bytes=host.memory_bytes - settings.memory_reserve_bytes - memory_max,
                cpus_available=len(host.cores),
                cpus_requested=sum(service.cpus_requested for service in services) + gateway.cpus_requested,
                storage_reserved_bytes=storage.reserved_bytes,
                storage_requested_bytes=storage.requested_bytes,
                storage_needed_bytes=storage.needed_bytes,
            ),
            warnings=tuple(self.warnings),
        )

    def _service(self, entry: _Sized, share: CpuShare) -> ServicePlan:
        model, variant, memory, gpu = entry.model, entry.variant, entry.memory, entry.gpu
        request, engine = model.request, model.engine
        on_cpu = gpu is None
        return ServicePlan(
            name=model.name,
            unit=UNIT.format(name=model.name),
            description=model.description,
            specialisation=model.specialisation,
            modes=model.modes,
            target_latency_milliseconds=request.target_latency_milliseconds,
            variant=variant.name,
            source=variant.source,
            expected_weights_bytes=variant.weights_bytes,
            dtype=DTYPE,
            quantization=variant.quantization,
            kv_cache_dtype=variant.kv_cache_dtype,
            block_tokens=CPU_BLOCK_TOKENS if on_cpu else GPU_BLOCK_TOKENS,
            api_port=request.port,
            metrics_port=request.port + METRICS_OFFSET,
            state_port=request.port + STATE_OFFSET,
            upstream_port=request.port + UPSTREAM_OFFSET,
            context_tokens=request.context_tokens,
            max_output_tokens=request.max_output_tokens,
            max_num_seqs=entry.num_seqs,
            max_waiting=max_waiting(entry.num_seqs),
            max_num_batched_tokens=engine.max_num_batched_tokens,
            prompt_logprobs=engine.prompt_logprobs,
            enforce_eager=on_cpu if engine.enforce_eager is None else engine.enforce_eager,
            tensor_parallel_size=1 if gpu is None else len(gpu.gpu_ids),
            gpu_ids=() if gpu is None else gpu.gpu_ids,
            gpu_memory_utilization=None if gpu is None else gpu.thousandths / _THOUSAND,
            gpu=None if gpu is None else _gpu_memory(gpu),
            load_timeout_seconds=engine.load_timeout_seconds or load_timeout_seconds(variant.weights_bytes),
            stall_timeout_seconds=engine.stall_timeout_seconds
            or stall_timeout_seconds(
                model.architecture,
                max_num_batched_tokens=engine.max_num_batched_tokens,
                context_tokens=request.context_tokens,
                isa=self.host.isa if on_cpu else None,
                cores=len(share.omp_cpu_ids),
            ),
            extra_arguments=engine.extra_arguments,
            memory_requested_bytes=request.memory_bytes,
            memory_max_bytes=memory.total_bytes,
            weights_bytes=memory.weights_bytes,
            kv_cache_bytes=memory.kv_cache_bytes,
            runtime_bytes=memory.runtime_bytes,
            headroom_bytes=memory.headroom_bytes,
            cpus_requested=request.cpus,
            cpu_set=format_ids(share.cpu_ids),
            cpus_exclusive=share.exclusive,
            cpu_quota_percent=quota_percent(share, request.cpu_quota_percent),
            cpu_weight=cpu_weight(request.cpus, request.cpu_weight),
            numa_nodes=share.numa_nodes,
            omp_threads_bind=format_ids(share.omp_cpu_ids) if on_cpu else None,
            omp_num_threads=len(share.omp_cpu_ids) if on_cpu else None,
            omp_places=omp_places(share) if on_cpu else None,
            tasks_max=request.tasks_max,
            io_weight=request.io_weight,
            storage_requested_bytes=request.storage_bytes,
            storage_needed_bytes=storage_needed(variant),
        )

    def _gateway(self, share: CpuShare, workers: int) -> GatewayPlan:
        gateway = self.settings.gateway
        return GatewayPlan(
            name=gateway.name,
            unit=UNIT.format(name=gateway.name),
            port=gateway.port,
            workers=workers,
            worker_memory_max_bytes=worker_memory_max_bytes(gateway, workers),
            memory_requested_bytes=gateway.memory_bytes,
            memory_max_bytes=gateway.memory_bytes,
            cpus_requested=gateway.cpus,
            cpu_set=format_ids(share.cpu_ids),
            cpus_exclusive=share.exclusive,
            cpu_quota_percent=quota_percent(share, gateway.cpu_quota_percent),
            cpu_weight=gateway_cpu_weight(share, gateway.cpus, gateway.cpu_weight),
            tasks_max=gateway.tasks_max,
            io_weight=gateway.io_weight,
            storage_requested_bytes=gateway.storage_bytes,
        )


def _host_memory(workers: int) -> Memory:
    """Host memory of a CUDA service: weights and KV cache are on the GPUs."""
    runtime = host_bytes(workers)
    headroom = round_up(runtime * (100 + HEADROOM_PERCENT) // 100, MIB) - runtime
    return Memory(weights_bytes=0, kv_cache_bytes=0, runtime_bytes=runtime, headroom_bytes=headroom)


def _with_grant(needed: Memory, grant: Grant) -> Memory:
    return Memory(
        weights_bytes=needed.weights_bytes,
        kv_cache_bytes=needed.kv_cache_bytes,
        runtime_bytes=needed.runtime_bytes,
        headroom_bytes=needed.headroom_bytes + grant.granted_bytes - needed.total_bytes,
    )


def _gpu_memory(share: GpuShare) -> GpuMemory:
    used = share.weights_bytes + share.kv_cache_bytes + share.runtime_bytes
    return GpuMemory(
        memory_bytes=share.memory_bytes,
        weights_bytes=share.weights_bytes,
        kv_cache_bytes=share.kv_cache_bytes,
        runtime_bytes=share.runtime_bytes,
        headroom_bytes=share.memory_bytes - used,
    )
