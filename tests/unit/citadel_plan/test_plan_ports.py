"""Ports: who may share one, who may not, and where the edge leads."""

from __future__ import annotations

from typing import Any

import pytest

from unit.plan_examples import host_facts, problems_of, production_models, production_plan


def listener(address: str, port: int, unit: str = "") -> dict[str, Any]:
    return {"address": address, "port": port, "unit": unit}


def port_override(name: str, port: int) -> dict[str, Any]:
    return {name: {"request": {"port": port}}}


def test_every_url_of_the_specification_leads_to_its_model() -> None:
    edge = production_plan().edge
    assert edge.listen_ports == (8000, 9090, 11400, 11401, 11402, 11403, 11404)
    names = ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini"]
    assert [(entry.port, entry.service) for entry in edge.api_ports] == list(zip(range(11400, 11404), names, strict=True))
    # 11400 has no model below it and serves its own model's metrics; 11404 is no model's API and serves metrics only.
    expected = [(11400, names[0]), (11401, names[0]), (11402, names[1]), (11403, names[2]), (11404, names[3])]
    assert [(entry.port, entry.service) for entry in edge.metrics_ports] == expected


def test_services_that_are_apart_have_metrics_of_their_own() -> None:
    # 11500 instead of 11401: 11401 now serves Mixtral's metrics only, 11402 has nobody below and serves its own.
    edge = production_plan(overrides=port_override("hermes-2", 11500)).edge
    served = {entry.port: entry.service for entry in edge.metrics_ports}
    assert served == {
        11400: "mixtral-8x7b",
        11401: "mixtral-8x7b",
        11402: "openchat-3.5",
        11403: "openchat-3.5",
        11404: "phi-3-mini",
        11500: "hermes-2",
        11501: "hermes-2",
    }


def test_ports_of_a_service_follow_its_api_port() -> None:
    service = production_plan(overrides=port_override("hermes-2", 11500)).services[-1]
    assert (service.name, service.metrics_port, service.state_port, service.upstream_port) == ("hermes-2", 11501, 21500, 31500)


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        (
            port_override("phi-3-mini", 11401),
            [
                "citadel_model_overrides.phi-3-mini.request.port is 11401, which citadel_models.hermes-2.request.port has already:"
                " give each model a port of its own."
            ],
        ),
        (
            # The metrics of 7999 would be on the gateway's port.
            port_override("phi-3-mini", 7999),
            [
                "Port 8000 on the server's address is wanted by the metrics of phi-3-mini and by the gateway: change"
                " citadel_model_overrides.phi-3-mini.request.port or citadel_plan_settings.gateway.port."
            ],
        ),
        (
            # Taken by Prometheus on both sides.
            port_override("phi-3-mini", 9090),
            [
                "Port 9090 on the server's address is wanted by the API of phi-3-mini and by Prometheus: change"
                " citadel_model_overrides.phi-3-mini.request.port or citadel_plan_settings.prometheus_port.",
                "Port 9090 on 127.0.0.1 is wanted by the API of phi-3-mini and by Prometheus: change"
                " citadel_model_overrides.phi-3-mini.request.port or citadel_plan_settings.prometheus_port.",
            ],
        ),
        (
            # 21400 is Mixtral's state; the edge on the server's address does not mind.
            port_override("phi-3-mini", 21400),
            [
                "Port 21400 on 127.0.0.1 is wanted by the state of mixtral-8x7b and by the API of phi-3-mini: change"
                " citadel_model_overrides.phi-3-mini.request.port or citadel_models.mixtral-8x7b.request.port.",
                "Port 31400 on 127.0.0.1 is wanted by the upstream of mixtral-8x7b and by the state of phi-3-mini: change"
                " citadel_model_overrides.phi-3-mini.request.port or citadel_models.mixtral-8x7b.request.port.",
                "Port 41400 for the upstream of phi-3-mini is inside the ephemeral range 32768-60999, where the kernel may hand it to an"
                " outgoing connection: change citadel_model_overrides.phi-3-mini.request.port.",
            ],
        ),
        (
            port_override("phi-3-mini", 8405),
            [
                "Port 8405 on 127.0.0.1 is wanted by the API of phi-3-mini and by the edge's own metrics: change"
                " citadel_model_overrides.phi-3-mini.request.port."
            ],
        ),
        (
            port_override("phi-3-mini", 8406),
            [
                "Port 8406 on 127.0.0.1 is wanted by the API of phi-3-mini and by the edge's state of the models: change"
                " citadel_model_overrides.phi-3-mini.request.port."
            ],
        ),
        (
            port_override("phi-3-mini", 9099),  # its metrics are on 9100, but on the server's address, where no node exporter is
            [],
        ),
        (
            port_override("phi-3-mini", 65000),
            [
                "Port 75000 for the state of phi-3-mini is beyond 65535: change citadel_model_overrides.phi-3-mini.request.port.",
                "Port 85000 for the upstream of phi-3-mini is beyond 65535: change citadel_model_overrides.phi-3-mini.request.port.",
            ],
        ),
    ],
)
def test_collisions_are_named_on_both_sides(overrides: dict[str, Any], sentences: list[str]) -> None:
    if sentences:
        assert list(problems_of(overrides=overrides)) == sentences
    else:
        assert production_plan(overrides=overrides)


@pytest.mark.parametrize(
    ("entry", "sentences"),
    [
        (
            listener("0.0.0.0", 11402, "web.service"),
            [
                "Port 11402 for the metrics of hermes-2 is taken by web.service on 0.0.0.0: stop it or change"
                " citadel_models.hermes-2.request.port.",
                "Port 11402 for the API of openchat-3.5 is taken by web.service on 0.0.0.0: stop it or change"
                " citadel_models.openchat-3.5.request.port.",
            ],
        ),
        (
            listener("127.0.0.1", 31403),
            [
                "Port 31403 for the upstream of phi-3-mini is taken by a program that belongs to no unit on 127.0.0.1: stop it or change"
                " citadel_models.phi-3-mini.request.port."
            ],
        ),
        (
            listener("192.168.10.29", 9090, "cockpit.service"),
            [
                "Port 9090 for Prometheus is taken by cockpit.service on 192.168.10.29: stop it or change"
                " citadel_plan_settings.prometheus_port."
            ],
        ),
        (listener("::", 9100, "other.service"), ["Port 9100 for the node exporter is taken by other.service on ::: stop it."]),
        (listener("192.168.10.29", 31403), []),  # nothing of ours listens on 31403 beyond loopback
        (listener("127.0.0.53", 11402), []),  # another loopback address
        (listener("::1", 11402), []),
        (listener("0.0.0.0", 11402, "citadel-llm@openchat-3.5.service"), []),  # ours: a second run plans what the first did
        (listener("192.168.10.29", 8000, "haproxy.service"), []),
        (listener("127.0.0.1", 9090, "prometheus.service"), []),
        (listener("127.0.0.1", 9100, "prometheus-node-exporter.service"), []),
        (listener("0.0.0.0", 5432, "postgresql.service"), []),
    ],
)
def test_foreign_listeners_count_where_they_bind(entry: dict[str, Any], sentences: list[str]) -> None:
    facts = host_facts(listening_ports=[entry])
    if sentences:
        assert list(problems_of(facts=facts)) == sentences
    else:
        assert production_plan(facts=facts)


def test_five_hundred_models_do_not_share_a_port() -> None:
    # The rule that three ports are asked for twice must not hide a real collision between two models.
    template = production_models()["phi-3-mini"]
    models = {f"model-{number}": {**template, "request": {**template["request"], "port": 11400 + number}} for number in range(500)}
    problems = problems_of(models={**models, "late": {**template, "request": {**template["request"], "port": 11417}}})
    assert any("late.request.port is 11417, which" in sentence or "model-17.request.port is 11417" in sentence for sentence in problems)
    assert not any("is wanted by" in sentence for sentence in problems)
