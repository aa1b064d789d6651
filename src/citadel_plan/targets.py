"""Where Prometheus finds the models of all hosts, and the supervisors of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK: Final = "127.0.0.1"


def list_metrics_targets(plans: Mapping[str, Mapping[str, Any]], *, loopback_host: str = "") -> list[dict[str, Any]]:
    """List the metrics address of every model service, as the specification writes it: the edge of its host, its metrics port.

    Args:
        plans: Per host of the inventory ``{"plan": its plan, "address": where its edge listens}``.
        loopback_host: The host that Prometheus runs on, where its edge is not to be asked: the services are then asked themselves.

    Returns:
        ``{"service", "host", "address", "port"}`` per host and service, ordered by host and port.

    """
    targets = []
    for host in sorted(plans):
        for service in plans[host]["plan"]["services"]:
            address, port = plans[host]["address"], service["metrics_port"]
            if host == loopback_host:
                address, port = LOOPBACK, service["api_port"]
            targets.append({"service": service["name"], "host": host, "address": address, "port": port})
    return targets


def list_state_targets(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List the address at which each model service of one host tells its state, which is on loopback only.

    Args:
        plans: As for :func:`list_metrics_targets`.
        host: The host that Prometheus runs on.

    Returns:
        ``{"service", "host", "address", "port"}`` per service, ordered by port; nothing for a host without models.

    """
    services = plans[host]["plan"]["services"] if host in plans else []
    return [{"service": service["name"], "host": host, "address": LOOPBACK, "port": service["state_port"]} for service in services]
