"""What a new plan costs: which parts restart, which go on, and the sentences with both figures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_plan import diff_plans, diff_sentences
from citadel_plan.diff import EDGE_UNIT, GATEWAY_RESTARTS, LIVE, PROMETHEUS_UNIT, SERVICE_RESTARTS
from unit.plan_examples import GIB, MIB, host_facts, production_plan

GATEWAY = "unified-api-gateway"
MODELS = ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini"]
PARTS = [*MODELS, GATEWAY, EDGE_UNIT, PROMETHEUS_UNIT]
COSTS = ("start", "restart", "reload", "live")


def as_dict(**arguments: object) -> dict[str, Any]:
    # 200 G: no service has to give to another, so that a change stays where it is made.
    return production_plan(**{"facts": host_facts(memory_gib=200), **arguments}).to_dict()


def request(name: str, **changes: object) -> dict[str, Any]:
    return {"overrides": {name: {"request": changes}}}


def named(cost: dict[str, Any], kind: str) -> list[str]:
    return [entry["service"] for entry in cost[kind]]


@pytest.mark.parametrize(
    ("change", "restart", "live", "reload"),
    [
        ({}, [], [], False),
        (request("hermes-2", cpu_quota_percent=150), [], ["hermes-2"], False),
        (request("hermes-2", cpu_weight=77), [], ["hermes-2"], False),
        (request("hermes-2", io_weight=77), [], ["hermes-2"], False),
        (request("hermes-2", tasks_max=777), [], ["hermes-2"], False),
        # The gateway says to its clients how long a prompt and an answer may be; the queue before the model changes with its places.
        (request("hermes-2", context_tokens=4096), ["hermes-2", GATEWAY], [], True),
        (request("hermes-2", max_output_tokens=1000), [GATEWAY], [], False),
        (request("hermes-2", cpus=3), ["hermes-2", "openchat-3.5", "phi-3-mini", GATEWAY], [], False),  # sets behind it move up
        ({"overrides": {"hermes-2": {"engine": {"extra_arguments": ["--seed=1"]}}}}, ["hermes-2"], [], False),
        ({"overrides": {"hermes-2": {"variants": [{"name": "int8", "source": {"path": "/srv/newer"}}]}}}, ["hermes-2"], [], False),
        (request("phi-3-mini", port=11500), ["phi-3-mini", GATEWAY], [], True),
        ({"overrides": {"hermes-2": {"description": "Another text"}}}, [GATEWAY], [], False),
        (request("hermes-2", target_latency_milliseconds=99), [], [], False),
        ({"gateway": {"workers": 2}}, [GATEWAY], [], False),
        ({"gateway": {"memory": "2100MiB"}}, [GATEWAY], [], False),
        ({"gateway": {"cpu_quota_percent": 99}}, [], [GATEWAY], False),
        ({"gateway": {"port": 8001}}, [GATEWAY], [], True),
        ({"prometheus_port": 9091}, [PROMETHEUS_UNIT], [], True),
        ({"storage_reserve": "30GiB"}, [], [], False),
    ],
)
def test_a_change_costs_exactly_what_it_concerns(change: dict[str, Any], restart: list[str], live: list[str], reload: bool) -> None:
    cost = diff_plans(as_dict(), as_dict(**change))
    assert named(cost, "restart") == sorted(restart, key=PARTS.index)
    assert named(cost, "live") == live
    assert named(cost, "reload") == ([EDGE_UNIT] if reload else [])
    assert (cost["start"], cost["remove"]) == ([], [])
    assert cost["unchanged"] == [name for name in PARTS if name not in {*restart, *live, *named(cost, "reload")}]


def test_the_memory_limit_goes_on_live_only_while_the_cache_keeps_its_size() -> None:
    before = as_dict()
    higher = copy.deepcopy(before)
    hermes = higher["services"][1]
    hermes["memory_max_bytes"] += 100 * MIB
    assert named(diff_plans(before, higher), "live") == ["hermes-2"]
    hermes["kv_cache_bytes"] += 16 * MIB
    cost = diff_plans(before, higher)
    assert named(cost, "restart") == ["hermes-2"]
    assert [reason.split(" ")[:2] for reason in cost["restart"][0]["reasons"]] == [["KV", "cache"], ["memory", "limit"]]


# One edit of a plan each, with the sentence that tells of it.
EDITS: list[tuple[str, str, object, object, str]] = [
    ("hermes-2", "context_tokens", 8192, 4096, "context 8192 tokens -> 4096 tokens"),
    ("hermes-2", "kv_cache_bytes", 5 * GIB, 6 * GIB, "KV cache 5.0 GiB -> 6.0 GiB"),
    ("hermes-2", "kv_cache_bytes", 5 * GIB, 5 * GIB + 16 * MIB, "KV cache 5120 MiB -> 5136 MiB"),
    ("hermes-2", "kv_cache_bytes", 5 * GIB, 5 * GIB + 4096, "KV cache 5368709120 bytes -> 5368713216 bytes"),
    ("hermes-2", "memory_max_bytes", 15 * GIB, 16 * GIB, "memory limit 15.0 GiB -> 16.0 GiB"),
    ("hermes-2", "cpu_quota_percent", 400, None, "CPU quota 400 % -> none"),
    ("hermes-2", "cpu_set", "8-11", "0-3", "CPUs 8-11 -> 0-3"),
    ("hermes-2", "gpu_ids", [0], [0, 1], "GPUs 0 -> 0,1"),
    ("hermes-2", "gpu_memory_utilization", 0.539, 0.6, "share of each GPU 53.9 % -> 60.0 %"),
    ("hermes-2", "enforce_eager", True, False, "eager mode on -> off"),
    ("hermes-2", "extra_arguments", [], ["--seed=1"], "extra arguments none -> --seed=1"),
    (
        "hermes-2",
        "source",
        {"type": "hub", "repository": "a/b", "revision": "c0ffee", "path": None},
        {"type": "host_folder", "repository": None, "revision": None, "path": "/data/b"},
        "weights from a/b at c0ffee -> /data/b",
    ),
    (GATEWAY, "workers", 3, 2, "workers 3 -> 2"),
]


@pytest.mark.parametrize(("name", "key", "old", "new", "sentence"), EDITS, ids=[f"{edit[1]}-{number}" for number, edit in enumerate(EDITS)])
def test_a_change_is_told_with_both_figures(name: str, key: str, old: object, new: object, sentence: str) -> None:
    plans = [as_dict(), as_dict()]
    for each, value in zip(plans, (old, new), strict=True):
        part = each["gateway"] if name == GATEWAY else next(service for service in each["services"] if service["name"] == name)
        part[key] = value
    cost = diff_plans(*plans)
    reasons = [reason for kind in COSTS for entry in cost[kind] if entry["service"] == name for reason in entry["reasons"]]
    assert reasons == [sentence]
    assert sentence in " ".join(" ".join(diff_sentences(cost)).split())


def test_a_model_that_comes_and_one_that_goes() -> None:
    without = as_dict(overrides={"hermes-2": {"enabled": False}})
    gone = diff_plans(as_dict(), without)
    assert gone["remove"] == ["hermes-2"]
    assert "loses hermes-2" in next(entry["reasons"] for entry in gone["restart"] if entry["service"] == GATEWAY)
    assert gone["reload"][0]["reasons"][0] == "loses hermes-2"
    come = diff_plans(without, as_dict())
    assert come["start"] == [{"service": "hermes-2", "reasons": ["is not deployed yet"]}]
    assert come["reload"][0]["reasons"][0] == "gets hermes-2"
    assert diff_sentences(gone)[0] == "stops      hermes-2: no longer planned; its weights stay on the disk"


def test_another_device_restarts_every_model() -> None:
    cpu, cuda = as_dict(facts=host_facts(memory_gib=256)), as_dict(facts=host_facts(memory_gib=256, gpus_gib=(141,)))
    reasons = {entry["service"]: entry["reasons"] for entry in diff_plans(cpu, cuda)["restart"]}
    assert [reasons[name][0] for name in MODELS] == ["device cpu -> cuda"] * 4
    assert GATEWAY not in reasons


@pytest.mark.parametrize("nothing", [None, {}])
def test_on_a_new_host_everything_starts(nothing: dict[str, Any] | None) -> None:
    cost = diff_plans(nothing, as_dict())
    assert named(cost, "start") == PARTS
    assert {kind: cost[kind] for kind in cost if kind != "start"} == {
        "restart": [],
        "reload": [],
        "live": [],
        "unchanged": [],
        "remove": [],
    }


def test_a_plan_of_another_schema_is_not_guessed_at() -> None:
    cost = diff_plans({"schema_version": 0, "services": [{"name": "hermes-2"}, {"name": "old-model"}]}, as_dict())
    assert named(cost, "restart") == PARTS
    assert "schema_version 0 and this one 1" in cost["restart"][0]["reasons"][0]
    assert cost["remove"] == ["old-model"]


def test_nothing_to_say_is_said() -> None:
    assert diff_sentences(diff_plans(as_dict(), as_dict())) == ["nothing changes, nothing restarts"]


SCALARS = st.one_of(st.none(), st.integers(0, 2**45), st.text("ab01-", max_size=4))


@given(st.data())
def test_any_two_plans_are_compared(data: st.DataObject) -> None:
    """Each part under exactly one heading; equal plans cost nothing; a model restarts exactly where a key that it reads differs."""
    before = as_dict()
    after = copy.deepcopy(before)
    edited: dict[str, set[str]] = {}
    lists = {"gpu_ids", "extra_arguments", "numa_nodes", "source"}
    keys = [key for key in (*SERVICE_RESTARTS, *LIVE, "description") if key not in lists]
    for service in after["services"]:
        for key in data.draw(st.lists(st.sampled_from(keys), max_size=3)):
            size = key.endswith(("_bytes", "_percent", "_utilization"))
            service[key] = data.draw(st.integers(0, 2**45)) if size else data.draw(SCALARS)
        edited[service["name"]] = {key for key in keys if service[key] != before["services"][MODELS.index(service["name"])][key]}
    cost = diff_plans(before, after)
    assert sorted([*(name for kind in COSTS for name in named(cost, kind)), *cost["unchanged"], *cost["remove"]]) == sorted(PARTS)
    for name, changed in edited.items():
        expected = "restart" if changed & set(SERVICE_RESTARTS) else "live" if changed & set(LIVE) else "unchanged"
        assert name in (cost["unchanged"] if expected == "unchanged" else named(cost, expected))
    lines = diff_sentences(cost)
    silent = lines == ["nothing changes, nothing restarts"]
    assert silent is (cost["unchanged"] == PARTS)
    assert silent or [name for name in PARTS if name not in " ".join(lines)] == []
    # The way back costs the same.
    back = diff_plans(after, before)
    assert {kind: named(back, kind) for kind in COSTS} == {kind: named(cost, kind) for kind in COSTS}


def test_every_key_that_is_compared_exists_in_a_plan() -> None:
    result = as_dict()
    for service in result["services"]:
        assert {*SERVICE_RESTARTS, *LIVE} <= set(service)
    assert {*GATEWAY_RESTARTS, *LIVE} <= set(result["gateway"])
