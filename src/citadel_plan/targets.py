"""Where Prometheus finds the models of all hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def list_metrics_targets(plans: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the metrics address of every model service, as the specification writes it: the edge of its host, its metrics port.

    Args:
        plans: Per host of the inventory ``{"plan": its plan, "address": where its edge listens}``.

    Returns:
        ``{"service", "host", "address", "port"}`` per host and service, ordered by host and port.

    """
    return [
        {"service": service["name"], "host": host, "address": plans[host]["address"], "port": service["metrics_port"]}
        for host in sorted(plans)
        for service in plans[host]["plan"]["services"]
    ]
