"""What a gateway calls, from the plans of all hosts: each model once, on loopback, and where its instances are."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

from .addresses import list_addresses

LOOPBACK: Final = "127.0.0.1"
MOST_WEIGHT: Final = 256
"""That HAProxy knows."""


def list_upstreams(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List the models that a gateway can have answered, each at the port of loopback where the edge beside it takes requests for it.

    Args:
        plans: Per host of the inventory ``{"plan": its plan, "address": where its edge listens}``.
        host: The gateway's own host.

    Returns:
        One entry per model, ordered by name. A request may go to any instance, so the least of what they can counts, and all of their
        places.

    Raises:
        ValueError: A sentence, where a host has no plan or no address, or two models would have one port.

    """
    return [
        {
            "service": name,
            "model": name,
            "host": host,
            "api_base": f"http://{LOOPBACK}:{_upstream_port(instances, host)}/v1",
            "description": next(iter(instances.values()))["description"],
            "specialisation": list(next(iter(instances.values()))["specialisation"]),
            "modes": [
                mode for mode in next(iter(instances.values()))["modes"] if all(mode in each["modes"] for each in instances.values())
            ],
            "context_tokens": min(each["context_tokens"] for each in instances.values()),
            "max_output_tokens": min(each["max_output_tokens"] for each in instances.values()),
            "max_num_seqs": sum(each["max_num_seqs"] for each in instances.values()),
            "target_latency_milliseconds": max(each["target_latency_milliseconds"] for each in instances.values()),
        }
        for name, instances in _instances(plans, host).items()
    ]


def list_shared_models(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List the models that a gateway calls and that other hosts have as well, or alone, with every instance.

    Args:
        plans: As for :func:`list_upstreams`.
        host: The gateway's own host.

    Returns:
        ``{"name", "upstream_port", "max_waiting", "instances"}`` per model, ordered by name; of each instance
        ``{"host", "address", "port", "places", "weight"}``, this host's first, then by host. Weights are in proportion to the places.

    Raises:
        ValueError: As :func:`list_upstreams`, and where hosts have no addresses, or addresses of different families.

    """
    shared = {name: instances for name, instances in _instances(plans, host).items() if set(instances) != {host}}
    list_addresses(plans[name]["address"] for instances in shared.values() for name in instances)
    concerned = {name: ipaddress.ip_address(plans[name]["address"]) for instances in shared.values() for name in {host, *instances}}
    if len({address.version for address in concerned.values()}) > 1:
        named = ", ".join(f"{name} {address}" for name, address in sorted(concerned.items()))
        raise ValueError(f"A gateway and the hosts that it calls need addresses of one family (citadel_server_address): {named}.")
    return [
        {
            "name": name,
            "upstream_port": _upstream_port(instances, host),
            "max_waiting": sum(service["max_waiting"] for service in instances.values()),
            "instances": [
                {
                    "host": each,
                    "address": str(concerned[each]),
                    "port": service["api_port"],
                    "places": service["max_num_seqs"],
                    "weight": _weight(service["max_num_seqs"], max(other["max_num_seqs"] for other in instances.values())),
                }
                for each, service in instances.items()
            ],
        }
        for name, instances in shared.items()
    ]


def _instances(plans: Mapping[str, Mapping[str, Any]], host: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Give by model, and by host, each service: models by name, of their hosts the gateway's own first."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name in sorted(plans, key=lambda each: (each != host, each)):
        entry = plans[name]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("plan"), Mapping):
            raise ValueError(f"citadel_upstreams has no plan for {name}: give every host as {{plan: ..., address: ...}}.")
        address = entry.get("address")
        if name != host and (not isinstance(address, str) or not address):
            raise ValueError(f"citadel_upstreams has no address for {name}: set ansible_host or the address its edge listens on.")
        for service in entry["plan"]["services"]:
            found.setdefault(service["name"], {})[name] = service
    # That the models of one host have different ports is proven by its plan.
    owners: dict[int, str] = {}
    for model, instances in found.items():
        other = owners.setdefault(_upstream_port(instances, host), model)
        if other != model and host not in instances:
            raise ValueError(
                f"{other} and {model} would both be called at port {_upstream_port(instances, host)} of {LOOPBACK} on {host},"
                " though they are models of different hosts: give each model a request.port that no other one has on any host."
            )
    return dict(sorted(found.items()))


def _upstream_port(instances: Mapping[str, Mapping[str, Any]], host: str) -> int:
    """Where the gateway calls a model: the port of its own host's plan, or of that of the first host that has the model."""
    service = instances.get(host) or next(iter(instances.values()))
    return int(service["upstream_port"])


def _weight(places: int, most: int) -> int:
    return places if most <= MOST_WEIGHT else max(1, places * MOST_WEIGHT // most)
