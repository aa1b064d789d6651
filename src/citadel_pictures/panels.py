"""Which figures are seen together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from .figures import FIGURES, Figure

LINES: Final[Mapping[str, Callable[[float], float]]] = MappingProxyType(
    {
        "memory_near_limit": lambda percent: percent / 100,
        "memory_off_prediction": lambda percent: percent / 100,
        "errors_allowed": lambda objective_percent: 1 - objective_percent / 100,
        "slow_allowed": lambda objective_percent: 1 - objective_percent / 100,
    }
)
"""Lines by name, and how each ratio follows from the variable of the inventory that sets it."""


def lines(percents: Mapping[str, float]) -> dict[str, float]:
    """Work out where the lines are.

    Args:
        percents: By the names of :data:`LINES`, what the inventory says.

    Raises:
        KeyError: Where one of them is missing.

    """
    return {name: round(ratio(percents[name]), 6) for name, ratio in LINES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Figures of the same level under one title; the first is the one that the consoles draw."""

    title: str
    figures: tuple[str, ...]
    explanation: str = ""
    target: str | None = None
    """The figure that the first is compared with."""
    line: str | None = None
    """The ratio at which the drawing has a line, by its name in :data:`LINES`."""
    full_scale: float | None = None
    """What fills the drawing; None: the highest value of the time that is shown, or twice the target where there is one."""
    least_scale: float = 1.0
    """The least that fills it where the highest value does: so that noise does not look like load."""

    @property
    def first(self) -> Figure:
        """The figure that the consoles draw."""
        return FIGURES[self.figures[0]]


_BEGINS_LATE: Final = "vLLM counts from 0.3 s on: what is quicker shows as 0.15 s."
_TRAFFIC: Final = Panel(
    title="Requests",
    figures=("requests",),
    explanation="Counted by the edge, once for each model that a request was sent to.",
    least_scale=0.1,
)
_ERRORS: Final = Panel(title="Errors", figures=("errors",), explanation="Requests that ended with a 5xx.", least_scale=0.05)
_FIRST_TOKEN: Final = Panel(
    title="Time to the first token",
    figures=("first_token_p95", "first_token_p50", "first_token_p99"),
    target="target",
    explanation="In vLLM, of the last five minutes, beside the target latency of the specification.",
)
_STATE: Final = Panel(title="Generates", figures=("generating",), full_scale=1.0, explanation="Its supervisor saw a token lately.")
_BREAKER: Final = Panel(
    title="Breaker",
    figures=("breaker_open", "breaker_half_open"),
    full_scale=1.0,
    explanation="Open: the edge refuses requests for the model at once. Half-open: it lets one through to see.",
)
_MEMORY: Final = Panel(
    title="Memory",
    figures=("memory_held", "memory_predicted", "memory_limit"),
    target="memory_limit",
    explanation="Held: what cannot be reclaimed. Planned: weights, KV cache and runtime. The limit is the kernel's.",
)
_CPU: Final = Panel(
    title="CPU",
    figures=("cpu", "throttled"),
    full_scale=1.0,
    explanation="Of the CPU time that the service may use; held back: of periods.",
)

MODEL_PANELS: Final = (
    _STATE,
    _BREAKER,
    _FIRST_TOKEN,
    Panel(
        title="Slower than the target",
        figures=("slow",),
        line="slow_allowed",
        least_scale=0.1,
        explanation="Requests of the last hour whose first token came later. More than the objective allows uses up its budget.",
    ),
    Panel(title="Time per token", figures=("per_token_p95", "per_token_p50", "per_token_p99"), least_scale=0.001),
    Panel(
        title="Time of the whole answer",
        figures=("end_to_end_p95", "end_to_end_p50", "end_to_end_p99"),
        least_scale=0.1,
        explanation=_BEGINS_LATE,
    ),
    Panel(title="Time in vLLM's queue", figures=("queue_p95", "queue_p50", "queue_p99"), least_scale=0.1, explanation=_BEGINS_LATE),
    _TRAFFIC,
    Panel(title="Share of all requests", figures=("share",), full_scale=1.0),
    _ERRORS,
    Panel(
        title="Tokens a second",
        figures=("generation_tokens", "prompt_tokens"),
        explanation="Those that supervisors ask for are among them.",
    ),
    Panel(title="Requests waiting", figures=("waiting", "running", "places"), least_scale=4.0, explanation="At the edge and in vLLM."),
    Panel(title="KV cache", figures=("kv_cache", "preemptions"), full_scale=1.0),
    Panel(title="Prefix cache", figures=("prefix_hits",), full_scale=1.0, explanation="Tokens of prompts that were computed before."),
    _MEMORY,
    Panel(
        title="Memory of its plan",
        figures=("memory_of_predicted", "memory_of_limit"),
        full_scale=2.0,
        line="memory_off_prediction",
    ),
    _CPU,
    Panel(
        title="Restarts and kills", figures=("restarts", "oom_kills"), explanation="Since somebody started it, and since the host started."
    ),
)
"""Of one model."""

OVERVIEW_PANELS: Final = (
    _STATE,
    _BREAKER,
    _FIRST_TOKEN,
    _TRAFFIC,
    Panel(title="Share of all requests", figures=("share",), full_scale=1.0),
    _ERRORS,
    _MEMORY,
    Panel(title="Memory of its limit", figures=("memory_of_limit",), full_scale=1.0, line="memory_near_limit"),
    _CPU,
    Panel(title="Requests waiting and running", figures=("waiting", "running"), least_scale=4.0),
    Panel(title="Gateway: requests", figures=("gateway_requests",), least_scale=0.1),
    Panel(title="Gateway: errors", figures=("gateway_errors",), line="errors_allowed", least_scale=0.05),
    Panel(title="Gateway: its own time", figures=("gateway_overhead",), least_scale=0.01),
    Panel(title="Gateway: fallbacks", figures=("fallbacks", "fallbacks_failed")),
    Panel(title="Edge: turned away", figures=("edge_denied",), explanation="Without a key, too many, or to where nothing is."),
    Panel(title="All services", figures=("together_held", "together_granted", "together_limit"), target="together_limit"),
)
"""Of all models, gateways and edges."""
