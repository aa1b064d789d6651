"""Whom a unit is let out to."""

from __future__ import annotations

import pytest

from citadel_plan import list_addresses


@pytest.mark.parametrize(
    ("places", "addresses"),
    [
        ([], []),
        (["127.0.0.1", "http://127.0.0.1:31400/v1", "::1"], []),
        (["http://192.168.10.30:11401/v1", "192.168.10.30", "192.168.10.4"], ["192.168.10.4", "192.168.10.30"]),
        (["http://[2001:db8::30]:11401/v1", "10.0.0.1", "2001:DB8::30"], ["10.0.0.1", "2001:db8::30"]),
    ],
)
def test_each_address_of_another_host_is_listed_once_in_order(places: list[str], addresses: list[str]) -> None:
    assert list_addresses(places) == addresses


def test_names_are_refused_all_of_them() -> None:
    with pytest.raises(ValueError, match=r"^llm-2, llm-3 is no IP address, .* set citadel_server_address of that host to its address[.]$"):
        list_addresses(["http://llm-3:11401/v1", "llm-2", "10.0.0.1"])
