"""Where Prometheus finds the models of all hosts, and what their nodes tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NODE_EXPORTER_PORT: Final = 9100


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


def list_node_targets(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List where the node exporters are: of the host that Prometheus runs on on loopback, of the model servers at their addresses.

    Args:
        plans: As for :func:`list_metrics_targets`.
        host: The host that Prometheus runs on.

    Returns:
        ``{"service", "host", "address", "port"}`` per host, ordered by host.

    """
    return [
        {"service": "node", "host": name, "address": "127.0.0.1" if name == host else plans[name]["address"], "port": NODE_EXPORTER_PORT}
        for name in sorted({host, *plans})
    ]
