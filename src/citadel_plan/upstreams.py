"""The gateway's list of models, from the plans of all hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LOOPBACK: Final = "127.0.0.1"


def list_upstreams(plans: Mapping[str, Mapping[str, Any]], *, host: str) -> list[dict[str, Any]]:
    """List every place where a gateway can have a model answered.

    Args:
        plans: Per host of the inventory ``{"plan": its plan, "address": where its edge listens}``.
        host: The gateway's own host, whose models it reaches through the breaker on loopback; those of another host
            through that host's edge.

    Returns:
        One entry per host and service, ordered by service, then host: two hosts with the same model stand together,
        which is what a gateway balances over.

    Raises:
        ValueError: A sentence, where an entry has no plan or no address.

    """
    upstreams: list[dict[str, Any]] = []
    for name in sorted(plans):
        entry = plans[name]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("plan"), Mapping):
            raise ValueError(f"citadel_upstreams has no plan for {name}: give every host as {{plan: ..., address: ...}}.")
        address = entry.get("address")
        if name != host and (not isinstance(address, str) or not address):
            raise ValueError(f"citadel_upstreams has no address for {name}: set ansible_host or the address its edge listens on.")
        for service in entry["plan"]["services"]:
            if name == host:
                api_base = f"http://{LOOPBACK}:{service['upstream_port']}/v1"
            else:
                bracketed = f"[{address}]" if ":" in str(address) else address
                api_base = f"http://{bracketed}:{service['api_port']}/v1"
            upstreams.append(
                {
                    "service": service["name"],
                    "model": service["name"],
                    "host": name,
                    "api_base": api_base,
                    "description": service["description"],
                    "specialisation": list(service["specialisation"]),
                    "modes": list(service["modes"]),
                    "context_tokens": service["context_tokens"],
                    "max_output_tokens": service["max_output_tokens"],
                    "max_num_seqs": service["max_num_seqs"],
                    "target_latency_milliseconds": service["target_latency_milliseconds"],
                }
            )
    return sorted(upstreams, key=lambda upstream: (upstream["service"], upstream["host"]))
