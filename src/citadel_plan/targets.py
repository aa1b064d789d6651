"""Where Prometheus finds the models of all hosts, and what their nodes tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .ports import EDGE_STATE_PORT, EDGE_STATS_PORT, NODE_EXPORTER_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LOOPBACK: Final = "127.0.0.1"
EDGE_PORTS: Final = {"edge": EDGE_STATS_PORT, "breakers": EDGE_STATE_PORT}
"""Where an edge tells HAProxy's own metrics, and how its breakers are."""


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


def list_node_targets(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List where the node exporters are: of the host that Prometheus runs on on loopback, of the model servers at their addresses.

    Args:
        plans: As for :func:`list_metrics_targets`.
        host: The host that Prometheus runs on.

    Returns:
        ``{"service", "host", "address", "port"}`` per host, ordered by host.

    """
    return [_target("node", name, plans, host, NODE_EXPORTER_PORT) for name in sorted({host, *plans})]


def list_edge_targets(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List where the edges tell their own metrics: on loopback of the host that Prometheus runs on, of the others at their addresses.

    Args:
        plans: As for :func:`list_metrics_targets`.
        host: The host that Prometheus runs on.

    Returns:
        As :func:`list_node_targets`.

    """
    return [_target(service, name, plans, host, port) for name in sorted({host, *plans}) for service, port in EDGE_PORTS.items()]


def list_gateway_targets(
    plans: Mapping[str, Mapping[str, Any]], *, gateways: Iterable[str], loopback_host: str = ""
) -> list[dict[str, Any]]:
    """List where the gateways tell their metrics, behind the edges of their hosts.

    Args:
        plans: As for :func:`list_metrics_targets`.
        gateways: The hosts that have a gateway.
        loopback_host: As for :func:`list_metrics_targets`.

    Returns:
        ``{"service", "host", "address", "port"}`` per gateway, ordered by host.

    """
    planned = {name: plans[name]["plan"]["gateway"] for name in sorted(gateways)}
    return [_target(gateway["name"], name, plans, loopback_host, gateway["port"]) for name, gateway in planned.items()]


def _target(service: str, name: str, plans: Mapping[str, Mapping[str, Any]], loopback_host: str, port: int) -> dict[str, Any]:
    return {"service": service, "host": name, "address": LOOPBACK if name == loopback_host else plans[name]["address"], "port": port}
