"""The addresses that a unit must be able to reach, for systemd's IPAddressAllow."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable


def list_addresses(places: Iterable[str]) -> list[str]:
    """List the addresses of other hosts among URLs and plain addresses.

    Args:
        places: URLs or addresses; IPv6 in brackets where it is part of a URL.

    Returns:
        Each address once, in order, IPv4 first. Loopback is left out: every unit reaches it.

    Raises:
        ValueError: A sentence that names every place that is none: a name could lead anywhere, and systemd takes addresses only.

    """
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    names: list[str] = []
    for place in places:
        text = (urlsplit(place).hostname or "") if "://" in place else place
        try:
            found.add(ipaddress.ip_address(text))
        except ValueError:
            names.append(text)
    if names:
        raise ValueError(
            f"{', '.join(sorted(set(names)))} is no IP address, and a unit is let out to addresses only: "
            "set citadel_server_address of that host to its address."
        )
    return [str(address) for address in sorted(found, key=lambda address: (address.version, address)) if not address.is_loopback]
