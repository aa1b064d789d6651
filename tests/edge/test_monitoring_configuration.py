"""Prometheus's files, judged by promtool; its arguments, by Prometheus and the node exporter themselves."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader

from edge.haproxy import tool, until
from edge.refusals import refusals
from ports import free_port
from rendering import PROJECT, render, role_defaults, role_variables_file

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATES = PROJECT / "roles" / "monitoring" / "templates"
HOST = "hx-llm-server-01"
TARGETS: dict[str, list[dict[str, Any]]] = {
    "models": [
        {"service": "openchat-3.5", "host": HOST, "address": "192.168.10.29", "port": 11403},
        {"service": "mixtral-8x7b", "host": "hx-llm-server-02", "address": "2001:db8::30", "port": 11401},
        {"service": "mixtral-8x7b", "host": HOST, "address": "192.168.10.29", "port": 11401},
    ],
    "gateway": [{"service": "unified-api-gateway", "host": HOST, "address": "192.168.10.29", "port": 8000}],
    "edge": [{"service": "edge", "host": HOST, "address": "127.0.0.1", "port": 8405}],
    "node": [],
}


DROP_INS = ("prometheus", "prometheus-alertmanager", "prometheus-addresses")


def variables(directory: Path, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  # role variables are of any type
    """Gather what the templates see: the defaults, the playbook's part, and `changes`."""
    given = {"monitoring_host": HOST, "monitoring_configuration_directory": str(directory), "monitoring_latency_objectives": []}
    return role_defaults("monitoring") | role_variables_file("monitoring") | given | changes


def write_configuration(
    directory: Path,
    targets: dict[str, list[dict[str, Any]]] = TARGETS,
    **changes: Any,  # noqa: ANN401  # role variables are of any type
) -> Path:
    """Render the lists of targets and prometheus.yml into `directory`; the path of the latter."""
    values = variables(directory, **changes)
    for name, entries in targets.items():
        text = render(TEMPLATES / "targets.json.j2", values | {"__monitoring_job": {"name": name, "targets": entries}})
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
    for name in ("alerts", "recording"):
        text = render(TEMPLATES / "rules" / f"{name}.yml.j2", values)
        (directory / f"rules-{name}.yml").write_text(text, encoding="utf-8")
    configuration = directory / "prometheus.yml"
    configuration.write_text(render(TEMPLATES / "prometheus.yml.j2", values), encoding="utf-8")
    return configuration


def test_promtool_accepts_it_and_finds_every_list(tmp_path: Path) -> None:
    check = subprocess.run(
        [tool("promtool"), "check", "config", str(write_configuration(tmp_path))], capture_output=True, text=True, check=False, timeout=60
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert "WARNING" not in check.stdout + check.stderr, "promtool warns of a list that is missing"
    assert "SUCCESS: 0 rules" not in check.stdout
    assert check.stdout.count("rules found") == 2, "promtool passes over rules that are not there"


@pytest.mark.parametrize(("user", "login"), [("", "authorization"), ("citadel", "basic_auth")])
def test_what_is_measured_can_be_sent_elsewhere_with_a_secret_in_no_file_but_its_own(tmp_path: Path, user: str, login: str) -> None:
    changes = {
        "monitoring_remote_write_url": "https://metrics.example.org/api/v1/write",
        "monitoring_remote_write_user": user,
        "monitoring_remote_write_token": "token of remote write",
        "monitoring_external_labels": {"site": "hx"},
    }
    configuration = write_configuration(tmp_path, **changes)
    check = [tool("promtool"), "check", "config", str(configuration)]
    assert subprocess.run(check, capture_output=True, check=False, timeout=60).returncode == 0
    written = yaml.safe_load(configuration.read_text(encoding="utf-8"))
    (remote,) = written["remote_write"]
    assert written["global"]["external_labels"] == {"site": "hx"}
    assert set(remote) == {"url", login}
    assert "/run/credentials/prometheus.service/remote-write-token" in remote[login].values()
    texts = [render(TEMPLATES / f"{name}.conf.j2", variables(tmp_path, __monitoring_targets=[], **changes)) for name in DROP_INS]
    assert f"LoadCredential=remote-write-token:{tmp_path}/secrets/remote-write-token" in texts[0].splitlines()
    assert "LoadCredential" not in texts[1]
    assert "IPAddressDeny=any" not in texts[2].splitlines()
    assert not any("token of remote write" in text for text in [*texts, configuration.read_text(encoding="utf-8")])


def test_every_job_reads_a_list_that_is_written(tmp_path: Path) -> None:
    configuration = yaml.safe_load(write_configuration(tmp_path).read_text(encoding="utf-8"))
    files = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in configuration["scrape_configs"] if "file_sd_configs" in job}
    assert files == {name: [str(tmp_path / f"{name}.json")] for name in TARGETS}


def test_targets_are_labelled_sorted_and_the_same_for_any_order(tmp_path: Path) -> None:
    write_configuration(tmp_path)
    first = (tmp_path / "models.json").read_bytes()
    assert json.loads(first) == [
        {"labels": {"host": HOST, "model": "mixtral-8x7b", "service": "mixtral-8x7b"}, "targets": ["192.168.10.29:11401"]},
        {"labels": {"host": "hx-llm-server-02", "model": "mixtral-8x7b", "service": "mixtral-8x7b"}, "targets": ["[2001:db8::30]:11401"]},
        {"labels": {"host": HOST, "model": "openchat-3.5", "service": "openchat-3.5"}, "targets": ["192.168.10.29:11403"]},
    ]
    assert json.loads((tmp_path / "edge.json").read_text(encoding="utf-8")) == [
        {"labels": {"host": HOST, "service": "edge"}, "targets": ["127.0.0.1:8405"]}
    ]
    assert json.loads((tmp_path / "node.json").read_text(encoding="utf-8")) == []
    write_configuration(tmp_path, {name: entries[::-1] for name, entries in TARGETS.items()})
    assert (tmp_path / "models.json").read_bytes() == first


def arguments(template: str, values: dict[str, Any]) -> list[str]:
    """Split the words that the unit hands to its program, read from the environment file as systemd reads it."""
    text = render(TEMPLATES / template, values)
    settings = [word for line in text.replace("\\\n", "").splitlines() for word in shlex.split(line, comments=True)]
    assert len(settings) == 1
    name, _, value = settings[0].partition("=")
    assert name == "ARGS"
    return value.split()


@pytest.mark.parametrize(
    ("program", "template", "port_variable", "more"),
    [
        (
            "prometheus",
            "prometheus.env.j2",
            "monitoring_prometheus_port",
            ["--config.file={0}/prometheus.yml", "--storage.tsdb.path={0}/data"],
        ),
        ("prometheus-node-exporter", "node-exporter.env.j2", "monitoring_node_exporter_port", []),
        ("prometheus-alertmanager", "alertmanager.env.j2", "monitoring_alertmanager_port", ["--storage.path={0}/silences"]),
    ],
)
def test_the_programs_take_their_arguments_and_listen_where_they_are_told(
    tmp_path: Path, program: str, template: str, port_variable: str, more: list[str]
) -> None:
    write_configuration(tmp_path, {name: [] for name in TARGETS})
    (tmp_path / "alertmanager.yml").write_text(render(TEMPLATES / "alertmanager.yml.j2", variables(tmp_path)), encoding="utf-8")
    port = free_port()
    words = [word for word in arguments(template, variables(tmp_path, **{port_variable: port})) if not word.startswith("--storage.path=")]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [tool(program), *words, *(word.format(tmp_path) for word in more)], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        address = f"127.0.0.1:{port}"
        until(
            lambda: "address=" + address in log.read_text(encoding="utf-8") or process.poll() is not None,
            seconds=30,
            what=f"{program} listens on {address}",
        )
        assert process.poll() is None, log.read_text(encoding="utf-8")
        assert listens_at(process.pid) == {address}
    finally:
        process.terminate()
        process.wait(20)


def listens_at(pid: int) -> set[str]:
    """Where a process listens: nowhere that nobody has told it to."""
    output = subprocess.run([tool("ss"), "-Hltnp"], capture_output=True, text=True, check=True, timeout=30).stdout
    return {line.split()[3] for line in output.splitlines() if f"pid={pid}," in line}


@pytest.mark.parametrize(("tls", "certificates"), [("none", []), ("files", ["server.pem", "ca.pem"])])
def test_the_exporter_is_told_of_what_the_edge_serves_tls_with(tls: str, certificates: list[str]) -> None:
    wiring = DataLoader().load_from_file(str(PROJECT / "playbooks" / "vars" / "monitoring.yml"), trusted_as_template=True)
    files = {name: wiring[name] for name in ("citadel_tls_folder", "monitoring_certificate_files", "monitoring_key_files")}
    values = role_defaults("monitoring") | role_variables_file("monitoring") | files | {"edge_tls": tls}
    words = shlex.split(render(TEMPLATES / "citadel-exporter.service.j2", values).partition("ExecStart=")[2].partition("\n\n")[0])
    told = {option: [words[at + 1] for at, word in enumerate(words) if word == option] for option in ("--certificate", "--key")}
    folder = role_defaults("edge")["edge_configuration_directory"] + "/tls"
    keys = [f"{folder}/{name}" for name in (["server.pem", "ca.key"] if certificates else [])]
    assert told == {
        "--certificate": [f"{folder}/{name}" for name in certificates],
        "--key": ["/opt/citadel/secrets/gateway.key", "/opt/citadel/secrets/node.key", *keys],
    }


def test_systemd_accepts_the_units_with_their_drop_ins(tmp_path: Path) -> None:
    programs = {
        "prometheus": "prometheus.env",
        "prometheus-node-exporter": "node-exporter.env",
        "prometheus-alertmanager": "alertmanager.env",
    }
    for name, environment in programs.items():
        unit = f"{name}.service"
        (tmp_path / f"{unit}.d").mkdir()
        text = render(TEMPLATES / f"{name}.conf.j2", variables(tmp_path))
        assert f"EnvironmentFile={tmp_path}/{environment}\n" in text
        (tmp_path / f"{unit}.d" / "citadel.conf").write_text(text, encoding="utf-8")
        (tmp_path / unit).write_text("[Service]\nExecStart=/bin/true $ARGS\n", encoding="utf-8")
        check = subprocess.run(
            [tool("systemd-analyze"), "verify", "--man=no", str(tmp_path / unit)], capture_output=True, text=True, check=False, timeout=60
        )
        assert check.stderr == ""


@pytest.mark.parametrize(("listening", "allowed"), [("127.0.0.1", ["localhost", "192.168.10.29", "2001:db8::30"]), ("10.0.0.5", [])])
def test_prometheus_reaches_its_targets_alone(tmp_path: Path, listening: str, allowed: list[str]) -> None:
    """On another address than loopback it is asked by whom nobody has named."""
    every_target = [target for targets in TARGETS.values() for target in targets]
    values = variables(tmp_path, __monitoring_targets=every_target, monitoring_listen_address=listening)
    lines = render(TEMPLATES / "prometheus-addresses.conf.j2", values).splitlines()
    assert [line.removeprefix("IPAddressAllow=") for line in lines if line.startswith("IPAddressAllow=")] == allowed
    assert ("IPAddressDeny=any" in lines) == bool(allowed)


def test_bad_input_is_refused_with_the_variable_and_its_value(tmp_path: Path) -> None:
    good = variables(tmp_path) | {f"monitoring_{name.removesuffix('s')}_targets": targets for name, targets in TARGETS.items()}
    said = refusals(
        "monitoring",
        {
            "nothing wrong": good,
            "too slow": good | {"monitoring_scrape_timeout_seconds": 16},
            "nothing to watch": good | {"monitoring_model_targets": []},
            "two words": good | {"monitoring_systemd_units": "a b"},
            "no errors at all": good | {"monitoring_availability_objective_percent": 100},
            "more than can burn": good | {"monitoring_latency_objective_percent": 90},
            "a token for nobody": good | {"monitoring_remote_write_token": "x"},
            "mail without a server": good | {"monitoring_email_to": ["a@example.org"]},
            "a name": good | {"monitoring_node_targets": [{"service": "node", "host": HOST, "address": "llm.example.org", "port": 9100}]},
        },
        tmp_path,
    )
    assert set(said) == {
        "too slow", "nothing to watch", "two words", "no errors at all", "more than can burn", "a token for nobody",
        "mail without a server", "a name",
    }  # fmt: skip
    assert "monitoring_availability_objective_percent is 100" in said["no errors at all"]
    assert "monitoring_latency_objective_percent is 90" in said["more than can burn"]
    assert 'monitoring_email_server is ""' in said["mail without a server"]
    assert "llm.example.org is no IP address" in said["a name"]
    assert "monitoring_scrape_timeout_seconds is 16" in said["too slow"]
    assert "monitoring_model_targets is empty" in said["nothing to watch"]
    assert 'monitoring_systemd_units is "a b"' in said["two words"]
