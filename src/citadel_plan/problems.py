"""Everything that is wrong, collected, so that an operator mends an inventory once and not ten times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(Enum):
    """What it takes to mend a problem."""

    INPUT = "input"
    """A value is wrong in itself: its repair mends it, or else only the operator knows what was meant."""
    SIZE = "size"
    """Something has to be smaller, or to go: several changes would do."""


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One value of the inventory, set anew.

    Attributes:
        path: Where: ``citadel_model_overrides`` or ``citadel_plan_settings``, and the keys below.
        value: The value, as the inventory writes it.

    """

    path: tuple[str, ...]
    value: str | int | bool | None

    def __str__(self) -> str:
        """Write it as it stands in YAML: ``citadel_model_overrides.hermes-2.request.memory: 20GiB``."""
        value = "null" if self.value is None else str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{'.'.join(self.path)}: {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Changes with which the inventory plans: this has been tried.

    Attributes:
        changes: What to set, all of it together.
        text: The same in a sentence, with what comes of it.

    """

    changes: tuple[Change, ...]
    text: str


class PlanError(ValueError):
    """The plan is refused.

    Attributes:
        problems: One sentence per violated constraint, each naming where it comes from and a way out.
        suggestions: The nearest plans that fit, where the input is sound; may be empty.

    """

    def __init__(self, host: str, problems: Iterable[str], suggestions: Iterable[Suggestion] = ()) -> None:
        """Join the sentences into one message."""
        self.problems: tuple[str, ...] = tuple(problems)
        self.suggestions: tuple[Suggestion, ...] = tuple(suggestions)
        count = len(self.problems)
        lines = [f"No plan for {host}: {count} problem{'' if count == 1 else 's'}.", *(f"  - {problem}" for problem in self.problems)]
        if self.suggestions:
            lines += ["Any one of these plans, each of them tried:", *(f"  - {suggestion.text}" for suggestion in self.suggestions)]
        super().__init__("\n".join(lines))


class Problems:
    """A list of sentences that grows while the input is read and checked."""

    def __init__(self, host: str) -> None:
        """Start with nothing wrong."""
        self._host = host
        self._sentences: list[str] = []
        self._repairs: dict[str, Change | None] = {}

    def add(self, sentence: str, *, kind: Kind = Kind.INPUT, repair: Change | None = None) -> None:
        """Note one problem; a sentence that is already there is not repeated.

        Args:
            sentence: The whole sentence.
            kind: What it takes to mend it.
            repair: The one change that mends it, where there is one that does whatever was meant.

        """
        if sentence not in self._sentences:
            self._sentences.append(sentence)
            if kind is Kind.INPUT:
                self._repairs[sentence] = repair

    def __bool__(self) -> bool:
        """Tell whether anything is wrong."""
        return bool(self._sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """All that was noted, in order."""
        return tuple(self._sentences)

    def repairs(self) -> tuple[Change, ...] | None:
        """Give the changes that mend all that is no matter of size, or None where one cannot be mended by a machine."""
        found = list(self._repairs.values())
        return None if None in found else tuple(change for change in found if change is not None)

    def raise_if_any(self) -> None:
        """Refuse with all that was found.

        Raises:
            PlanError: When at least one problem was noted.

        """
        if self._sentences:
            raise PlanError(self._host, self._sentences)
