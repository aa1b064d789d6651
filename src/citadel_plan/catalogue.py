"""The catalogue with the operator's overrides laid over it.

Ansible replaces a dict where a later one sets it; an operator who changes one port would have to repeat the
whole entry. Here mappings merge key by key and variants merge by name, so an override says only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .reader import did_you_mean, display

if TYPE_CHECKING:
    from .problems import Problems

CATALOGUE: Final = "citadel_models"
OVERRIDES: Final = "citadel_model_overrides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """The merged entries by service name, and which of their values an override has set.

    In ``entries`` the list ``variants`` has become a mapping by variant name, in order of preference.
    """

    entries: Mapping[str, object]
    overridden: frozenset[tuple[str, ...]]

    def name(self, path: tuple[str, ...]) -> str:
        """Name a value as the operator finds it: under the overrides where one has set it."""
        root = OVERRIDES if path in self.overridden else CATALOGUE
        return ".".join((root, *path))


def merge_catalogue(models: object, overrides: object, problems: Problems) -> Catalogue:
    """Lay the overrides over the catalogue.

    Args:
        models: ``citadel_models``: entries by service name.
        overrides: ``citadel_model_overrides``: same shape, only what differs; may be None.
        problems: Takes what is wrong with the outer shape; what is inside is checked later.

    Returns:
        The merged catalogue; empty where the shape is wrong.

    """
    base = _top_level(models, CATALOGUE, problems)
    over = {} if overrides is None else _top_level(overrides, OVERRIDES, problems)
    if not base and not problems:
        problems.add(f"{CATALOGUE} has no entry: describe at least one model in it.")
    named_base = {name: _variants_by_name(entry, f"{CATALOGUE}.{name}", problems) for name, entry in base.items()}
    named_over = {name: _variants_by_name(entry, f"{OVERRIDES}.{name}", problems) for name, entry in over.items()}
    for name, entry in named_over.items():
        if name not in named_base and not (isinstance(entry, Mapping) and "architecture" in entry):
            problems.add(
                f"{OVERRIDES}.{name} changes a model that {CATALOGUE} does not have{did_you_mean(name, list(base))}:"
                " use the name of an entry, or describe a whole new model with its architecture and variants."
            )
    known = {
        name: entry for name, entry in named_over.items() if name in named_base or (isinstance(entry, Mapping) and "architecture" in entry)
    }
    return Catalogue(entries=_merge(named_base, known), overridden=frozenset(_paths(known, named_base)))


def _top_level(value: object, name: str, problems: Problems) -> dict[str, object]:
    if not isinstance(value, Mapping):
        problems.add(f"{name} is {display(value)}, which is not a mapping: write one entry per service name below it.")
        return {}
    # In one order, whatever that of the inventory, so that the same input is refused with the same bytes.
    return {str(key): value[key] for key in sorted(value, key=str)}


def _variants_by_name(entry: object, path: str, problems: Problems) -> object:
    """Turn the list of variants of an entry into a mapping by name, keeping its order."""
    if not isinstance(entry, Mapping) or "variants" not in entry:
        return entry
    variants = entry["variants"]
    if not isinstance(variants, list | tuple):
        problems.add(f"{path}.variants is {display(variants)}, which is not a list: write each variant after a dash.")
        return {**entry, "variants": {}}
    by_name: dict[str, object] = {}
    for position, variant in enumerate(variants):
        name = variant.get("name") if isinstance(variant, Mapping) else None
        if not isinstance(name, str) or not name:
            problems.add(f"{path}.variants[{position}] has no name: give it one, such as bf16 or int8.")
        elif name in by_name:
            problems.add(f"{path}.variants names {name} twice: each variant needs a name of its own.")
        else:
            by_name[name] = variant
    return {**entry, "variants": by_name}


def _merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _paths(over: Mapping[str, object], base: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List every path that the overrides set: values, and mappings that the catalogue does not have."""
    found: list[tuple[str, ...]] = []
    for key, value in over.items():
        here = (*path, str(key))
        below = base.get(key) if isinstance(base, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(below, Mapping):
            found.append(here)
        if isinstance(value, Mapping):
            found.extend(_paths(value, below, here))
    return found
