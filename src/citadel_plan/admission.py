"""How many requests may be with a model at a time: what works is bounded by its memory, what waits by patience."""

from __future__ import annotations

from typing import Final

WAITING_PER_SEQUENCE: Final = 4
"""Requests that may wait for each one that is worked on.

Who comes last waits for four answers. While those take up to 15 s each it has its place within the 60 s that the edge lets a
request wait (``edge_queue_timeout_seconds``); one more is told at once to come back, or is answered by another model.
"""


def max_waiting(num_seqs: int) -> int:
    """Most requests that wait at the edge for a model that works on ``num_seqs`` at once; vLLM itself knows no bound."""
    return WAITING_PER_SEQUENCE * num_seqs
