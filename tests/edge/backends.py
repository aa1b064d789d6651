"""Small HTTP services that stand behind the edge: they answer, hang, fail, refuse or stream as told, and remember what reached them."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

LOOPBACK = "127.0.0.1"

# Of every stream.
PARTS = 5


@dataclass(frozen=True)
class Received:
    """One request as a service saw it; header names in small letters."""

    method: str
    target: str
    headers: dict[str, list[str]]
    body: bytes


@dataclass
class Backend:
    """A service on 127.0.0.1:port that names itself in every answer, with its supervisor on `state_port` where it has one.

    `gate` closed: requests (health and state included) hang until it is opened. `health_status`: what GET /health and /state answer.
    `generation_gate` closed: only POST requests hang. `key`: what POST requests must bring as a bearer, or they are refused
    with a 401. `tells`: headers of every answer. `chunks`: what a POST whose body asks for a stream waits for,
    one release of the semaphore for each chunk that it sends. `waiting`: the POST requests that hang just now.
    """

    name: str
    port: int
    state_port: int | None = None
    health_status: int = 200
    generation_status: int = 200
    key: str | None = None
    tells: dict[str, str] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    generation_gate: threading.Event = field(default_factory=threading.Event)
    chunks: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    received: list[Received] = field(default_factory=list)
    waiting: list[Received] = field(default_factory=list)
    _servers: list[_Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self.generation_gate.set()

    def start(self) -> Self:
        """Listen. From here on connections are accepted."""
        handler = type("Handler", (_Handler,), {"backend": self})
        for port in (self.port, self.state_port):
            if port is not None:
                self._servers.append(_Server((LOOPBACK, port), handler))
                threading.Thread(target=self._servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening: new connections are refused. Requests that are already here go on."""
        while self._servers:
            server = self._servers.pop()
            server.shutdown()
            server.server_close()

    def stop_serving(self) -> None:
        """Stop listening on the service's own port; its supervisor goes on."""
        server = self._servers.pop(0)
        server.shutdown()
        server.server_close()

    def start_again(self) -> None:
        """Listen, if it does not."""
        if not self._servers:
            self.start()

    def generations(self) -> list[Received]:
        """List the POST requests that have arrived."""
        return [request for request in self.received if request.method == "POST"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Show what went wrong, unless a peer hung up, which is part of the tests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    backend: Backend
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what arrived is in `received`."""

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_HEAD = do_PUT = do_DELETE = do_GET

    def _handle(self) -> None:
        backend = self.backend
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            headers.setdefault(name.lower(), []).append(value)
        request = Received(method=self.command, target=self.path, headers=headers, body=body)
        backend.received.append(request)
        backend.gate.wait(30)
        if self.command == "POST":
            backend.waiting.append(request)
            backend.generation_gate.wait(30)
            backend.waiting.remove(request)
            if backend.key is not None and headers.get("authorization") != [f"Bearer {backend.key}"]:
                time.sleep(0.1)  # as the gateway's hook does, only shorter
                self._answer(401, {"error": "this key is not known"})
                return
            if b'"break off"' in body:
                self.close_connection = True
                return
            if b'"stream": true' in body:
                self._stream()
                return
            self._answer(backend.generation_status, self._echo(request))
        elif self.server.server_address[1] == backend.state_port:
            self._answer(backend.health_status, {"state": "generating" if backend.health_status == 200 else "hung", "of": backend.name})
        elif self.path.startswith("/health"):
            self._answer(backend.health_status, {"health of": backend.name})
        else:
            self._answer(200, self._echo(request))

    def _echo(self, request: Received) -> dict[str, Any]:
        return {"service": self.backend.name, "method": request.method, "target": request.target, "headers": request.headers}

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in self.backend.tells.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(PARTS):
            if not self.backend.chunks.acquire(timeout=30):
                return
            event = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
