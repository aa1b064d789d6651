"""How many workers the gateway runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .problems import Change
from .units import MIB, gib

if TYPE_CHECKING:
    from .inputs import GatewayRequest
    from .problems import Problems

PARENT_BYTES: Final = 320 * MIB
"""LiteLLM's parent process; measured 314 MB with two workers."""

WORKER_BYTES: Final = 512 * MIB
"""One LiteLLM worker; measured 381 to 385 MB at rest, the rest is for requests in flight."""


def gateway_workers(gateway: GatewayRequest, cores: int, problems: Problems) -> int:
    """Decide the number of workers from memory and cores.

    Args:
        gateway: The gateway's request; its own number of workers is honoured or refused.
        cores: Cores that it may use.
        problems: Takes what is wrong.

    Returns:
        Workers, at least one.

    """
    fitting = (gateway.memory_bytes - PARENT_BYTES) // WORKER_BYTES
    wanted = 1 if gateway.workers is None else gateway.workers
    if fitting < wanted:
        problems.add(
            f"citadel_plan_settings.gateway.memory is {gib(gateway.memory_bytes)}, which is too little for"
            f" {wanted} worker{'' if wanted == 1 else 's'}: raise it to"
            f' "{(PARENT_BYTES + wanted * WORKER_BYTES) // MIB}MiB"'
            f"{'' if gateway.workers is None else ' or lower citadel_plan_settings.gateway.workers'}.",
            repair=Change(("citadel_plan_settings", "gateway", "memory"), f"{(PARENT_BYTES + wanted * WORKER_BYTES) // MIB}MiB"),
        )
        return 1
    return max(1, min(fitting, cores)) if gateway.workers is None else wanted
