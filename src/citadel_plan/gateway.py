"""How many workers the gateway runs, and how large one may become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .problems import Change
from .units import MIB, gib

if TYPE_CHECKING:
    from .inputs import GatewayRequest
    from .problems import Problems

REPLACEMENT_BYTES: Final = 448 * MIB
"""The parent process, measured 24 MB, and a worker that is about to take the place of one that has grown, measured 360 MB."""

WORKER_BYTES: Final = 512 * MIB
"""One LiteLLM worker; measured 360 to 400 MB in use, the rest is for requests in flight and for growth."""


def gateway_workers(gateway: GatewayRequest, cores: int, problems: Problems) -> int:
    """Decide the number of workers from memory and cores.

    Args:
        gateway: The gateway's request; its own number of workers is honoured or refused.
        cores: Cores that it may use.
        problems: Takes what is wrong.

    Returns:
        Workers, at least one.

    """
    fitting = (gateway.memory_bytes - REPLACEMENT_BYTES) // WORKER_BYTES
    wanted = 1 if gateway.workers is None else gateway.workers
    if fitting < wanted:
        problems.add(
            f"citadel_plan_settings.gateway.memory is {gib(gateway.memory_bytes)}, which is too little for"
            f" {wanted} worker{'' if wanted == 1 else 's'}: raise it to"
            f' "{(REPLACEMENT_BYTES + wanted * WORKER_BYTES) // MIB}MiB"'
            f"{'' if gateway.workers is None else ' or lower citadel_plan_settings.gateway.workers'}.",
            repair=Change(("citadel_plan_settings", "gateway", "memory"), f"{(REPLACEMENT_BYTES + wanted * WORKER_BYTES) // MIB}MiB"),
        )
        return 1
    return max(1, min(fitting, cores)) if gateway.workers is None else wanted


def worker_memory_max_bytes(gateway: GatewayRequest, workers: int) -> int:
    """Decide how much memory a worker may hold before it is replaced: what the workers and one replacement leave of the gateway's.

    Args:
        gateway: The gateway's request.
        workers: How many run.

    Returns:
        Whole mebibytes, in bytes.

    """
    return max(0, gateway.memory_bytes - REPLACEMENT_BYTES) // workers // MIB * MIB
