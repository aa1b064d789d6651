"""Every URL of the specification answers as it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from lab_host import ask


def names_in_metrics(text: str) -> set[str]:
    return set(re.findall(r'^vllm:[^{]*\{[^}]*model_name="([^"]+)"', text, re.MULTILINE))


def test_health_of_all(plan: dict[str, Any]) -> None:
    answer = ask(plan["gateway"]["port"], "/health")
    assert answer.status == 200
    assert answer.json()["models"] == {service["name"]: "healthy" for service in plan["services"]}


def test_models_are_listed_with_capabilities(plan: dict[str, Any]) -> None:
    listed = {model["id"]: model for model in ask(plan["gateway"]["port"], "/v1/models").json()["data"]}
    assert set(listed) == {service["name"] for service in plan["services"]}
    for service in plan["services"]:
        assert listed[service["name"]]["max_input_tokens"] == service["context_tokens"]
        assert listed[service["name"]]["mode"] == "chat"


def test_answer_without_a_model(plan: dict[str, Any]) -> None:
    answer = ask(
        plan["gateway"]["port"], "/v1/chat/completions", {"messages": [{"role": "user", "content": "Phase 1 test"}], "max_tokens": 50}
    )
    assert answer.status == 200
    assert answer.json()["model"] in {service["name"] for service in plan["services"]}
    assert 0 < answer.json()["usage"]["completion_tokens"] <= 50


def test_answer_of_a_named_model(plan: dict[str, Any], service: dict[str, Any]) -> None:
    body = {"model": service["name"], "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    answer = ask(plan["gateway"]["port"], "/v1/chat/completions", body)
    assert answer.status == 200
    assert answer.json()["model"] == service["name"]
    assert answer.json()["usage"]["completion_tokens"] <= 4


def test_completion_of_a_named_model(plan: dict[str, Any], service: dict[str, Any]) -> None:
    answer = ask(plan["gateway"]["port"], "/v1/completions", {"model": service["name"], "prompt": "once", "max_tokens": 4})
    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] <= 4


def test_gateway_metrics(plan: dict[str, Any]) -> None:
    answer = ask(plan["gateway"]["port"], "/metrics")
    assert answer.status == 200
    assert "litellm_" in answer.text


def test_health_of_each_model(service: dict[str, Any]) -> None:
    assert ask(service["api_port"], "/health").status == 200


def test_metrics_port_shows_the_model_one_port_below(service: dict[str, Any]) -> None:
    answer = ask(service["metrics_port"], "/metrics")
    assert answer.status == 200
    assert names_in_metrics(answer.text) == {service["name"]}


def test_model_port_lists_its_own_model(service: dict[str, Any]) -> None:
    assert [model["id"] for model in ask(service["api_port"], "/v1/models").json()["data"]] == [service["name"]]


def test_first_port_shows_its_own_metrics(plan: dict[str, Any]) -> None:
    first = plan["services"][0]
    assert names_in_metrics(ask(first["api_port"], "/metrics").text) == {first["name"]}


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/"])
def test_last_metrics_port_serves_metrics_only(plan: dict[str, Any], path: str) -> None:
    assert ask(plan["services"][-1]["metrics_port"], path).status == 404


@pytest.mark.parametrize(
    "path", ["/model/info", "/v1/model/info", "/key/generate", "/config/yaml", "/ui", "/docs", "/openapi.json", "/metrics/../model/info"]
)
def test_admin_routes_are_not_to_be_had(plan: dict[str, Any], path: str) -> None:
    assert ask(plan["gateway"]["port"], path).status in {401, 403, 404}


@pytest.mark.parametrize("path", ["/invocations", "/tokenize", "/docs", "/openapi.json", "/version"])
def test_unguarded_routes_of_vllm_are_not_to_be_had(service: dict[str, Any], path: str) -> None:
    assert ask(service["api_port"], path).status in {401, 403, 404}


def test_prometheus_sees_everything(plan: dict[str, Any]) -> None:
    answer = ask(plan["monitoring"]["prometheus_port"], "/api/v1/targets?state=active")
    assert answer.status == 200
    targets = {
        (target["labels"]["job"], target["labels"].get("service", "")): target["health"]
        for target in answer.json()["data"]["activeTargets"]
    }
    for service in plan["services"]:
        assert any(name == service["name"] for _, name in targets)
    assert len(targets) == len(plan["services"]) + 6
    assert {target: health for target, health in targets.items() if health != "up"} == {}
