"""Everything that is wrong, collected, so that an operator mends an inventory once and not ten times."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class PlanError(ValueError):
    """The plan is refused.

    Attributes:
        problems: One sentence per violated constraint, each naming where it comes from and a way out.

    """

    def __init__(self, host: str, problems: Iterable[str]) -> None:
        """Join the sentences into one message."""
        self.problems: tuple[str, ...] = tuple(problems)
        count = len(self.problems)
        opening = f"No plan for {host}: {count} problem{'' if count == 1 else 's'}."
        super().__init__("\n".join([opening, *(f"  - {problem}" for problem in self.problems)]))


class Problems:
    """A list of sentences that grows while the input is read and checked."""

    def __init__(self, host: str) -> None:
        """Start with nothing wrong."""
        self._host = host
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Note one problem; a sentence that is already there is not repeated."""
        if sentence not in self._sentences:
            self._sentences.append(sentence)

    def __bool__(self) -> bool:
        """Tell whether anything is wrong."""
        return bool(self._sentences)

    def raise_if_any(self) -> None:
        """Refuse with all that was found.

        Raises:
            PlanError: When at least one problem was noted.

        """
        if self._sentences:
            raise PlanError(self._host, self._sentences)
