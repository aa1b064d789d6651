"""The nearest plans that would fit, each tried with the planner itself before it is named.

A family of changes (less memory, smaller variants, shorter contexts ...) is first applied to all services at once: where
that does not help, none of it does. Then to one service after another, the most promising first; where no single one is
enough, to all, and whatever is not needed is taken back. The number of trials is limited, so that an answer comes in
bounded time, and the same answer on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from .decide import Candidate, asked_bytes, choose, memory_key
from .inputs import Policy
from .problems import Change, Suggestion
from .units import GIB, MIB, TIB

if TYPE_CHECKING:
    from .inputs import Model
    from .problems import Problems
    from .result import Plan, ServicePlan

MAX_TRIALS: Final = 100
"""Runs of the planner for one refusal: less than half a second for 20 models, a few hundredths of one for four."""

_MAX_SERVICES_TRIED: Final = 2_000
"""Services times runs: with more than 20 models there are fewer runs, as each takes longer."""

MEMORY_STEP_BYTES: Final = 256 * MIB
CONTEXT_STEP_TOKENS: Final = 256
MIN_CONTEXT_TOKENS: Final = 1024
"""A context below that is suggested to nobody."""

_EVEN_STEPS: Final = 16

_MAX_REPAIRS: Final = 8
_MAX_OF_A_KIND: Final = 2
"""Suggestions that differ only in the service they change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a refused plan knew of a service."""

    model: Model
    candidates: tuple[Candidate, ...]
    """Variants that run on the host, by preference, with the memory of the host that each needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run of the planner."""

    plan: Plan | None
    problems: Problems
    outlooks: tuple[Outlook, ...]
    """Empty where the input was not sound enough to tell."""
    policy: Policy | None


Changes = tuple[Change, ...]
Attempt = Callable[[Changes], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """A change for one service, and values between it and what stands there now."""

    service: str
    changes: Changes
    saving: int
    """How much it promises, for the order of trials."""
    milder: Sequence[Changes] = ()
    """The same with values nearer to what stands there, the mildest last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """Moves of one kind."""

    title: str
    moves: tuple[_Move, ...]
    combine: bool = True


def suggest(refused: Outcome, attempt: Attempt) -> tuple[Suggestion, ...]:
    """Find changes of the inventory with which it plans.

    Args:
        refused: The refusal.
        attempt: Runs the planner with changes applied to its input.

    Returns:
        Suggestions, each of which has been tried; none where something is wrong that only the operator can mend.

    """
    return _Suggester(attempt).run(refused)


class _Suggester:
    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._trials = 0
        self._known: dict[Changes, Outcome] = {}
        self._base: Changes = ()
        self._limit = MAX_TRIALS

    def run(self, refused: Outcome) -> tuple[Suggestion, ...]:
        self._limit = min(MAX_TRIALS, _MAX_SERVICES_TRIED // max(1, len(refused.outlooks)))
        start = self._repaired(refused)
        if start is None:
            return ()
        if start.plan is not None:
            return (self._suggestion("mended", self._base, start.plan),)
        found = [suggestion for family in _families(start) for suggestion in self._try_family(family)]
        if not found:
            found = self._last_resort(start)
        return tuple(found)

    def _repaired(self, refused: Outcome) -> Outcome | None:
        """Apply the repairs of everything that is no matter of size; None where something has none."""
        outcome = refused
        for _ in range(_MAX_REPAIRS):
            repairs = outcome.problems.repairs()
            if repairs is None or (outcome.plan is None and not outcome.outlooks and not repairs):
                return None
            if not repairs:
                return outcome
            self._base = _joined(self._base, repairs)
            outcome = self._outcome(())
        return None

    def _outcome(self, changes: Changes) -> Outcome:
        whole = _joined(self._base, changes)
        if whole not in self._known:
            self._trials += 1
            self._known[whole] = self._attempt(whole)
        return self._known[whole]

    def _plan(self, changes: Changes) -> Plan | None:
        """Try changes; once the trials are used up nothing works any more."""
        if self._trials >= self._limit and _joined(self._base, changes) not in self._known:
            return None
        return self._outcome(changes).plan

    def _try_family(self, family: _Family) -> list[Suggestion]:
        moves = family.moves
        if not moves or (family.combine and self._plan(_joined(*(move.changes for move in moves))) is None):
            return []
        alone = islice((move for move in moves if self._plan(move.changes) is not None), _MAX_OF_A_KIND)
        found = [suggestion for move in alone for suggestion in self._finish(family.title, [move])]
        if found or not family.combine or len(moves) == 1:
            return found
        return self._finish(family.title, self._needed(list(moves)))

    def _needed(self, moves: list[_Move]) -> list[_Move]:
        """Take back whatever is not needed, the least promising first."""
        for move in reversed(list(moves)):
            rest = [other for other in moves if other is not move]
            if rest and self._plan(_joined(*(other.changes for other in rest))) is not None:
                moves = rest
        return moves

    def _finish(self, title: str, moves: list[_Move]) -> list[Suggestion]:
        """Make the changes as mild as they can be: first all alike, then one after another."""
        most = [len(move.milder) for move in moves]

        def alike(step: int) -> list[int]:
            return [size * step // _EVEN_STEPS for size in most]

        levels = alike(self._highest(_EVEN_STEPS, alike, moves))
        for place, spare in enumerate(size - level for size, level in zip(most, levels, strict=True)):
            levels = self._raised(levels, place, spare, moves)
        changes = self._at(moves, levels)
        planned = self._plan(changes)
        names = _listed([move.service for move in moves if move.service])
        return [] if planned is None else [self._suggestion(title.format(names=names), changes, planned)]

    def _raised(self, levels: list[int], place: int, spare: int, moves: Sequence[_Move]) -> list[int]:
        """Raise the level of one move as far as the others let it."""

        def raised(step: int) -> list[int]:
            return [*levels[:place], levels[place] + step, *levels[place + 1 :]]

        return raised(self._highest(spare, raised, moves))

    def _at(self, moves: Sequence[_Move], levels: Sequence[int]) -> Changes:
        return _joined(*(move.milder[level - 1] if level else move.changes for move, level in zip(moves, levels, strict=True)))

    def _highest(self, steps: int, levels: Callable[[int], list[int]], moves: Sequence[_Move]) -> int:
        """Find the highest step that still plans; step 0 does."""
        low, high = 0, steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._plan(self._at(moves, levels(middle))) is not None:
                low = middle
            else:
                high = middle - 1
        return low

    def _last_resort(self, start: Outcome) -> list[Suggestion]:
        """Everything at its smallest, and the largest models left out until the rest fits."""
        families = {family.title: family.moves for family in _families(start)}
        small = [move for title in (_UNPINNED, _LESS_MEMORY, _SMALLER, _SHORTER) for move in families[title]]
        moves = list(small)
        for move in sorted(families[_FEWER], key=lambda move: (-move.saving, move.service)):
            if self._plan(_joined(*(other.changes for other in moves))) is not None:
                break
            moves.append(move)
        if self._plan(_joined(*(move.changes for move in moves))) is None:
            return []
        # Those that are left out are listed last and so taken back first.
        needed = self._needed(moves)
        title = _SEVERAL_FEWER if all(move in families[_FEWER] for move in needed) else _TOGETHER
        return self._finish(title, needed)

    def _suggestion(self, title: str, changes: Changes, planned: Plan) -> Suggestion:
        whole = _joined(self._base, changes)
        touched = {change.path[1] for change in whole if change.path[0] == "citadel_model_overrides"}
        results = "; ".join(_result(service) for service in planned.services if service.name in touched)
        settings = ", ".join(_as_set(change) for change in whole)
        return Suggestion(changes=whole, text=f"{title}: set {settings}{f' ({results})' if results else ''}.")


_POLICY: Final = "the policy rebalance"
_MORE_MEMORY: Final = "more memory for {names}"
_LESS_MEMORY: Final = "less memory for {names}"
_SMALLER: Final = "a smaller variant of {names}"
_SHORTER: Final = "a shorter context for {names}"
_UNPINNED: Final = "no pin for {names}"
_FEWER: Final = "one model less, {names}"
_TOGETHER: Final = "all of this together for {names}"
_SEVERAL_FEWER: Final = "fewer models, without {names}"

_VARIABLES: Final = {
    ("device",): "citadel_device",
    ("gateway", "cpu_quota_percent"): "citadel_gateway_cpu_quota_percent",
    ("gateway", "memory"): "citadel_gateway_memory",
    ("gateway", "port"): "citadel_gateway_port",
    ("policy",): "citadel_plan_policy",
    ("prometheus_port",): "citadel_prometheus_port",
}
"""The variable of inventory/group_vars/all/plan.yml that an operator sets for each value of citadel_plan_settings."""


def _as_set(change: Change) -> str:
    variable = _VARIABLES.get(change.path[1:]) if change.path[0] == "citadel_plan_settings" else None
    return str(change if variable is None else Change((variable,), change.value))


def _joined(*parts: Changes) -> Changes:
    """Join changes, later ones over earlier ones, in one order."""
    values = {change.path: change.value for part in parts for change in part}
    return tuple(Change(path, values[path]) for path in sorted(values))


def _listed(names: Sequence[str]) -> str:
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"


def _result(service: ServicePlan) -> str:
    plural = "" if service.max_num_seqs == 1 else "s"
    return f"{service.name} then runs as {service.variant} with {service.max_num_seqs} sequence{plural} of {service.context_tokens} tokens"


def _size(size_bytes: int) -> str:
    for unit, name in ((TIB, "TiB"), (GIB, "GiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes // MIB}MiB"


def _families(refused: Outcome) -> tuple[_Family, ...]:
    """List all changes that could help, by kind; within a kind the most promising first."""
    outlooks = refused.outlooks
    policy = (Change(("citadel_plan_settings", "policy"), Policy.REBALANCE.value),)
    strict = (_Move(service="", changes=policy, saving=0),) if refused.policy is Policy.STRICT else ()
    return (
        _Family(title=_POLICY, moves=strict),
        _Family(title=_MORE_MEMORY, moves=_ordered(_more_memory(outlook) for outlook in outlooks)),
        _Family(title=_LESS_MEMORY, moves=_ordered(_less_memory(outlook) for outlook in outlooks)),
        _Family(title=_SMALLER, moves=_ordered(_smaller_variant(outlook) for outlook in outlooks)),
        _Family(title=_SHORTER, moves=_ordered(_shorter_context(outlook) for outlook in outlooks)),
        _Family(title=_UNPINNED, moves=_ordered(_without_pin(outlook) for outlook in outlooks)),
        _Family(title=_FEWER, moves=_fewer(outlooks), combine=False),
    )


def _ordered(moves: Iterable[_Move | None]) -> tuple[_Move, ...]:
    return tuple(sorted((move for move in moves if move is not None), key=lambda move: (-move.saving, move.service)))


def _set(model: Model, key: str, value: str | int | bool | None) -> Change:
    return Change(model.override_path(key), value)


def _more_memory(outlook: Outlook) -> _Move | None:
    model = outlook.model
    nearest = min(candidate.needed_bytes for candidate in outlook.candidates)
    lacking = nearest - asked_bytes(model)
    if lacking <= 0:
        return None
    return _Move(service=model.name, changes=(_set(model, memory_key(model), _size(nearest)),), saving=lacking)


def _less_memory(outlook: Outlook) -> _Move | None:
    model = outlook.model
    asked, key = asked_bytes(model), memory_key(model)
    least = min(candidate.needed_bytes for candidate in outlook.candidates)
    if asked <= least:
        return None
    first = least // MEMORY_STEP_BYTES + 1
    steps = [step * MEMORY_STEP_BYTES for step in range(first, -(-asked // MEMORY_STEP_BYTES))]
    return _Move(
        service=model.name,
        changes=(_set(model, key, _size(least)),),
        saving=asked - least,
        milder=[(_set(model, key, _size(size)),) for size in steps],
    )


def _smaller_variant(outlook: Outlook) -> _Move | None:
    model = outlook.model
    chosen = choose(outlook.candidates, asked_bytes(model))

    def weight(candidate: Candidate) -> tuple[int, int]:
        return (candidate.needed_bytes, candidate.variant.weights_bytes)

    smaller = sorted((entry for entry in outlook.candidates if weight(entry) < weight(chosen)), key=weight)
    if not smaller:
        return None
    changes = [(_set(model, "pin.variant", entry.variant.name),) for entry in smaller]
    saving = chosen.needed_bytes - smaller[0].needed_bytes + chosen.variant.weights_bytes - smaller[0].variant.weights_bytes
    return _Move(service=model.name, changes=changes[0], saving=saving, milder=changes[1:])


def _shorter_context(outlook: Outlook) -> _Move | None:
    model = outlook.model
    tokens = model.request.context_tokens
    if tokens <= MIN_CONTEXT_TOKENS:
        return None

    limited = model.request.max_output_tokens < tokens - 1

    def changes(context: int) -> Changes:
        output = (_set(model, "request.max_output_tokens", None),) if limited and model.request.max_output_tokens >= context else ()
        return (_set(model, "request.context_tokens", context), *output)

    steps = range(MIN_CONTEXT_TOKENS + CONTEXT_STEP_TOKENS, tokens, CONTEXT_STEP_TOKENS)
    return _Move(
        service=model.name,
        changes=changes(MIN_CONTEXT_TOKENS),
        saving=tokens * model.architecture.layers * model.architecture.kv_heads * model.architecture.head_dim * model.min_num_seqs,
        milder=[changes(context) for context in steps],
    )


def _without_pin(outlook: Outlook) -> _Move | None:
    model = outlook.model
    pin = model.pin
    pinned = {"variant": pin.variant, "memory": pin.memory_bytes, "cpu_set": pin.cpu_ids, "gpu_ids": pin.gpu_ids}
    changes = tuple(_set(model, f"pin.{key}", None) for key, value in pinned.items() if value is not None)
    return _Move(service=model.name, changes=changes, saving=0) if changes else None


def _fewer(outlooks: Sequence[Outlook]) -> tuple[_Move, ...]:
    """Leave one service out: the one that would be missed least first, which is the one that asks for least."""
    if len(outlooks) == 1:
        return ()
    moves = [
        _Move(service=outlook.model.name, changes=(_set(outlook.model, "enabled", False),), saving=asked_bytes(outlook.model))
        for outlook in outlooks
    ]
    return tuple(sorted(moves, key=lambda move: (move.saving, move.service)))


def with_changes(inventory: object, root: str, changes: Changes) -> object:
    """Apply changes to one input of the plan.

    Args:
        inventory: ``citadel_model_overrides`` or ``citadel_plan_settings``; not changed.
        root: Which of them.
        changes: All changes; those of the other input are left out.

    Returns:
        A copy with the values set.

    """
    result: dict[str, object] = dict(inventory) if isinstance(inventory, Mapping) else {}
    for change in changes:
        if change.path[0] != root:
            continue
        target = result
        for key in change.path[1:-1]:
            below = target.get(key)
            copied: dict[str, object] = dict(below) if isinstance(below, Mapping) else {}
            target[key] = copied
            target = copied
        target[change.path[-1]] = change.value
    return result
