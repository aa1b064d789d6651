"""Who gets which variant and how much memory: the rules of the plan.

1. Only variants that run on the host take part. 2. The first one, quality first, that fits its request at
``min_num_seqs`` is taken. 3. Where none fits, ``strict`` refuses; ``rebalance`` takes the one that lacks least and
grants what it lacks, from unreserved memory first, then from services with slack, largest first.
4. What each grant leaves goes to KV cache (:func:`citadel_plan.memory.spend`).

NUMA nodes are walls inside the host's memory. They do not change which variant is taken, only how far ``rebalance``
cuts a grant down, never below what the variant needs: so that more memory can never turn a plan into a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from .inputs import Model, Policy, Variant
from .problems import Kind
from .units import MIB, gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .problems import Problems

_STEPS: Final = 8
"""Between what a service needs and what it asks for, so many grants are tried before the walls."""


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
    homes: Mapping[str, int] | None
    """The NUMA node that holds each service's memory, where there are walls."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The memory of a host, in bytes."""

    capacity_bytes: int
    reserve_bytes: int
    gateway_bytes: int
    policy: Policy
    """What to do with a service that no variant fits."""
    requests_may_exceed: bool
    """Whether ``rebalance`` may cut requests down to the host: where weights and KV cache lie on GPUs, what a request
    has beyond the need of its processes is of no use."""

    @property
    def services_bytes(self) -> int:
        """What all services together may have, in whole MiB."""
        return (self.capacity_bytes - self.reserve_bytes - self.gateway_bytes) // MIB * MIB


class Walls(Protocol):
    """NUMA nodes, each with memory that no service of another one can use."""

    def room_bytes(self, node_id: int) -> int:
        """Give what services may have on a node."""

    def widest_bytes(self) -> int:
        """Give what one service may have at most."""

    def place(self, sizes: Mapping[str, int], *, sharing: bool) -> Mapping[str, int] | None:
        """Choose a node for each service of a size, or None where there is no way; ``sharing``: even at the cores' cost."""

    def explain(self, sizes: Mapping[str, int], keys: Mapping[str, str]) -> list[str]:
        """Say why there is no way, in sentences; ``keys`` names what in the inventory asks for each size."""


def decide(
    models: Sequence[Model],
    candidates: Mapping[str, Sequence[Candidate]],
    budget: Budget,
    *,
    walls: Walls | None,
    problems: Problems,
) -> Grants | None:
    """Choose variants and grants.

    Args:
        models: The services, ordered by API port.
        candidates: Per service the variants that run, by preference, at least one each.
        budget: What there is, and the policy.
        walls: The NUMA nodes, where there are several.
        problems: Takes every violated constraint.

    Returns:
        The grants, whose sum is within the budget, or None where something was noted.

    """
    return _Decision(models, candidates, budget, walls=walls, problems=problems).grants()


def asked_bytes(model: Model) -> int:
    """Give what a service starts with: its pin, or else its request."""
    return model.request.memory_bytes if model.pin.memory_bytes is None else model.pin.memory_bytes


def memory_key(model: Model) -> str:
    """Name what decides :func:`asked_bytes`, inside the model's entry."""
    return "request.memory" if model.pin.memory_bytes is None else "pin.memory"


def choose(candidates: Sequence[Candidate], granted_bytes: int) -> Candidate:
    """Take the first variant that fits; where none does, the one that lacks least, the better one on a tie."""
    for candidate in candidates:
        if candidate.needed_bytes <= granted_bytes:
            return candidate
    return min(candidates, key=lambda candidate: candidate.needed_bytes)


class _Decision:
    """One run of the rules over one host."""

    def __init__(
        self,
        models: Sequence[Model],
        candidates: Mapping[str, Sequence[Candidate]],
        budget: Budget,
        *,
        walls: Walls | None,
        problems: Problems,
    ) -> None:
        self.models = models
        self.candidates = candidates
        self.budget = budget
        self.walls = walls
        self.problems = problems
        self.warnings: list[str] = []
        self.asked = {model.name: asked_bytes(model) for model in models}
        self.chosen = {model.name: choose(candidates[model.name], self.asked[model.name]) for model in models}
        self.needed = {name: candidate.needed_bytes for name, candidate in self.chosen.items()}
        self.short = [model for model in models if self.needed[model.name] > self.asked[model.name]]
        self.lacking = sum(self.needed[model.name] - self.asked[model.name] for model in self.short)
        self.fixed = {model.name for model in models if budget.policy is Policy.STRICT or model.pin.memory_bytes is not None}
        """Services that get exactly what is asked for them, or nothing."""
        self.floors = {name: self.asked[name] if name in self.fixed else self.needed[name] for name in self.asked}
        self.granted = {name: max(self.asked[name], self.needed[name]) for name in self.asked}

    def grants(self) -> Grants | None:
        fits = self._requests_fit()
        refused = [model for model in self.short if model.name in self.fixed]
        for model in refused:
            self.problems.add(self._shortfall(model), kind=Kind.SIZE)
        fits = fits and self._rebalancing_fits()
        homes = self._homes() if fits else None
        if refused or not fits or (self.walls is not None and homes is None):
            return None
        self._cut_to_nodes(homes)
        self._cut_to_host()
        self._say_what_was_granted()
        return Grants(
            by_name={
                name: Grant(variant=pick.variant, granted_bytes=self.granted[name], needed_bytes=pick.needed_bytes)
                for name, pick in self.chosen.items()
            },
            homes=homes,
            warnings=tuple(self.warnings),
        )

    def _list(self, sizes: Mapping[str, int]) -> str:
        return ", ".join(f"{model.name} {gib(sizes[model.name])}" for model in self.models)

    def _requests_fit(self) -> bool:
        """Note a sum of requests beyond the host."""
        budget = self.budget
        if self.budget.services_bytes < 0:
            self.problems.add(
                f"citadel_plan_settings.memory_reserve is {gib(budget.reserve_bytes)} and citadel_plan_settings.gateway.memory"
                f" {gib(budget.gateway_bytes)}, which is more than the {gib(budget.capacity_bytes)} of the host: lower them."
            )
            return False
        binding = self.floors if budget.requests_may_exceed else self.asked
        over = sum(binding.values()) - budget.services_bytes
        if over <= 0:
            return True
        least = {name: min(entry.needed_bytes for entry in entries) for name, entries in self.candidates.items()}
        what = "requests add" if binding is self.asked else "least that the processes need and what is pinned add"
        self.problems.add(
            f"The {what} up to {gib(sum(binding.values()) + budget.gateway_bytes)} ({self._list(binding)}, gateway"
            f" {gib(budget.gateway_bytes)}) and the host has {gib(budget.capacity_bytes - budget.reserve_bytes)} for them"
            f" ({gib(budget.capacity_bytes)} less citadel_plan_settings.memory_reserve of {gib(budget.reserve_bytes)}),"
            f" {gib(over)} too little: lower requests, or set enabled: false on a model (the least that they can run in is"
            f" {self._list(least)}).",
            kind=Kind.SIZE,
        )
        return False

    def _needs(self, model: Model) -> str:
        return ", ".join(f"{entry.variant.name} needs {gib(entry.needed_bytes)}" for entry in self.candidates[model.name])

    def _shortfall(self, model: Model) -> str:
        nearest = self.chosen[model.name]
        asked = self.asked[model.name]
        return (
            f"{model.path(memory_key(model))} is {gib(asked)}, which fits no variant that runs here ({self._needs(model)};"
            f" {nearest.variant.name} lacks {gib(nearest.needed_bytes - asked)}): raise it, or lower context_tokens"
            f" ({model.request.context_tokens}) or min_num_seqs ({model.min_num_seqs})."
        )

    def _rebalancing_fits(self) -> bool:
        """Note services that are short of more than all others can spare."""
        over = sum(self.floors.values()) - self.budget.services_bytes
        if over <= 0:
            return True
        for model in self.short:
            self.problems.add(self._shortfall(model), kind=Kind.SIZE)
        unreserved = self.budget.services_bytes - sum(self.asked.values())
        slack = self.lacking - over - unreserved
        self.problems.add(
            f"Rebalancing would need {gib(self.lacking)} more, and {gib(unreserved)} of the host are unreserved and"
            f" {gib(slack)} of the other services' requests are slack, {gib(over)} too little: take smaller variants or shorter"
            " contexts, set enabled: false on a model, or take a host with more memory.",
            kind=Kind.SIZE,
        )
        return False

    def _homes(self) -> Mapping[str, int] | None:
        """Choose nodes: such that the grants come as near to the requests as the walls let them."""
        if self.walls is None:
            return None
        sharing = False
        homes = self.walls.place(self.floors, sharing=sharing)
        if homes is None:
            sharing = True
            homes = self.walls.place(self.floors, sharing=sharing)
        if homes is None:
            keys = {model.name: model.path(memory_key(model)) for model in self.models if model.name in self.fixed}
            for sentence in self.walls.explain(self.floors, keys):
                self.problems.add(sentence, kind=Kind.SIZE)
            return None
        widest = self.walls.widest_bytes()
        wished = {name: max(self.floors[name], min(granted, widest)) for name, granted in self.granted.items()}
        low, high, step = 0, _STEPS, _STEPS
        while low < high:
            sizes = {name: floor + (wished[name] - floor) * step // _STEPS // MIB * MIB for name, floor in self.floors.items()}
            better = self.walls.place(sizes, sharing=sharing)
            if better is None:
                high = step - 1
            else:
                homes, low = better, step
            step = (low + high + 1) // 2
        return homes

    def _slack(self, name: str) -> int:
        return self.granted[name] - self.floors[name]

    def _take(self, over: int, donors: Sequence[str]) -> None:
        """Lower grants by ``over`` together, the one with the largest slack first."""
        for name in sorted(donors, key=lambda donor: (-self._slack(donor), donor)):
            part = max(0, min(over, self._slack(name)))
            self.granted[name] -= part
            over -= part

    def _cut_to_nodes(self, homes: Mapping[str, int] | None) -> None:
        if self.walls is None or homes is None:
            return
        for node_id in sorted(set(homes.values())):
            here = [name for name, home in homes.items() if home == node_id]
            room = self.walls.room_bytes(node_id) // MIB * MIB
            before = {name: self.granted[name] for name in here}
            self._take(sum(before.values()) - room, here)
            for name in sorted(here):
                if self.granted[name] < before[name]:
                    self.warnings.append(
                        f"{name}: requested {gib(before[name])} and granted {gib(self.granted[name])}, as NUMA node {node_id} has"
                        f" {gib(room)} for services"
                    )

    def _cut_to_host(self) -> None:
        before = dict(self.granted)
        whom = "to others" if sum(self.asked.values()) <= self.budget.services_bytes else "back, as the host does not have them"
        self._take(sum(before.values()) - self.budget.services_bytes, list(before))
        for model in self.models:
            part = before[model.name] - self.granted[model.name]
            if part:
                self.warnings.append(f"{model.name}: gives {gib(part)} of its {gib(before[model.name])} {whom}")

    def _say_what_was_granted(self) -> None:
        for model in reversed(self.short):
            self.warnings.insert(
                0,
                f"{model.name}: requested {gib(self.asked[model.name])}, which fits no variant that runs here ({self._needs(model)});"
                f" granted {gib(self.granted[model.name])}",
            )
