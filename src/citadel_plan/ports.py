"""Every port that a host's plan makes somebody listen on, and whether they can.

The edge alone listens on the server's address; everything else listens on loopback. vLLM and the edge can
therefore use the same number for the same service, and only listeners of the same side can collide.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from .problems import Change

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .inputs import Host, Listener, Model, Settings
    from .problems import Problems

METRICS_OFFSET: Final = 1
STATE_OFFSET: Final = 10_000
UPSTREAM_OFFSET: Final = 20_000

EDGE_STATS_PORT: Final = 8405
EDGE_STATE_PORT: Final = 8406
GATEWAY_STATE_PORT: Final = 8407
NODE_EXPORTER_PORT: Final = 9100

OWN_UNITS: Final = frozenset({"haproxy.service", "prometheus.service", "prometheus-node-exporter.service"})
OWN_UNIT_PREFIX: Final = "citadel-"

_MAX_PORT: Final = 65535
_OFFSETS: Final = (0, METRICS_OFFSET, STATE_OFFSET, UPSTREAM_OFFSET)
_FIRST_MOVE: Final = 11400
"""Where a free port is looked for: the specification's range and what follows it."""
_ANY_ADDRESS: Final = frozenset({"", "*", "0.0.0.0", "::"})  # noqa: S104 - what others listen on
_LOOPBACK: Final = "127.0.0.1"


class Side(StrEnum):
    """Where a listener binds."""

    SERVER = "the server's address"
    LOOPBACK = "127.0.0.1"


class Kind(StrEnum):
    """What a listener serves, as a sentence names it."""

    API = "the API"
    METRICS = "the metrics"
    STATE = "the state"
    UPSTREAM = "the upstream"
    GATEWAY = "the gateway"
    PROMETHEUS = "Prometheus"
    EDGE_STATS = "the edge's own metrics"
    EDGE_STATE = "the edge's state of the models"
    GATEWAY_STATE = "the gateway's state"
    NODE_EXPORTER = "the node exporter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """One listener that the plan makes."""

    side: Side
    port: int
    kind: Kind
    service: str = ""
    path: str = ""
    """The value of the inventory that moves it, where one does."""
    override: tuple[str, ...] = ()
    """Where an operator sets that value."""

    @property
    def role(self) -> str:
        """Name it in a sentence: ``the API of mixtral-8x7b``."""
        return f"{self.kind} of {self.service}" if self.service else str(self.kind)


def check_ports(models: Sequence[Model], host: Host, settings: Settings, problems: Problems) -> None:
    """Note every port that two want, that the kernel hands out, or that somebody else has.

    Args:
        models: The services, ordered by API port.
        host: Foreign listeners come from here.
        settings: Ports of the gateway and of Prometheus, and the ephemeral range.
        problems: Takes what is wrong.

    """
    derived = [*_service_listeners(models), *_platform_listeners(settings)]
    foreign = foreign_listeners(host.listeners)
    mover = _Mover(derived, settings.ephemeral_ports, foreign)
    _check_api_ports(models, mover, problems)
    _check_collisions(derived, mover, problems)
    _check_range(derived, settings.ephemeral_ports, mover, problems)
    _check_foreign(derived, foreign, mover, problems)


class _Mover:
    """Finds ports that nobody has, for whoever has to move: one each."""

    def __init__(self, derived: Iterable[Derived], ephemeral: tuple[int, int], foreign: Iterable[Listener]) -> None:
        self._taken = {listener.port for listener in derived} | {listener.port for listener in foreign}
        self._ephemeral = range(ephemeral[0], ephemeral[1] + 1)
        self._moved: dict[tuple[str, ...], Change | None] = {}

    def move(self, listener: Derived) -> Change | None:
        """Give the change that moves a listener, or None where it has no port of the inventory or none is left."""
        if listener.override and listener.override not in self._moved:
            offsets = _OFFSETS if listener.service else (0,)
            port = next((port for port in range(_FIRST_MOVE, _MAX_PORT) if self._free(port, offsets)), None)
            self._moved[listener.override] = None if port is None else Change(listener.override, port)
            self._taken.update(() if port is None else (port + offset for offset in offsets))
        return self._moved.get(listener.override)

    def _free(self, port: int, offsets: Iterable[int]) -> bool:
        wanted = [port + offset for offset in offsets]
        return all(each <= _MAX_PORT and each not in self._taken and each not in self._ephemeral for each in wanted)


def _service_listeners(models: Iterable[Model]) -> list[Derived]:
    return [
        Derived(
            side=side,
            port=model.request.port + offset,
            kind=kind,
            service=model.name,
            path=model.path("request.port"),
            override=model.override_path("request.port"),
        )
        for model in models
        for side, kind, offset in (
            (Side.SERVER, Kind.API, 0),
            (Side.SERVER, Kind.METRICS, METRICS_OFFSET),
            (Side.LOOPBACK, Kind.API, 0),
            (Side.LOOPBACK, Kind.STATE, STATE_OFFSET),
            (Side.LOOPBACK, Kind.UPSTREAM, UPSTREAM_OFFSET),
        )
    ]


def _platform_listeners(settings: Settings) -> list[Derived]:
    gateway, prometheus = ("citadel_plan_settings", "gateway", "port"), ("citadel_plan_settings", "prometheus_port")
    return [
        *(
            Derived(side=side, port=port, kind=kind, path=".".join(override), override=override)
            for kind, port, override in (
                (Kind.GATEWAY, settings.gateway.port, gateway),
                (Kind.PROMETHEUS, settings.prometheus_port, prometheus),
            )
            for side in Side
        ),
        Derived(side=Side.LOOPBACK, port=EDGE_STATS_PORT, kind=Kind.EDGE_STATS),
        Derived(side=Side.LOOPBACK, port=EDGE_STATE_PORT, kind=Kind.EDGE_STATE),
        Derived(side=Side.LOOPBACK, port=GATEWAY_STATE_PORT, kind=Kind.GATEWAY_STATE),
        Derived(side=Side.LOOPBACK, port=NODE_EXPORTER_PORT, kind=Kind.NODE_EXPORTER),
    ]


def _check_api_ports(models: Sequence[Model], mover: _Mover, problems: Problems) -> None:
    by_port: dict[int, Model] = {}
    for model in models:
        other = by_port.setdefault(model.request.port, model)
        if other is not model:
            # What the operator has moved is what can move again.
            key = "request.port"
            moves = other if key in other.overridden and key not in model.overridden else model
            problems.add(
                f"{model.path('request.port')} is {model.request.port}, which {other.path('request.port')} has already:"
                " give each model a port of its own.",
                repair=mover.move(_service_listeners([moves])[0]),
            )


def _may_meet(one: Derived, other: Derived) -> bool:
    """Tell whether two listeners of one port are no collision, or one that has a clearer sentence of its own.

    The edge serves the API of a model and the metrics of the one below on one port. Two services of the same kind
    on one port share their API port, which :func:`_check_api_ports` says.
    """
    kinds = {one.kind, other.kind}
    return len(kinds) == 1 or (one.side is Side.SERVER and kinds == {Kind.API, Kind.METRICS})


def _check_collisions(derived: Sequence[Derived], mover: _Mover, problems: Problems) -> None:
    taken: dict[tuple[Side, int], list[Derived]] = {}
    for listener in derived:
        others = taken.setdefault((listener.side, listener.port), [])
        for other in others:
            if not _may_meet(listener, other):
                paths = " or ".join(sorted({path for path in (listener.path, other.path) if path}))
                problems.add(
                    f"Port {listener.port} on {listener.side} is wanted by {other.role} and by {listener.role}: change {paths}.",
                    repair=mover.move(listener) or mover.move(other),
                )
        others.append(listener)


def _check_range(derived: Sequence[Derived], ephemeral: tuple[int, int], mover: _Mover, problems: Problems) -> None:
    first, last = ephemeral
    for listener in derived:
        cure = f"change {listener.path}" if listener.path else "narrow net.ipv4.ip_local_port_range"
        if listener.port > _MAX_PORT:
            problems.add(f"Port {listener.port} for {listener.role} is beyond {_MAX_PORT}: {cure}.", repair=mover.move(listener))
        elif first <= listener.port <= last:
            problems.add(
                f"Port {listener.port} for {listener.role} is inside the ephemeral range {first}-{last}, where the"
                f" kernel may hand it to an outgoing connection: {cure}.",
                repair=mover.move(listener),
            )


def foreign_listeners(listeners: Iterable[Listener]) -> list[Listener]:
    """Leave out what is ours: otherwise a second run would refuse what the first one deployed."""
    return [listener for listener in listeners if not (listener.unit or "").startswith(OWN_UNIT_PREFIX) and listener.unit not in OWN_UNITS]


def _sides_of(address: str) -> frozenset[Side]:
    """Tell which of our sides a foreign address shuts out."""
    bare = address.strip("[]").split("%")[0]
    if bare in _ANY_ADDRESS:
        return frozenset(Side)
    if bare == _LOOPBACK:
        return frozenset({Side.LOOPBACK})
    try:
        if ipaddress.ip_address(bare).is_loopback:
            return frozenset()
    except ValueError:
        return frozenset(Side)
    # The plan does not know the server's address; another address of the host may be the one.
    return frozenset({Side.SERVER})


def _check_foreign(derived: Sequence[Derived], foreign: Sequence[Listener], mover: _Mover, problems: Problems) -> None:
    by_port: dict[int, list[Listener]] = {}
    for listener in foreign:
        by_port.setdefault(listener.port, []).append(listener)
    for ours in derived:
        for theirs in by_port.get(ours.port, []):
            if ours.side not in _sides_of(theirs.address):
                continue
            who = theirs.unit or "a program that belongs to no unit"
            cure = f" or change {ours.path}" if ours.path else ""
            problems.add(f"Port {ours.port} for {ours.role} is taken by {who} on {theirs.address}: stop it{cure}.", repair=mover.move(ours))


@dataclass(frozen=True, slots=True, kw_only=True)
class PortOwner:
    """Which service a port of the edge leads to."""

    port: int
    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What the edge serves on the server's address."""

    listen_ports: tuple[int, ...]
    api_ports: tuple[PortOwner, ...]
    metrics_ports: tuple[PortOwner, ...]


def edge_ports(models: Sequence[Model], settings: Settings) -> Edge:
    """Map every external port.

    The specification wants APIs on 11400-11403 and metrics on 11401-11404. So port P serves the API of the model at
    P, and ``GET /metrics`` on P + 1 is that model's; a port with no model below it serves its own model's.
    """
    at = {model.request.port: model.name for model in models}
    ports = sorted({*at, *(port + METRICS_OFFSET for port in at)})
    return Edge(
        listen_ports=tuple(sorted({*ports, settings.gateway.port, settings.prometheus_port})),
        api_ports=tuple(PortOwner(port=port, service=at[port]) for port in sorted(at)),
        metrics_ports=tuple(PortOwner(port=port, service=at.get(port - METRICS_OFFSET) or at[port]) for port in ports),
    )
