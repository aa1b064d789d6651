"""Who gets which variant and how much memory: the rules of the plan.

1. Only variants that run on the host take part. 2. The first one, quality first, that fits its request at
``min_num_seqs`` is taken. 3. Where none fits, ``strict`` refuses; ``rebalance`` takes the one that lacks least and
grants what it lacks, from unreserved memory first, then from services with slack, largest first.
4. What each grant leaves goes to KV cache (:func:`citadel_plan.memory.spend`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .inputs import Model, Policy, Variant
from .problems import Problems
from .units import MIB, gib, round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A variant that runs on the host, and what it needs to hold ``min_num_seqs`` sequences."""

    variant: Variant
    needed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The decision for one service."""

    variant: Variant
    granted_bytes: int
    needed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """The decisions for a host."""

    by_name: Mapping[str, Grant]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory of a host, in bytes."""

    capacity_bytes: int
    reserve_bytes: int
    gateway_bytes: int
    service_ceiling_bytes: int
    """The most that one service can have: its NUMA node's memory."""

    @property
    def services_bytes(self) -> int:
        """What all services together may have."""
        return self.capacity_bytes - self.reserve_bytes - self.gateway_bytes


def decide(
    models: Sequence[Model],
    candidates: Mapping[str, Sequence[Candidate]],
    budget: Budget,
    policy: Policy,
    problems: Problems,
) -> Grants | None:
    """Choose variants and grants.

    Args:
        models: The services, ordered by API port.
        candidates: Per service the variants that run, by preference, at least one each.
        budget: What there is.
        policy: What to do with a service that no variant fits.
        problems: Takes every violated constraint.

    Returns:
        The grants, whose sum is within the budget, or None where something was noted.
    """
    asked = {model.name: _asked_bytes(model) for model in models}
    fits = _check_sum(models, asked, candidates, budget, problems)
    base, warnings = _under_ceiling(models, asked, budget, policy, problems)
    chosen = {model.name: _choose(candidates[model.name], base[model.name]) for model in models}
    short = [model for model in models if chosen[model.name].needed_bytes > base[model.name]]
    stuck = [model for model in short if policy is Policy.STRICT or model.pin.memory_bytes is not None]
    for model in stuck:
        problems.add(_shortfall(model, candidates[model.name], base[model.name]))
    for model in models:
        needed = chosen[model.name].needed_bytes
        if needed > budget.service_ceiling_bytes:
            fits = False
            problems.add(
                f"{model.path} needs {gib(needed)} as {chosen[model.name].variant.name} and a NUMA node of this host"
                f" has {gib(budget.service_ceiling_bytes)} for it: lower context_tokens or min_num_seqs, or add a"
                " smaller variant."
            )
    if not fits or stuck:
        return None
    return _rebalance(models, chosen, candidates, base, short, budget, warnings, problems)


def _asked_bytes(model: Model) -> int:
    return model.request.memory_bytes if model.pin.memory_bytes is None else model.pin.memory_bytes


def _check_sum(
    models: Sequence[Model],
    asked: Mapping[str, int],
    candidates: Mapping[str, Sequence[Candidate]],
    budget: Budget,
    problems: Problems,
) -> bool:
    """Note a sum of requests beyond the host, with the least that each service could do with."""
    total = sum(asked.values()) + budget.gateway_bytes
    usable = budget.capacity_bytes - budget.reserve_bytes
    if total <= usable:
        return True
    requests = ", ".join(f"{model.name} {gib(asked[model.name])}" for model in models)
    least = {name: min(entry.needed_bytes for entry in entries) for name, entries in candidates.items()}
    least_total = sum(least.values()) + budget.gateway_bytes
    if least_total <= usable:
        largest = max(models, key=lambda model: (asked[model.name] - least[model.name], -model.request.port))
        spare = asked[largest.name] - least[largest.name]
        if spare >= total - usable:
            lower = (asked[largest.name] - (total - usable)) // MIB * MIB
            way_out = (
                f"lower {largest.path}.request.memory to {gib(lower)} or less (it can run in {gib(least[largest.name])})"
            )
        else:
            parts = ", ".join(f"{model.name} {gib(least[model.name])}" for model in models)
            way_out = f"lower the requests; the least they can run in is {parts}"
    else:
        parts = ", ".join(f"{model.name} {gib(least[model.name])}" for model in models)
        way_out = (
            f"even the least that they can run in ({parts}) is {gib(least_total)} with the gateway: set enabled: false"
            " on a model, or take a host with more memory"
        )
    problems.add(
        f"The requests add up to {gib(total)} ({requests}, gateway {gib(budget.gateway_bytes)}) and the host has"
        f" {gib(usable)} for them ({gib(budget.capacity_bytes)} less citadel_plan_settings.memory_reserve of"
        f" {gib(budget.reserve_bytes)}), {gib(total - usable)} too little: {way_out}."
    )
    return False


def _under_ceiling(
    models: Sequence[Model], asked: Mapping[str, int], budget: Budget, policy: Policy, problems: Problems
) -> tuple[dict[str, int], list[str]]:
    """Cut requests down to what one NUMA node can hold; a pin or ``strict`` refuses instead."""
    base = dict(asked)
    warnings: list[str] = []
    ceiling = budget.service_ceiling_bytes // MIB * MIB
    for model in models:
        if asked[model.name] <= ceiling:
            continue
        base[model.name] = ceiling
        if policy is Policy.STRICT or model.pin.memory_bytes is not None:
            key = "request.memory" if model.pin.memory_bytes is None else "pin.memory"
            problems.add(
                f"{model.path}.{key} is {gib(asked[model.name])}, which is more than the {gib(ceiling)} that a NUMA"
                f" node has for a service, and vLLM keeps a model on one node: lower it to {gib(ceiling)}."
            )
        else:
            warnings.append(
                f"{model.name}: requested {gib(asked[model.name])}, one NUMA node has {gib(ceiling)} for it"
            )
    return base, warnings


def _choose(candidates: Sequence[Candidate], granted_bytes: int) -> Candidate:
    """Take the first variant that fits; where none does, the one that lacks least, the better one on a tie."""
    for candidate in candidates:
        if candidate.needed_bytes <= granted_bytes:
            return candidate
    return min(candidates, key=lambda candidate: candidate.needed_bytes)


def _needs(candidates: Sequence[Candidate]) -> str:
    return ", ".join(f"{entry.variant.name} needs {gib(entry.needed_bytes)}" for entry in candidates)


def _shortfall(model: Model, candidates: Sequence[Candidate], granted_bytes: int) -> str:
    nearest = min(candidates, key=lambda candidate: candidate.needed_bytes)
    key = "request.memory" if model.pin.memory_bytes is None else "pin.memory"
    enough = round_up(nearest.needed_bytes, MIB) // MIB
    return (
        f"{model.path}.{key} is {gib(granted_bytes)}, which fits no variant that runs here ({_needs(candidates)}):"
        f' raise it to "{enough}MiB" for {nearest.variant.name}, or lower context_tokens ({model.request.context_tokens})'
        f" or min_num_seqs ({model.min_num_seqs})."
    )


def _rebalance(
    models: Sequence[Model],
    chosen: Mapping[str, Candidate],
    candidates: Mapping[str, Sequence[Candidate]],
    base: Mapping[str, int],
    short: Sequence[Model],
    budget: Budget,
    warnings: list[str],
    problems: Problems,
) -> Grants | None:
    granted = dict(base)
    unreserved = max(0, budget.services_bytes - sum(base.values())) // MIB * MIB
    donors = {
        model.name: base[model.name] - chosen[model.name].needed_bytes
        for model in models
        if model not in short and model.pin.memory_bytes is None
    }
    lacking = sum(chosen[model.name].needed_bytes - base[model.name] for model in short)
    available = unreserved + sum(donors.values())
    if lacking > available:
        for model in short:
            problems.add(_shortfall(model, candidates[model.name], base[model.name]))
        problems.add(
            f"citadel_plan_policy is rebalance, and {gib(lacking)} are lacking: {gib(unreserved)} of the host are"
            f" unreserved and the other services can spare {gib(sum(donors.values()))}: lower a request, or take a host"
            " with more memory."
        )
        return None
    given: dict[str, int] = {}
    for model in short:
        missing = chosen[model.name].needed_bytes - granted[model.name]
        part = min(unreserved, missing)
        unreserved -= part
        missing -= part
        granted[model.name] += part
        for donor in sorted(donors, key=lambda name: (-donors[name], name)):
            part = min(donors[donor], missing)
            if part <= 0:
                continue
            donors[donor] -= part
            missing -= part
            granted[donor] -= part
            granted[model.name] += part
            given[donor] = given.get(donor, 0) + part
        warnings.append(
            f"{model.name}: requested {gib(base[model.name])}, which fits no variant that runs here"
            f" ({_needs(candidates[model.name])}); granted {gib(granted[model.name])}"
        )
    warnings.extend(f"{model.name}: gives {gib(given[model.name])} to others" for model in models if model.name in given)
    return Grants(
        by_name={
            model.name: Grant(
                variant=chosen[model.name].variant,
                granted_bytes=granted[model.name],
                needed_bytes=chosen[model.name].needed_bytes,
            )
            for model in models
        },
        warnings=tuple(warnings),
    )
