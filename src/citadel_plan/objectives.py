"""How Prometheus finds out which part of the requests met a target latency, from a histogram whose bounds are not the targets."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST_TOKEN_BOUNDS_SECONDS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
"""Of ``vllm:time_to_first_token_seconds`` in vLLM 0.32, as its metrics print them."""

_DIGITS: Final = 6


def list_latency_objectives(plans: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Say for every model how many of its requests count as in time: a weighted sum of two buckets.

    Between two bounds requests are taken to be spread evenly, as Prometheus' own histogram_quantile does.

    Args:
        plans: Per host of the inventory ``{"plan": its plan, …}``.

    Returns:
        ``{"host", "model", "target_seconds", "lower_bound", "lower_weight", "upper_bound", "upper_weight"}`` per host and service,
        ordered by host and port; the bounds are the texts of the label ``le``, the weights add up to 1 unless the target lies below
        the first bound.

    """
    return [
        {"host": host, "model": service["name"], **_shares(service["target_latency_milliseconds"] / 1000)}
        for host in sorted(plans)
        for service in plans[host]["plan"]["services"]
    ]


def _shares(target_seconds: float) -> dict[str, Any]:
    bounds = FIRST_TOKEN_BOUNDS_SECONDS
    place = min(bisect_left(bounds, target_seconds), len(bounds) - 1)
    upper = bounds[place]
    # Below the first bound lie all from 0 on, of which no bucket tells: their weight is 0.
    lower, lowest = (bounds[place - 1], bounds[place - 1]) if place else (upper, 0.0)
    weight = round(min(1.0, (target_seconds - lowest) / (upper - lowest)), _DIGITS)
    return {
        "target_seconds": target_seconds,
        "lower_bound": str(lower),
        "lower_weight": round(1 - weight, _DIGITS) if place else 0.0,
        "upper_bound": str(upper),
        "upper_weight": weight,
    }
