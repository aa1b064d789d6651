"""Alerts, live: a real fault, the seconds until its alert fires and until all is well again, and what a receiver is told.

The faults are those of ../faults. Two of the times that rules wait are shortened, by their variables: by default a model may load for
half an hour, and a restart is forgotten after a quarter. The rows go to build/alerts.md and build/alerts.json.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from faults.test_faults import FAULTS, shell
from lab_host import ADDRESS, HOST, deploy, health, until
from prometheus import Prometheus
from receiver import Receiver, receiving
from rows import keep_row
from testinfra.host import Host

NOT_GENERATING_SECONDS = 120
RESTART_LOOP_SECONDS = 600
GROUP_INTERVAL_SECONDS = 150
FIRE_SECONDS = 600
END_SECONDS = 1200
WELL_SECONDS = 600
ABSENT = "lab-absent"
TARGETS = "/etc/prometheus/citadel"
SILENT_WHERE_A_MODEL_IS_DOWN = {"BreakerOpen", "ModelNotGenerating"}


@dataclass(frozen=True)
class Live:
    """What breaks, at which service, and the alerts that are to fire for it, by alert the label that names the service."""

    what: str
    inject: Callable[[Host, str], None]
    alerts: tuple[str, ...]
    mend: Callable[[Host, str], None] | None = None
    service: str = "hermes-2"


def both(*steps: Callable[[Host, str], None] | None) -> Callable[[Host, str], None]:
    def run(server: Host, name: str) -> None:
        for step in steps:
            if step:
                step(server, name)

    return run


LIVE = [
    # Refused by the edge at once, it does not generate, is started again and again, and after five failures stays failed.
    Live(
        "config.json corrupt at a restart",
        FAULTS["config.json corrupt"].inject,
        ("BreakerOpen", "ModelNotGenerating", "RestartLoop", "ModelDown"),
        both(
            FAULTS["config.json corrupt"].mend,
            shell("systemctl reset-failed citadel-llm@NAME; systemctl --no-block start citadel-llm@NAME"),
        ),
    ),
    Live("a request outgrows the memory limit", FAULTS["a request outgrows the memory limit"].inject, ("OomKill",), service="phi-3-mini"),
    Live(
        "the node exporter hangs (SIGSTOP)",
        shell("systemctl kill --signal=STOP prometheus-node-exporter"),
        ("TargetMissing",),
        shell("systemctl kill --signal=CONT prometheus-node-exporter"),
        service="node",
    ),
]


@pytest.fixture(scope="module")
def prometheus(plan: dict[str, Any]) -> Prometheus:
    return Prometheus(plan["monitoring"]["prometheus_port"])


def own_address() -> str:
    """Address of this machine on the lab's network. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect((ADDRESS, 9))
        return str(asked.getsockname()[0])


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A receiver on the lab's own network, named by the inventory's variable, while the tests run."""
    with receiving(own_address()) as found:
        changes = {
            "monitoring_webhook_urls": [found.url],
            "monitoring_group_interval_seconds": GROUP_INTERVAL_SECONDS,
            "monitoring_not_generating_seconds": NOT_GENERATING_SECONDS,
            "monitoring_restart_loop_seconds": RESTART_LOOP_SECONDS,
        }
        try:
            deploy("--tags", "monitoring", "--extra-vars", json.dumps(changes))
            yield found
        finally:
            deploy("--tags", "monitoring")


@pytest.fixture
def well(server: Host, plan: dict[str, Any]) -> None:
    """Start from a platform in which all is well."""
    names = {service["name"] for service in plan["services"]}
    port = plan["gateway"]["port"]
    assert until(lambda: health(port) == dict.fromkeys(names, "healthy"), WELL_SECONDS) is not None, health(port)
    server.check_output("systemctl reset-failed")


def firing(prometheus: Prometheus, host: str = HOST) -> set[tuple[str, str]]:
    """Alerts of a host that fire: name and service."""
    alerts = [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing" and alert["labels"].get("host") == host]
    return {(alert["labels"]["alertname"], alert["labels"].get("model") or alert["labels"].get("service", "")) for alert in alerts}


def since(began: float, condition: Callable[[], bool], seconds: float) -> float | None:
    """Wait until the condition holds; the seconds from `began`, None where it never did."""
    return None if until(condition, seconds) is None else time.monotonic() - began


# First, because alerts that fire already would be in its notifications.
@pytest.mark.usefixtures("well")
def test_a_host_without_models_is_one_notification_and_its_end_another(
    server: Host, plan: dict[str, Any], prometheus: Prometheus, receiver: Receiver
) -> None:
    """And a host that does not answer at all is one about the host, not about what it does not tell."""
    models = {service["name"] for service in plan["services"]}
    units = " ".join(service["unit"] for service in plan["services"])
    name_a_host_that_is_not_there(server, plan)
    server.check_output(f"systemctl stop {units}")
    began = time.monotonic()
    try:
        # They follow from ModelDown and HostDown, and fire later than both.
        follows = {(alert, name) for alert in SILENT_WHERE_A_MODEL_IS_DOWN for name in models}
        missing = {("TargetMissing", name) for name in models}
        seconds = since(began, lambda: firing(prometheus) >= follows and firing(prometheus, ABSENT) >= missing, FIRE_SECONDS)
        assert seconds is not None, firing(prometheus)
        assert not firing(prometheus) & missing, "what does not run need not be asked"
        assert {("HostDown", ""), ("TargetMissing", "node"), ("FiguresMissing", "")} <= firing(prometheus, ABSENT)
        assert until(lambda: silenced(server) >= follows, FIRE_SECONDS) is not None, silenced(server)
        notified = until(lambda: any(about("ModelDown", notification) for notification in receiver.notifications), FIRE_SECONDS)
        assert notified is not None, "nobody is told"
        kept_back = silenced(server)
        told = list(receiver.notifications)
    finally:
        server.check_output(f"systemctl start --no-block {units}")
    first = [notification for notification in told if about("ModelDown", notification)]
    assert len(first) == 1, "one for the host, not one for each model"
    assert about("ModelDown", first[0]) == models
    assert {alert["labels"]["alertname"] for alert in first[0]["alerts"]} & SILENT_WHERE_A_MODEL_IS_DOWN == set()
    absent = [notification for notification in told if notification["groupLabels"]["host"] == ABSENT]
    assert [[alert["labels"]["alertname"] for alert in notification["alerts"]] for notification in absent] == [["HostDown"]]

    def ended() -> set[str]:
        return set().union(*(about("ModelDown", notification, status="resolved") for notification in receiver.notifications))

    assert until(lambda: ended() == models, END_SECONDS) is not None, f"nobody is told that it is over: {ended()}"
    later = [notification for notification in receiver.notifications[len(told) :] if notification["groupLabels"]["host"] == HOST]
    # What has ended unsaid is in the list of what has ended.
    said = {alert["labels"]["alertname"] for notification in later for alert in notification["alerts"] if alert["status"] == "firing"}
    keep_row(
        "notifications",
        {
            "what": "all models of the host stopped, then started",
            "notifications while they were down": len(first),
            "alerts in it": len(first[0]["alerts"]),
            "alerts kept back": len(kept_back),
            "notifications of the end": len(later),
            "status of the last": later[-1]["status"],
        },
    )
    assert said & SILENT_WHERE_A_MODEL_IS_DOWN == set(), "what followed from it is not said afterwards either"


def about(name: str, notification: dict[str, Any], status: str = "firing") -> set[str]:
    """Models that a notification says it of."""
    return {
        alert["labels"]["model"] for alert in notification["alerts"] if alert["labels"]["alertname"] == name and alert["status"] == status
    }


def silenced(server: Host) -> set[tuple[str, str]]:
    """Alerts of the lab host that Alertmanager keeps back because of others: name and service."""
    alerts = json.loads(server.check_output("curl --silent --fail http://127.0.0.1:9093/api/v2/alerts"))
    return {
        (alert["labels"]["alertname"], alert["labels"].get("model") or alert["labels"].get("service", ""))
        for alert in alerts
        if alert["status"]["inhibitedBy"] and alert["labels"]["host"] == HOST
    }


def name_a_host_that_is_not_there(server: Host, plan: dict[str, Any]) -> None:
    """Have Prometheus ask another host, on which nobody answers. The next deployment takes it out of the lists."""
    others = {"models": [(service["name"], {"model": service["name"]}) for service in plan["services"]], "node": [("node", {})]}
    for job, services in others.items():
        file = server.file(f"{TARGETS}/{job}.json")
        targets = json.loads(file.content_string)
        targets += [{"targets": ["127.0.0.1:9"], "labels": {"host": ABSENT, "service": name, **labels}} for name, labels in services]
        server.check_output(f"printf %%s %s > {TARGETS}/{job}.json", json.dumps(targets))


@pytest.mark.usefixtures("well", "receiver")
@pytest.mark.parametrize("live", LIVE, ids=lambda live: " and ".join(live.alerts))
def test_alert_fires_and_ends(server: Host, prometheus: Prometheus, live: Live) -> None:
    expected = {(alert, live.service) for alert in live.alerts}
    assert until(lambda: not firing(prometheus) & expected, END_SECONDS) is not None, "one of an earlier fault fires still"
    others = firing(prometheus)
    fired: dict[tuple[str, str], float] = {}
    began = time.monotonic()

    def all_have_fired() -> bool:
        fired.update({alert: time.monotonic() - began for alert in firing(prometheus) & expected if alert not in fired})
        return set(fired) == expected

    live.inject(server, live.service)
    try:
        assert until(all_have_fired, FIRE_SECONDS) is not None, f"only {fired} of {expected}; {firing(prometheus)}"
        # Nobody else is accused. The first may have ended when the last fires.
        names = {name for name, _ in expected}
        assert {(name, service) for name, service in firing(prometheus) - others if name in names} <= expected
    finally:
        mended = time.monotonic() if live.mend else began
        if live.mend:
            live.mend(server, live.service)
    ended: dict[tuple[str, str], float] = {}

    def all_have_ended() -> bool:
        ended.update({alert: time.monotonic() - mended for alert in expected - firing(prometheus) if alert not in ended})
        return set(ended) == expected

    assert until(all_have_ended, END_SECONDS) is not None, f"fires still: {firing(prometheus)}"
    rules = {rule["name"]: rule for rule in prometheus.rules() if rule["type"] == "alerting"}
    for alert, seconds in sorted(fired.items(), key=lambda entry: entry[1]):
        keep_row(
            "alerts",
            {
                "alert": alert[0],
                "fault": live.what,
                "the rule waits, s": round(rules[alert[0]]["duration"]),
                "fired after s": round(seconds),
                "ended after s": round(ended[alert]),
            },
        )
