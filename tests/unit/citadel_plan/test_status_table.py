"""The table of what a host does, and the sentences for what is not well."""

from __future__ import annotations

from typing import Any

import pytest

from citadel_plan import status_problems, status_table
from citadel_plan.columns import COLUMNS
from unit.plan_examples import PROJECT

HOST = "hx-llm-server-01"
MIB = 2**20
GIB = 2**30
JOURNAL = "journalctl -u citadel-llm@hermes-2.service -n 50"
PARTS = {
    "gateway": "citadel-llm@unified-api-gateway.service",
    "edge": "haproxy.service",
    "prometheus": "prometheus.service",
    "node exporter": "prometheus-node-exporter.service",
}


def service(name: str, kind: str, unit: str, **changes: object) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "unit": unit,
        "asked": "127.0.0.1:21401/state",
        "answers": True,
        "load_state": "loaded",
        "active_state": "active",
        "sub_state": "running",
        "result": "success",
        "restarts": 0,
        "status_text": "",
        "since": "2026-11-24 03:05:10",
        "held_bytes": 35 * MIB,
        "limit_bytes": None,
        "planned_limit_bytes": None,
        "version": "1.2.3",
        **changes,
    }


def model(name: str = "hermes-2", **changes: object) -> dict[str, Any]:
    well = {
        "state": "generating",
        "detail": "generating",
        "status_text": "generating since 03:05:10",
        "held_bytes": 1312 * MIB,
        "limit_bytes": 1568 * MIB,
        "planned_limit_bytes": 1568 * MIB,
        "version": "0.32.0-1a2b3c4d5e6f",
        "breaker": "closed",
        "running": 3,
        "waiting": 12,
        "kv_cache_percent": 12,
    }
    return service(name, "model", f"citadel-llm@{name}.service", **{**well, **changes})


def down(**changes: object) -> dict[str, Any]:
    """A model of which nothing answers."""
    silent = {"answers": False, "state": None, "detail": "", "running": None, "waiting": None, "kv_cache_percent": None}
    gone = {"held_bytes": None, "limit_bytes": None, "active_state": "inactive", "sub_state": "dead", "status_text": "", "breaker": "open"}
    return model(**{**silent, **gone, **changes})


def status(*models: dict[str, Any], parts: dict[str, dict[str, Any]] | None = None, **changes: object) -> dict[str, Any]:
    """A host with these models and all else well; `parts` are changes by name of the part."""
    others = [service(name, name, unit) for name, unit in PARTS.items()]
    limits = {"limit_bytes": 2048 * MIB, "planned_limit_bytes": 2048 * MIB}
    others[0] |= {"held_bytes": 912 * MIB, "workers_bytes": [381 * MIB, 380 * MIB]} | limits
    for other, version in zip(others, ("1.106.2-a1b2c3d4e5f6", "2.6.12-1+deb12u4", "2.42.0+ds", "1.5.0"), strict=True):
        other["version"] = version
    return {
        "now": "2026-11-24 03:12:07 CET",
        "plan": {"file": "/opt/citadel/config/plan.json", "problem": "", "written": "2026-11-23 18:00:11", "device": "cpu"},
        "slice": {"held_bytes": 6 * GIB, "limit_bytes": 8 * GIB, "planned_limit_bytes": 8 * GIB},
        "services": [*models, *(other | (parts or {}).get(other["name"], {}) for other in others)],
        "alerts": [],
        "units_problem": "",
        "alerts_problem": "",
        "unplanned": [],
        **changes,
    }


def problems(*models: dict[str, Any], **changes: object) -> list[str]:
    return status_problems(status(*models, **changes), host=HOST)


def test_table_of_a_host_that_is_well() -> None:
    large = model("mixtral-8x7b", held_bytes=int(49.6 * GIB), limit_bytes=90 * GIB, planned_limit_bytes=90 * GIB, running=0, waiting=0)
    assert status_table(status(large, model()), host=HOST).splitlines() == [
        "hx-llm-server-01 (cpu) at 2026-11-24 03:12:07 CET; memory of models and gateway together: 6144 of 8192 MiB",
        "service        state       since           restarts            memory  breaker  run+wait   KV  version",
        "mixtral-8x7b   generating  11-24 03:05:10         0  49.6 of 90.0 GiB  closed        0+0  12%  0.32.0-1a2b3c4d5e6f",
        "hermes-2       generating  11-24 03:05:10         0  1312 of 1568 MiB  closed       3+12  12%  0.32.0-1a2b3c4d5e6f",
        "gateway        answering   11-24 03:05:10         0   912 of 2048 MiB                          1.106.2-a1b2c3d4e5f6",
        "  2 workers: 381, 380 MiB",
        "edge           answering   11-24 03:05:10         0            35 MiB                          2.6.12-1+deb12u4",
        "prometheus     answering   11-24 03:05:10         0            35 MiB                          2.42.0+ds",
        "node exporter  answering   11-24 03:05:10         0            35 MiB                          1.5.0",
        "plan of 2026-11-23 18:00:11 (/opt/citadel/config/plan.json): in force",
        "All well.",
    ]


REASON = "failed at 03:02:40 while loading weights 3/12: VLLM::Worker (process 12) ended"
FAILED = {"active_state": "failed", "sub_state": "failed", "result": "exit-code", "restarts": 5, "status_text": REASON}
LOADING = {"state": "process", "detail": "loading weights 3/12", "active_state": "activating", "sub_state": "start", "breaker": "open"}


def test_the_page_shows_a_night_as_it_is_shown() -> None:
    mixtral = model("mixtral-8x7b", held_bytes=int(49.6 * GIB), limit_bytes=90 * GIB, planned_limit_bytes=90 * GIB, kv_cache_percent=41)
    openchat = model("openchat-3.5", **LOADING, held_bytes=702 * MIB, running=None, waiting=None, kv_cache_percent=None)
    openchat |= {"since": "2026-11-24 03:11:52", "restarts": 1}
    phi = model("phi-3-mini", running=0, waiting=0, kv_cache_percent=0, limit_bytes=2048 * MIB)
    night = status(mixtral, down(**FAILED, since="2026-11-24 03:02:40"), openchat, phi)
    night["slice"] = {"held_bytes": int(53.1 * GIB), "limit_bytes": 98 * GIB, "planned_limit_bytes": 98 * GIB}
    page = (PROJECT / "docs" / "status.md").read_text(encoding="utf-8")
    assert status_table(night, host=HOST) in page


def test_table_of_a_model_that_has_failed() -> None:
    lines = status_table(status(down(**FAILED)), host=HOST).splitlines()
    assert lines[2].split() == ["hermes-2", "failed", "11-24", "03:05:10", "5", "-", "open", "-", "-", "0.32.0-1a2b3c4d5e6f"]
    assert lines[3] == f"  {REASON}; result: exit-code"
    assert lines[-3:] == [
        "plan of 2026-11-23 18:00:11 (/opt/citadel/config/plan.json): in force for the 1 of 2 services that run",
        "Not well (docs/status.md):",
        f"- hermes-2 has failed (exit-code). Next: {JOURNAL}",
    ]


def test_a_plan_of_which_nothing_runs_is_not_called_in_force() -> None:
    stopped = {"answers": False, "active_state": "inactive", "held_bytes": None, "limit_bytes": None}
    found = status(down(), parts={"gateway": stopped})
    assert "plan of 2026-11-23 18:00:11 (/opt/citadel/config/plan.json): none of its services runs" in status_table(found, host=HOST)


CASES = {
    "generating": (model(), "generating", None),
    "loading": (
        model(**LOADING),
        "process",
        "hermes-2 is not ready (loading weights 3/12). Next: systemctl status citadel-llm@hermes-2.service",
    ),
    "loaded": (
        model(state="loaded", detail="waiting for its first answer", breaker="open"),
        "loaded",
        "hermes-2 is not ready (waiting for its first answer). Next: systemctl status citadel-llm@hermes-2.service",
    ),
    "hung": (
        model(state="hung", detail="hung since 03:05:10: no token for 90 s", breaker="open"),
        "hung",
        f"hermes-2 is hung and about to be restarted. Next: {JOURNAL}",
    ),
    "stopping": (
        model(state="process", detail="stopping", active_state="deactivating", breaker="open"),
        "process",
        "hermes-2 is not ready (stopping). Next: systemctl status citadel-llm@hermes-2.service",
    ),
    "starting, nothing answers yet": (
        down(active_state="activating", sub_state="start-pre"),
        "activating",
        "hermes-2 is not ready (activating). Next: systemctl status citadel-llm@hermes-2.service",
    ),
    "between two starts": (
        down(active_state="activating", sub_state="auto-restart", result="watchdog"),
        "auto-restart",
        f"hermes-2 is started again after a failure (watchdog). Next: {JOURNAL}",
    ),
    "stopped": (down(), "inactive", "hermes-2 is stopped. Next: systemctl start citadel-llm@hermes-2.service"),
    "not installed": (down(load_state="not-found"), "missing", "hermes-2 is not installed. Next: ansible-playbook site.yml"),
    "active and silent": (
        down(active_state="active", sub_state="running"),
        "silent",
        f"hermes-2 does not answer at 127.0.0.1:21401/state. Next: {JOURNAL}",
    ),
    "failed while another process has its port": (
        model(active_state="failed", sub_state="failed", result="oom-kill", held_bytes=None, limit_bytes=None, breaker="open"),
        "failed",
        f"hermes-2 has failed (oom-kill). Next: {JOURNAL}",
    ),
}


@pytest.mark.parametrize(("shown", "state", "sentence"), CASES.values(), ids=CASES)
def test_each_state_has_its_word_and_its_sentence(shown: dict[str, Any], state: str, sentence: str | None) -> None:
    assert status_table(status(shown), host=HOST).splitlines()[2].split()[1] == state
    assert problems(shown) == ([] if sentence is None else [sentence])


@pytest.mark.parametrize("name", PARTS)
def test_every_part_that_is_down_is_a_row_and_a_sentence(name: str) -> None:
    stopped = {"answers": False, "active_state": "failed", "result": "signal", "held_bytes": None, "limit_bytes": None}
    found = status(model(breaker=None if name == "edge" else "closed"), parts={name: stopped})
    assert status_problems(found, host=HOST) == [f"{name} has failed (signal). Next: journalctl -u {PARTS[name]} -n 50"]
    assert any(line.startswith(f"{name} ") and " failed " in line for line in status_table(found, host=HOST).splitlines())


def test_a_breaker_that_is_open_before_a_model_that_generates() -> None:
    opened = "the edge's breaker of hermes-2 is open, though it generates. Next: journalctl -u haproxy -n 50"
    assert problems(model(breaker="open")) == [opened]
    assert problems(model(breaker=None)) == [opened.replace(" open,", " not there,")]


@pytest.mark.parametrize(("limit", "words"), [(1544 * MIB, "1544 MiB"), (None, "no limit")])
def test_a_limit_that_is_not_the_planned_one_is_named(limit: int | None, words: str) -> None:
    found = status(model(limit_bytes=limit), slice={"held_bytes": GIB, "limit_bytes": 7 * GIB, "planned_limit_bytes": 8 * GIB})
    deviations = f"hermes-2: {words} instead of 1568 MiB; all together: 7168 MiB instead of 8192 MiB"
    assert status_problems(found, host=HOST) == [f"the plan is not in force: {deviations}. Next: ansible-playbook site.yml --check --diff"]
    assert "plan of 2026-11-23 18:00:11 (/opt/citadel/config/plan.json): not in force" in status_table(found, host=HOST).splitlines()


def test_a_unit_that_nobody_has_planned() -> None:
    unit = "citadel-llm@retired.service"
    assert problems(model(), unplanned=[unit]) == [f"{unit} runs and is not in the plan. Next: systemctl status {unit}"]


def test_a_systemd_that_does_not_tell_is_one_sentence_and_not_one_for_each_unit() -> None:
    unknown = {"load_state": None, "active_state": None, "sub_state": None, "result": None, "restarts": None, "since": ""}
    unheld = {"held_bytes": None, "limit_bytes": None}
    found = status(model(**unknown, **unheld), parts=dict.fromkeys(PARTS, unknown | unheld), units_problem="Failed to connect to bus")
    sentence = "systemd does not tell of its units (Failed to connect to bus). Next: systemctl is-system-running"
    assert status_problems(found, host=HOST) == [sentence]
    assert status_table(found, host=HOST).splitlines()[2].split()[:5] == ["hermes-2", "generating", "-", "-", "-"]


def test_alerts_that_cannot_be_read_are_not_none() -> None:
    sentence = "Prometheus does not tell which alerts fire (it answers 503). Next: journalctl -u prometheus -n 50"
    assert status_problems(status(model(), alerts_problem="it answers 503"), host=HOST) == [sentence]


def test_nothing_deployed_is_one_sentence() -> None:
    found = status(
        services=[], plan={"file": "/opt/citadel/config/plan.json", "problem": "does not exist", "written": None, "device": None}
    )
    sentence = f"Nothing is deployed on {HOST}: /opt/citadel/config/plan.json does not exist. Next: ansible-playbook site.yml"
    assert status_table(found, host=HOST) == sentence
    assert status_problems(found, host=HOST) == [sentence]
    found["unplanned"] = ["citadel-llm@hermes-2.service"]
    assert "does not exist, though there run citadel-llm@hermes-2.service. Next: " in status_problems(found, host=HOST)[0]
    found["plan"]["problem"] = "is not JSON (line 1)"
    assert status_problems(found, host=HOST)[0].startswith(
        f"{HOST} has no plan to go by: /opt/citadel/config/plan.json is not JSON (line 1)"
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "Task failed: Failed to connect to the host via ssh: ssh: connect to host 192.0.2.1 port 22: No route to host",
            "connect to host 192.0.2.1 port 22: No route to host",
        ),
        (
            "Task failed: Data could not be sent to remote host '192.0.2.1'. Make sure this host can be reached over SSH: Broken pipe",
            "its ssh ended before anything could be sent",
        ),
    ],
    ids=["ssh says why", "ssh ended first"],
)
def test_a_host_that_cannot_be_reached_is_one_sentence(said: str, why: str) -> None:
    sentence = f"{HOST} cannot be reached: {why}. Next: ssh {HOST}"
    assert status_problems({"unreachable": True, "msg": said}, host=HOST) == [sentence]
    assert status_table({"unreachable": True, "msg": said}, host=HOST) == sentence


def test_whatever_is_said_no_line_is_wider_than_a_terminal_or_moves_its_cursor() -> None:
    long = {
        "version": "2.6.12-1+deb12u4~bpo11+1+local",
        "held_bytes": 1100 * GIB,
        "limit_bytes": 1200 * GIB,
        "planned_limit_bytes": 1200 * GIB,
        "restarts": 12345678,
        "running": 1024,
        "waiting": 12345,
        "breaker": "maintenance",
        "kv_cache_percent": 100,
        "active_state": "deactivating",
        "answers": False,
        "detail": "",
        "status_text": "stopping\x1b[2J\r\n" + "with very many words " * 20,
    }
    text = status_table(status(model("a" * 63, **long)), host=HOST)
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert [line for line in text.splitlines() if not line.isprintable() or line != line.rstrip()] == []


def test_an_alert_that_fires_is_not_well_and_has_its_page() -> None:
    alert = {"name": "OomKill", "severity": "critical", "since": "2026-11-24 03:05:10", "summary": "The kernel has killed\x1b a process."}
    assert status_problems(status(model(), alerts=[alert]), host=HOST) == [
        "the alert OomKill (critical) fires since 11-24 03:05:10: The kernel has killed a process. Next: docs/runbooks/OomKill.md"
    ]
