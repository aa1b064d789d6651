"""Names of the inventory's variables: a misspelt one would be ignored in silence, and a missing one met halfway."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PREFIX: Final = "citadel_"
"""Names with it belong to this project; nobody else's variable starts so."""

_ALIKE: Final = 0.85
_ALIKE_OURS: Final = 0.7
"""Shares of equal letters from which a misspelling is assumed (difflib's ratio)."""


def variable_name_problems(defined: Iterable[str], *, required: Mapping[str, Sequence[str]], optional: Iterable[str]) -> list[str]:
    """Compare the names that an inventory defines with the names that there are.

    Args:
        defined: Names of all variables of a host, Ansible's own among them.
        required: Per file of ``inventory/group_vars/all`` the names that it sets.
        optional: Names that may be set: those of the roles, and what the playbooks set themselves.

    Returns:
        One sentence per problem, ordered by name. Every unknown name that starts with ``citadel_`` is one; another
        unknown name only where it looks like a known one with the same first word (the role), because an operator may
        have variables of any other name.

    """
    file_of = {name: file for file, names in required.items() for name in names}
    known = set(file_of) | set(optional)
    present = set(defined)
    unknown = sorted(present - known)
    problems = []
    for name in unknown:
        ours = name.startswith(PREFIX)
        same_role = [other for other in sorted(known) if other.partition("_")[0] == name.partition("_")[0]]
        alike = difflib.get_close_matches(name, sorted(known) if ours else same_role, n=1, cutoff=_ALIKE_OURS if ours else _ALIKE)
        if alike:
            problems.append(f'There is no variable "{name}" (did you mean "{alike[0]}"?): rename it or take it out.')
        elif ours:
            problems.append(
                f'There is no variable "{name}", and names that start with "{PREFIX}" belong to this project: rename it or take it out.'
            )
    problems += [
        f'The variable "{name}" is missing: inventory/group_vars/all/{file_of[name]} sets it; put the line back.'
        for name in sorted(set(file_of) - present)
    ]
    return problems
