"""Alertmanager: its configuration, judged by amtool, and what it does with it, seen by a receiver on loopback."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver, receiving

from edge.haproxy import tool, until
from monitoring.programs import running
from ports import free_port
from rendering import PROJECT, render, role_defaults, role_variables_file

TEMPLATES = PROJECT / "roles" / "monitoring" / "templates"
MAIL = {
    "monitoring_email_to": ["operators@example.org"],
    "monitoring_email_from": "citadel@example.org",
    "monitoring_email_server": "mail.example.org:587",
    "monitoring_email_user": "citadel",
    "monitoring_email_password": "password of the mail server",
}
WEBHOOK = {"monitoring_webhook_urls": ["http://127.0.0.1:9/alerts"], "monitoring_webhook_token": "token of the webhook"}


def rendered(template: str, **changes: Any) -> str:  # noqa: ANN401  # role variables are of any type
    return render(TEMPLATES / template, role_defaults("monitoring") | role_variables_file("monitoring") | changes)


def amtool(*arguments: object) -> str:
    done = subprocess.run([tool("amtool"), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("given", [{}, WEBHOOK, MAIL, WEBHOOK | MAIL], ids=["nobody", "webhook", "mail", "both"])
def test_amtool_accepts_it_and_sends_everything_to_the_one_receiver(tmp_path: Path, given: dict[str, Any]) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(rendered("alertmanager.yml.j2", **given), encoding="utf-8")
    assert "6 inhibit rules" in amtool("check-config", file)
    for labels in (
        ["alertname=ModelDown", "severity=critical", "host=a", "model=m"],
        ["alertname=DiskFills", "severity=warning", "host=b"],
    ):
        assert amtool("config", "routes", "test", f"--config.file={file}", *labels).split() == ["operators"]


def test_secrets_stand_in_no_file_but_their_own() -> None:
    given = WEBHOOK | MAIL
    texts = [rendered(template, **given) for template in ("alertmanager.yml.j2", "prometheus-alertmanager.conf.j2", "alertmanager.env.j2")]
    assert [secret for secret in ("password of the mail server", "token of the webhook") if any(secret in text for text in texts)] == []
    assert "LoadCredential=email-password:/etc/prometheus/citadel/secrets/email-password" in texts[1].splitlines()
    assert "LoadCredential" not in rendered("prometheus-alertmanager.conf.j2")


def test_without_a_receiver_it_talks_to_nobody() -> None:
    assert "IPAddressDeny=any" in rendered("prometheus-alertmanager.conf.j2").splitlines()
    assert "IPAddressDeny=any" not in rendered("prometheus-alertmanager.conf.j2", **WEBHOOK).splitlines()


@contextmanager
def alertmanager(folder: Path, receiver: Receiver) -> Iterator[int]:
    """Run it with a webhook to the receiver; its port."""
    port = free_port()
    (folder / "webhook-token").write_text("token of the webhook")
    (folder / "alertmanager.yml").write_text(
        rendered(
            "alertmanager.yml.j2",
            monitoring_webhook_urls=[receiver.url],
            monitoring_webhook_token="token of the webhook",
            monitoring_group_wait_seconds=2,
            monitoring_group_interval_seconds=2,
            __monitoring_credentials=str(folder),
        ),
        encoding="utf-8",
    )
    words = [f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/data", "--cluster.listen-address="]
    with running(folder, "prometheus-alertmanager", port, *words):
        yield port


def fire(port: int, *alerts: dict[str, str], for_seconds: int = 3600) -> None:
    """Hand alerts over as Prometheus does."""
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + for_seconds))
    body = json.dumps([{"labels": labels, "endsAt": ends} for labels in alerts]).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/v2/alerts", body, {"Content-Type": "application/json"})
    assert urllib.request.urlopen(request, timeout=10).status == 200


def alert(name: str, severity: str = "warning", **labels: str) -> dict[str, str]:
    return {"alertname": name, "severity": severity, "host": "a", **labels}


def said_in(notifications: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Alerts by host; there is one notification for each."""
    said = {
        notification["groupLabels"]["host"]: sorted(
            (entry["labels"]["alertname"], entry["labels"].get("model", "")) for entry in notification["alerts"]
        )
        for notification in notifications
    }
    assert len(notifications) == len(said)
    return said


def test_a_host_whose_models_are_all_down_is_one_notification_and_says_nothing_twice(tmp_path: Path) -> None:
    models = ("m", "n", "o", "p")
    followers = ("BreakerOpen", "TargetMissing", "LatencyBudgetBurns", "QueueGrows")
    alerts = (
        *(alert("ModelDown", "critical", model=model) for model in models),
        *(alert(name, model=model) for model in models for name in followers),
        *(alert("ModelNotGenerating", "critical", model=model) for model in models),
        alert("DiskFills", mountpoint="/"),
        alert("ModelNotGenerating", "critical", host="b", model="m"),
        alert("BreakerOpen", host="b", model="m"),
        alert("BreakerOpen", host="b", model="n"),
        alert("HostDown", "critical", host="c"),
        alert("ModelDown", "critical", host="c", model="m"),
        alert("TargetMissing", host="c", job="node", service="node"),
        alert("FiguresMissing", host="c"),
        alert("TargetMissing", host="d", job="node", service="node"),
        alert("FiguresMissing", host="d"),
        alert("ErrorBudgetBurns", "critical", host="d", window="1h"),
        alert("ErrorBudgetBurns", host="d", window="3d"),
    )
    expected = {
        "a": [("DiskFills", ""), *(("ModelDown", model) for model in models)],
        "b": [("BreakerOpen", "n"), ("ModelNotGenerating", "m")],
        "c": [("HostDown", "")],
        "d": [("ErrorBudgetBurns", ""), ("TargetMissing", "")],
    }
    with receiving("127.0.0.1") as receiver, alertmanager(tmp_path, receiver) as port:
        fire(port, *alerts)
        until(lambda: len(receiver.notifications) >= 4, what="a notification for each host")
        assert said_in(receiver.notifications) == expected
        # What follows goes first, or it would be said after all when what it follows from is gone.
        fire(port, *(entry for entry in alerts if entry["alertname"] in followers), for_seconds=-1)
        fire(port, *alerts, for_seconds=-1)
        until(lambda: len(receiver.notifications) >= 8, what="a notification of the end for each host")
    assert [notification["status"] for notification in receiver.notifications] == ["firing"] * 4 + ["resolved"] * 4
    ended = said_in(receiver.notifications[4:])
    assert [host for host, said in expected.items() if not set(said) <= set(ended[host])] == []
    assert receiver.keys == {"Bearer token of the webhook"}
