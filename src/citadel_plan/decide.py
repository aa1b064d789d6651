"""Who gets which variant and how much memory: the rules of the plan.

1. Only variants that run on the host take part. 2. The first one, quality first, that fits its request at
``min_num_seqs`` is taken. 3. Where none fits, ``strict`` refuses; ``rebalance`` takes the one that lacks least and
grants what it lacks, from unreserved memory first, then from services with slack, largest first.
4. What each grant leaves goes to KV cache (:func:`citadel_plan.memory.spend`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .inputs import Model, Policy, Variant
from .units import MIB, gib

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .problems import Problems


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
    return _Decision(models, candidates, budget, policy, problems).grants()


def asked_bytes(model: Model) -> int:
    """Give what a service starts with: its pin, or else its request."""
    return model.request.memory_bytes if model.pin.memory_bytes is None else model.pin.memory_bytes


def _memory_key(model: Model) -> str:
    return model.path("request.memory" if model.pin.memory_bytes is None else "pin.memory")


class _Decision:
    """One run of the rules over one host."""

    def __init__(
        self,
        models: Sequence[Model],
        candidates: Mapping[str, Sequence[Candidate]],
        budget: Budget,
        policy: Policy,
        problems: Problems,
    ) -> None:
        self.models = models
        self.candidates = candidates
        self.budget = budget
        self.policy = policy
        self.problems = problems
        self.warnings: list[str] = []
        self.granted = {model.name: asked_bytes(model) for model in models}

    def grants(self) -> Grants | None:
        sound = self._requests_fit()
        sound &= self._fit_ceiling()
        chosen = {model.name: _choose(self.candidates[model.name], self.granted[model.name]) for model in self.models}
        short = [model for model in self.models if chosen[model.name].needed_bytes > self.granted[model.name]]
        for model in short:
            if self.policy is Policy.STRICT or model.pin.memory_bytes is not None:
                self.problems.add(self._shortfall(model))
                sound = False
        if not sound:
            return None
        if not self._rebalance(chosen, short):
            return None
        return Grants(
            by_name={
                name: Grant(variant=pick.variant, granted_bytes=self.granted[name], needed_bytes=pick.needed_bytes)
                for name, pick in chosen.items()
            },
            warnings=tuple(self.warnings),
        )

    def _least(self) -> dict[str, int]:
        """Find the least that each service could do with."""
        return {name: min(entry.needed_bytes for entry in entries) for name, entries in self.candidates.items()}

    def _requests_fit(self) -> bool:
        """Note a sum of requests beyond the host, with a way out that really fits."""
        budget, asked = self.budget, self.granted
        over = sum(asked.values()) - budget.services_bytes
        if over <= 0:
            return True
        least = self._least()
        requests = ", ".join(f"{model.name} {gib(asked[model.name])}" for model in self.models)
        parts = ", ".join(f"{model.name} {gib(least[model.name])}" for model in self.models)
        largest = max(self.models, key=lambda model: (asked[model.name] - least[model.name], -model.request.port))
        if sum(least.values()) > budget.services_bytes:
            way_out = (
                f"even the least that they can run in ({parts}) is {gib(sum(least.values()) + budget.gateway_bytes)} with the"
                " gateway; set enabled: false on a model, or take a host with more memory"
            )
        elif asked[largest.name] - least[largest.name] >= over:
            lower = (asked[largest.name] - over) // MIB
            way_out = f'lower {_memory_key(largest)} to "{lower}MiB" or less (it can run in {gib(least[largest.name])})'
        else:
            way_out = f"lower the requests; the least that they can run in is {parts}"
        self.problems.add(
            f"The requests add up to {gib(sum(asked.values()) + budget.gateway_bytes)} ({requests}, gateway"
            f" {gib(budget.gateway_bytes)}) and the host has {gib(budget.capacity_bytes - budget.reserve_bytes)} for them"
            f" ({gib(budget.capacity_bytes)} less citadel_plan_settings.memory_reserve of {gib(budget.reserve_bytes)}),"
            f" {gib(over)} too little: {way_out}."
        )
        return False

    def _fit_ceiling(self) -> bool:
        """Cut requests down to what one NUMA node can hold; a pin or ``strict`` refuses instead."""
        ceiling = self.budget.service_ceiling_bytes // MIB * MIB
        least = self._least()
        sound = True
        for model in self.models:
            asked = self.granted[model.name]
            if asked > ceiling:
                self.granted[model.name] = ceiling
                if self.policy is Policy.STRICT or model.pin.memory_bytes is not None:
                    sound = False
                    self.problems.add(
                        f"{_memory_key(model)} is {gib(asked)}, which is more than the {gib(ceiling)} that a NUMA node has for a"
                        f' service, and vLLM keeps a model on one node: lower it to "{ceiling // MIB}MiB".'
                    )
                else:
                    self.warnings.append(f"{model.name}: requested {gib(asked)}, and the {gib(ceiling)} of a NUMA node are granted")
            if least[model.name] > ceiling:
                sound = False
                self.problems.add(
                    f"{model.path()} needs {gib(least[model.name])} at least, and no NUMA node has more than {gib(ceiling)} for a"
                    " service: lower its context_tokens or min_num_seqs, or add a smaller variant."
                )
        return sound

    def _needs(self, model: Model) -> str:
        return ", ".join(f"{entry.variant.name} needs {gib(entry.needed_bytes)}" for entry in self.candidates[model.name])

    def _shortfall(self, model: Model) -> str:
        nearest = min(self.candidates[model.name], key=lambda candidate: candidate.needed_bytes)
        return (
            f"{_memory_key(model)} is {gib(self.granted[model.name])}, which fits no variant that runs here"
            f' ({self._needs(model)}): raise it to "{nearest.needed_bytes // MIB}MiB" for {nearest.variant.name}, or lower'
            f" context_tokens ({model.request.context_tokens}) or min_num_seqs ({model.min_num_seqs})."
        )

    def _rebalance(self, chosen: Mapping[str, Candidate], short: Sequence[Model]) -> bool:
        """Grant what the short services lack: from unreserved memory first, then from slack, largest first."""
        unreserved = max(0, self.budget.services_bytes - sum(self.granted.values())) // MIB * MIB
        slack = {
            model.name: self.granted[model.name] - chosen[model.name].needed_bytes
            for model in self.models
            if model not in short and model.pin.memory_bytes is None
        }
        lacking = sum(chosen[model.name].needed_bytes - self.granted[model.name] for model in short)
        if lacking > unreserved + sum(slack.values()):
            for model in short:
                self.problems.add(self._shortfall(model))
            self.problems.add(
                f"Rebalancing would need {gib(lacking)} more, and {gib(unreserved)} of the host are unreserved and"
                f" {gib(sum(slack.values()))} of the other services' requests are slack: lower a request, set enabled: false"
                " on a model, or take a host with more memory."
            )
            return False
        given: dict[str, int] = {}
        for model in short:
            asked = self.granted[model.name]
            missing = chosen[model.name].needed_bytes - asked
            part = min(unreserved, missing)
            unreserved -= part
            missing -= part
            for donor in sorted(slack, key=lambda name: (-slack[name], name)):
                part = min(slack[donor], missing)
                slack[donor] -= part
                missing -= part
                given[donor] = given.get(donor, 0) + part
            self.granted[model.name] = chosen[model.name].needed_bytes
            self.warnings.append(
                f"{model.name}: requested {gib(asked)}, which fits no variant that runs here ({self._needs(model)});"
                f" granted {gib(self.granted[model.name])}"
            )
        for name, part in sorted(given.items()):
            self.granted[name] -= part
            if part:
                self.warnings.append(f"{name}: gives {gib(part)} of its {gib(self.granted[name] + part)} to others")
        return True


def _choose(candidates: Sequence[Candidate], granted_bytes: int) -> Candidate:
    """Take the first variant that fits; where none does, the one that lacks least, the better one on a tie."""
    for candidate in candidates:
        if candidate.needed_bytes <= granted_bytes:
            return candidate
    return min(candidates, key=lambda candidate: candidate.needed_bytes)
