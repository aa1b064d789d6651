"""The edge's files for inventories of several kinds, judged by HAProxy itself, and what the role refuses before it touches a host."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from edge.haproxy import KEY, TEMPLATES, tool, write_configuration
from edge.refusals import refusals
from modules import run_module
from playing import changed_tasks, local_play, run_playbook
from rendering import render, role_defaults

if TYPE_CHECKING:
    from pathlib import Path

PRODUCTION: dict[str, Any] = {
    "edge_server_addresses": ["192.168.10.29"],
    "edge_services": [
        {
            "name": "mixtral-8x7b",
            "api_port": 11400,
            "metrics_port": 11401,
            "state_port": 21400,
            "upstream_port": 31400,
            "max_num_seqs": 9,
            "max_waiting": 36,
        },
        {
            "name": "openchat-3.5",
            "api_port": 11401,
            "metrics_port": 11402,
            "state_port": 21401,
            "upstream_port": 31401,
            "max_num_seqs": 16,
            "max_waiting": 64,
        },
    ],
    "edge_api_ports": [{"port": 11400, "service": "mixtral-8x7b"}, {"port": 11401, "service": "openchat-3.5"}],
    "edge_metrics_ports": [
        {"port": 11402, "service": "openchat-3.5"},
        {"port": 11400, "service": "mixtral-8x7b"},
        {"port": 11401, "service": "mixtral-8x7b"},
    ],
    "edge_trusted_networks": ["192.168.10.0/24"],
    "edge_environment": "development",
    "edge_gateway_secret_file": "/opt/citadel/secrets/gateway.key",
}
INVENTORIES = {
    "production": {},
    "another environment": {"edge_environment": "production"},
    "nobody trusted": {"edge_trusted_networks": []},
    "several addresses": {
        "edge_server_addresses": ["192.168.10.29", "10.0.0.29", "2001:db8::29"],
        "edge_trusted_networks": ["2001:db8::/64", "10.0.0.7"],
    },
    "limits": {
        "edge_client_limits": {"web-shop": {"requests_per_minute": 0, "concurrent_requests": 1, "models": ["mixtral-8x7b"]}, "x": {}},
        "edge_client_requests_per_minute": 0,
        "edge_keyless_concurrent_requests": 0,
    },
    "tls": {"edge_tls": "local_ca", "edge_tls_names": ["llm.example.org"]},
    "two hosts, IPv6": {
        "edge_server_addresses": ["2001:db8::a:29"],
        "edge_shared_models": [
            {
                "name": "openchat-3.5",
                "upstream_port": 31401,
                "max_waiting": 64,
                "instances": [{"host": "hx-llm-server-02", "address": "2001:db8::a:30", "port": 11401, "places": 8, "weight": 8}],
            }
        ],
        "edge_nodes": [{"name": "hx-llm-server-02", "address": "2001:db8::a:30", "key_sha256s": ["0" * 64]}],
    },
    "one model": {
        "edge_services": PRODUCTION["edge_services"][:1],
        "edge_api_ports": PRODUCTION["edge_api_ports"][:1],
        "edge_metrics_ports": PRODUCTION["edge_metrics_ports"][1:],
    },
}


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_haproxy_accepts_it_without_a_warning(tmp_path: Path, inventory: str) -> None:
    key = tmp_path / "node.key"
    key.write_text("CITADEL_NODE_KEY key\n", encoding="utf-8")
    configuration = write_configuration(tmp_path, PRODUCTION | INVENTORIES[inventory] | {"edge_node_key_file": str(key)})
    if "edge_tls" in INVENTORIES[inventory]:
        (tmp_path / "tls").mkdir()
        run_module("citadel_local_certificate", folder=str(tmp_path / "tls"), names=["192.168.10.29"])
    check = subprocess.run(
        [tool("haproxy"), "-c", "-f", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (check.returncode, check.stderr) == (0, "")


def test_the_edge_listens_on_every_port_of_the_plan_and_the_services_addresses_stay_free(tmp_path: Path) -> None:
    text = write_configuration(tmp_path, PRODUCTION).read_text(encoding="utf-8")
    bound = re.findall(r"^ +bind (\S+):(\d+)$", text, flags=re.MULTILINE)
    outside = sorted(int(port) for address, port in bound if address == "192.168.10.29")
    inside = sorted(int(port) for address, port in bound if address == "127.0.0.1")
    assert outside == [8000, 9090, 11400, 11401, 11402]
    assert inside == [8405, 8406, 31400, 31401]
    assert len(bound) == len(outside) + len(inside)


def test_the_same_inventory_in_another_order_makes_the_same_maps(tmp_path: Path) -> None:
    write_configuration(tmp_path, PRODUCTION)
    before = [(tmp_path / name).read_bytes() for name in ("api-ports.map", "metrics-ports.map")]
    write_configuration(tmp_path, PRODUCTION | {name: PRODUCTION[name][::-1] for name in ("edge_api_ports", "edge_metrics_ports")})
    assert before == [(tmp_path / name).read_bytes() for name in ("api-ports.map", "metrics-ports.map")]


def test_no_key_is_written_to_any_file(tmp_path: Path) -> None:
    write_configuration(tmp_path, PRODUCTION)
    written = [path for path in tmp_path.iterdir() if KEY in path.read_text(encoding="utf-8")]
    assert written == [tmp_path / "gateway.key"], "its own, which the role gateway writes"


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_no_regular_expression_is_used(tmp_path: Path, inventory: str) -> None:
    """HAProxy compiles them to code, which MemoryDenyWriteExecute forbids: it would not start."""
    text = write_configuration(tmp_path, PRODUCTION | INVENTORIES[inventory]).read_text(encoding="utf-8")
    assert re.findall(r"\S*(?:_reg\b|-m reg\b|regsub|replace-|map_reg|rewrite|rspi?rep|reqi?rep)\S*", text) == []


def test_systemd_accepts_the_unit_with_its_drop_in(tmp_path: Path) -> None:
    (tmp_path / "haproxy.service.d").mkdir()
    drop_in = render(TEMPLATES / "citadel.conf.j2", role_defaults("edge") | PRODUCTION)
    (tmp_path / "haproxy.service.d" / "citadel.conf").write_text(drop_in, encoding="utf-8")
    (tmp_path / "haproxy.service").write_text("[Service]\nType=notify\nExecStart=/bin/true\n", encoding="utf-8")
    check = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(tmp_path / "haproxy.service")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert check.stderr == "", "systemd-analyze exits 0 even where it complains"


REFUSED = {
    "a wildcard": ({"edge_server_addresses": ["0.0.0.0"]}, 'edge_server_addresses is ["0.0.0.0"]'),
    "loopback": ({"edge_server_addresses": ["192.168.10.29", "127.0.0.1"]}, "edge_server_addresses is"),
    "a name": ({"edge_server_addresses": ["llm.example.org"]}, "llm.example.org is no IP address"),
    "no address": ({"edge_server_addresses": []}, "edge_server_addresses is []"),
    "no model": ({"edge_services": []}, "edge_services names []"),
    "a name with a blank": (
        {"edge_services": [PRODUCTION["edge_services"][0] | {"name": "mixtral 8x7b"}]},
        'edge_services names ["mixtral 8x7b"]',
    ),
    "a model twice": ({"edge_services": PRODUCTION["edge_services"][:1] * 2}, "each name once"),
    "a port of nobody": (
        {"edge_api_ports": [{"port": 11400, "service": "hermes-3"}]},
        'edge_api_ports is [{"port": 11400, "service": "hermes-3"}]',
    ),
    "a port of two": (
        {"edge_metrics_ports": [{"port": 11400, "service": "mixtral-8x7b"}, {"port": 11400, "service": "openchat-3.5"}]},
        'and edge_metrics_ports [{"port": 11400, "service": "mixtral-8x7b"}, {"port": 11400',
    ),
    "a port taken twice": (
        {"edge_exporter_port": 11400},
        "The ports 8000, 8406, 8407, 9090, 11400, 11400, 11401, 31400, 31401 on 127.0.0.1 hold one twice",
    ),
    "a port of two looks": (
        {"edge_state_port": 8405},
        "The ports 8000, 8405, 8405, 8407, 9090, 11400, 11401, 31400, 31401 on 127.0.0.1 hold",
    ),
    **{
        f"limits: {case}": ({"edge_client_limits": limits}, f"edge_client_limits is {json.dumps(limits)}")
        for case, limits in {
            "a name with a blank": {"web shop": {}},
            "a name that is too long": {"x" * 64: {}},
            "a limit that nobody knows": {"x": {"per_minute": 3}},
            "no number": {"x": {"requests_per_minute": "many"}},
            "less than nothing": {"x": {"concurrent_requests": -1}},
            "no model at all": {"x": {"models": []}},
            "a model with a comma": {"x": {"models": ["a,b"]}},
            "one model that is no list": {"x": {"models": "hermes-2 "}},
        }.items()
    },
    "more outside than there are": ({"edge_frontend_max_connections": 2000}, "edge_frontend_max_connections is 2000"),
    "a certificate without a key": (
        {"edge_tls": "files", "edge_tls_certificate_file": "/a.pem"},
        'edge_tls is files, edge_tls_certificate_file "/a.pem" and edge_tls_key_file ""',
    ),
    "a certificate that nobody uses": ({"edge_tls_certificate_file": "/a.pem", "edge_tls_key_file": "/a.key"}, "edge_tls is none"),
    "a name that is none": ({"edge_tls_names": ["a, b"]}, 'edge_tls_names is ["a, b"]'),
    "a network that is none": ({"edge_trusted_networks": ["the-office"]}, 'edge_trusted_networks is ["the-office"]'),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Collect what the role says to each of REFUSED and to PRODUCTION as it is."""
    cases = {"nothing wrong": PRODUCTION} | {name: PRODUCTION | changes for name, (changes, _) in REFUSED.items()}
    return refusals("edge", cases, tmp_path_factory.mktemp("refused"))


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_the_variable_and_its_value(said: dict[str, str], case: str) -> None:
    assert REFUSED[case][1] in said[case]


def test_good_input_is_not_refused(said: dict[str, str]) -> None:
    assert "nothing wrong" not in said


def test_haproxy_does_not_start_without_the_key(tmp_path: Path) -> None:
    command = [tool("haproxy"), "-c", "-f", str(write_configuration(tmp_path, PRODUCTION))]
    (tmp_path / "gateway.key").unlink()
    check = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert check.returncode != 0
    assert f"failed to open pattern file <{tmp_path}/gateway.key>" in check.stderr


def write_certificate(folder: Path) -> dict[str, str]:
    """Make a certificate of the operator's; the variables that name its files."""
    files = {"edge_tls_certificate_file": str(folder / "own.pem"), "edge_tls_key_file": str(folder / "own.key")}
    command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=llm.example.org"]
    output = ["-out", files["edge_tls_certificate_file"], "-keyout", files["edge_tls_key_file"]]
    subprocess.run([tool("openssl"), *command, *output], capture_output=True, check=True, timeout=30)
    return files


def deploy_certificate(folder: Path, **variables: str) -> tuple[int, str]:
    """Run the role's tasks for a certificate as root of a namespace of its own; tasks that changed (-1: it failed), and what was shown."""
    play = local_play({"ansible.builtin.import_role": {"name": "edge", "tasks_from": "certificate"}})
    given = {"edge_configuration_directory": str(folder), **PRODUCTION, **variables}
    finished = run_playbook(play, "-vvv", "--diff", folder=folder, variables=given, as_root=True)
    return changed_tasks(finished), finished.stdout + finished.stderr


def test_a_certificate_that_is_given_is_deployed_with_its_key_and_neither_is_shown(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    changed, shown = deploy_certificate(tmp_path, edge_tls="files", **files)
    assert changed == 2, shown
    server = tmp_path / "tls" / "server.pem"
    assert server.stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "own.key").read_text()
    assert text in server.read_text()
    assert text.splitlines()[1] not in shown
    assert deploy_certificate(tmp_path, edge_tls="files", **files)[0] == 0

    kept = server.read_bytes()
    (tmp_path / "other").mkdir()
    other = write_certificate(tmp_path / "other")
    mixed = {"edge_tls_certificate_file": files["edge_tls_certificate_file"], "edge_tls_key_file": other["edge_tls_key_file"]}
    changed, shown = deploy_certificate(tmp_path, edge_tls="files", **mixed)
    assert changed == -1
    assert "own.key does not belong to the certificate in " in " ".join(shown.split())
    seal = ["pkey", "-in", files["edge_tls_key_file"], "-aes256", "-passout", "pass:secret", "-out", str(tmp_path / "sealed.key")]
    subprocess.run([tool("openssl"), *seal], capture_output=True, check=True, timeout=30)
    changed, shown = deploy_certificate(tmp_path, edge_tls="files", **files | {"edge_tls_key_file": str(tmp_path / "sealed.key")})
    assert changed == -1
    assert "sealed.key cannot be read: it has to be PEM without a password" in " ".join(shown.split())
    assert server.read_bytes() == kept, "what does not belong together takes nobody's place"


def test_a_certificate_that_has_ended_is_refused_and_takes_nobodys_place(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    assert deploy_certificate(tmp_path, edge_tls="files", **files)[0] == 2
    kept = (tmp_path / "tls" / "server.pem").read_bytes()
    sign = ["x509", "-in", files["edge_tls_certificate_file"], "-signkey", files["edge_tls_key_file"], "-days", "-1"]
    subprocess.run([tool("openssl"), *sign, "-out", str(tmp_path / "ended.pem")], capture_output=True, check=True, timeout=30)
    changed, shown = deploy_certificate(tmp_path, edge_tls="files", **files | {"edge_tls_certificate_file": str(tmp_path / "ended.pem")})
    assert changed == -1
    assert "ended.pem has ended (notAfter=" in " ".join(shown.split())
    assert (tmp_path / "tls" / "server.pem").read_bytes() == kept
