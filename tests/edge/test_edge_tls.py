"""The edge over TLS: with the host's own authority, and the same rules as without."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

from edge.haproxy import LOOPBACK, MODELS, SERVER, STRANGER, TRUSTED, Edge, ask, bearer, make_edge, tool
from modules import run_module

if TYPE_CHECKING:
    from collections.abc import Iterator


def have_certificate(edge: Edge, **arguments: object) -> None:
    run_module("citadel_local_certificate", folder=str(edge.directory / "tls"), names=[SERVER, "llm.example.org"], **arguments)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Run an edge with a certificate of a local authority, which its clients trust."""
    running = make_edge(tmp_path_factory.mktemp("edge"), edge_tls="local_ca")
    try:
        (running.directory / "tls").mkdir()
        have_certificate(running)
        running.tls = ssl.create_default_context(cafile=str(running.directory / "tls" / "ca.pem"))
        running.start()
        yield running
    finally:
        running.stop()


def ports(edge: Edge) -> list[int]:
    return [edge.gateway_port, *edge.api_ports.values(), edge.metrics_ports[MODELS[-1]], edge.prometheus_port]


def test_every_port_outside_is_served_with_the_certificate(edge: Edge) -> None:
    for port in ports(edge):
        answer = ask(port, "/metrics", tls=edge.tls)
        assert answer.status == 200
        assert answer.headers["strict-transport-security"] == "max-age=63072000"
        assert ask(port, "/nothing/", source=STRANGER, tls=edge.tls).headers["strict-transport-security"] == "max-age=63072000"


def test_keys_and_their_absence_mean_the_same(edge: Edge) -> None:
    assert ask(edge.gateway_port, "/v1/models", source=STRANGER, headers=bearer("web-shop"), tls=edge.tls).status == 200
    assert ask(edge.gateway_port, "/v1/models", source=STRANGER, tls=edge.tls).status == 401
    assert ask(edge.gateway_port, "/key/info", headers=bearer("web-shop"), tls=edge.tls).status == 404


def test_plain_http_on_the_same_ports_is_closed_without_an_answer(edge: Edge) -> None:
    for port in ports(edge):
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError, http.client.BadStatusLine)):
            ask(port, "/health")


def test_loopback_stays_as_it_was(edge: Edge) -> None:
    assert ask(edge.exporter_port, "/metrics", source=LOOPBACK, address=LOOPBACK).status == 200
    answer = ask(edge.upstream_ports[MODELS[0]], "/v1/completions", method="POST", body=b"{}", source=LOOPBACK, address=LOOPBACK)
    assert answer.status == 200


def handshake(edge: Edge, context: ssl.SSLContext) -> tuple[str | None, str | None]:
    """Version and protocol that are agreed on."""
    with (
        socket.create_connection((SERVER, edge.gateway_port), timeout=10, source_address=(TRUSTED, 0)) as connection,
        context.wrap_socket(connection, server_hostname=SERVER) as secure,
    ):
        return secure.version(), secure.selected_alpn_protocol()


def trusting(edge: Edge) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(edge.directory / "tls" / "ca.pem"))


def test_http_2_is_offered_first(edge: Edge) -> None:
    context = trusting(edge)
    context.set_alpn_protocols(["http/1.1", "h2"])
    assert handshake(edge, context) == ("TLSv1.3", "h2")


def test_old_versions_and_weak_ciphers_are_refused(edge: Edge) -> None:
    for ciphers, expected in (("ECDHE+AESGCM", True), ("ECDHE+AES:!AESGCM:@SECLEVEL=0", False)):
        context = trusting(edge)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        if expected:
            assert handshake(edge, context)[0] == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError):
                handshake(edge, context)
    command = [tool("openssl"), "s_client", "-connect", f"{SERVER}:{edge.gateway_port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    refused = subprocess.run(command, input=b"", capture_output=True, check=False, timeout=20)
    assert refused.returncode != 0
    assert b"protocol version" in refused.stderr


def test_who_does_not_know_the_authority_does_not_trust_it(edge: Edge) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(edge.gateway_port, "/health", tls=ssl.create_default_context())


def test_http_2_follows_the_same_rules(edge: Edge) -> None:
    # curl speaks HTTP/2, Python does not.
    def curl(path: str, *options: str) -> tuple[str, int]:
        authority = ["--cacert", str(edge.directory / "tls" / "ca.pem"), "--interface", TRUSTED]
        written = ["--output", str(edge.directory / "body"), "--write-out", "%{http_version} %{http_code}"]
        url = f"https://{SERVER}:{edge.gateway_port}{path}"
        command = [tool("curl"), "--silent", "--path-as-is", "--http2", *authority, *written, *options, url]
        # Whatever it makes of a stream that ends before it has sent all: what counts is the answer.
        version, status = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.split()
        return version, int(status)

    chat = ("--data", "{}")
    key = ("--header", "Authorization: Bearer sk-test-key-of-web-shop")
    forged = ("--header", "X-Citadel-Client: root")
    assert curl("/v1/completions", *chat, *key, *forged) == ("2", 200)
    headers = json.loads((edge.directory / "body").read_text())["headers"]
    assert headers["x-citadel-client"] == ["web-shop"]
    for path in ("/key/info", "/v1/models/../model/info", "//v1/models", "/v1/%6dodels", "/V1/MODELS"):
        assert curl(path, *key) == ("2", 404)
    assert curl("/v1/models", "--header", "Authorization: Bearer wrong") == ("2", 401)
    assert curl("/v1/completions", "--data", "{}", "--header", "Content-Length:") == ("2", 411)
    (edge.directory / "long").write_bytes(b"x" * 1_000_001)
    before = len(edge.gateway.generations())
    # HAProxy sends the 413 and then resets the stream; curl 7.88 does not show what came before a reset.
    assert curl("/v1/completions", "--data-binary", f"@{edge.directory / 'long'}") in {("2", 413), ("0", 0)}
    assert len(edge.gateway.generations()) == before


def test_a_new_certificate_is_served_after_a_reload_and_cuts_nobody(edge: Edge) -> None:
    def serial() -> bytes:
        with (
            socket.create_connection((SERVER, edge.gateway_port), timeout=10, source_address=(TRUSTED, 0)) as connection,
            trusting(edge).wrap_socket(connection, server_hostname=SERVER) as secure,
        ):
            return secure.getpeercert(binary_form=True) or b""

    before = serial()
    assert edge.tls is not None
    connection = http.client.HTTPSConnection(SERVER, edge.gateway_port, source_address=(TRUSTED, 0), timeout=20, context=edge.tls)
    connection.request("POST", "/v1/chat/completions", body=b'{"stream": true}')
    response = connection.getresponse()
    have_certificate(edge, renew_days=397)
    assert serial() == before, "not before a reload"
    edge.reload()
    assert serial() != before
    edge.gateway.chunks.release(5)
    assert response.read().count(b"data:") == 5
    connection.close()
