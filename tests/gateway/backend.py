"""A small OpenAI-like model server on loopback that remembers what it was asked.

It stands where vLLM stands behind the edge: the tests of the gateway look at what reaches the model, so the model only has to answer
in the right form. Which answer it gives is a property that a test may change at any time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = "Four models and one gateway."
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


@dataclass(frozen=True)
class Received:
    """One request as it arrived: path, decoded JSON body and the headers (names in lower case)."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]


@dataclass
class Backend:
    """A model server named `name` on a free loopback port; use it as a context manager.

    `refusal` is None for a normal answer, or (HTTP status, error message) to answer every request with that error. Where there is a
    `gate`, a stream stops after its first word until the gate is set; before each further word it pauses.
    """

    name: str
    refusal: tuple[int, str] | None = None
    gate: threading.Event | None = None
    pause_seconds: float = 0.0
    received: list[Received] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._start(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def port(self) -> int:
        """The loopback port that this server listens on."""
        return int(self._server.server_address[1])

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Nobody listens on the port meanwhile."""
        port = self.port
        self._stop()
        try:
            yield
        finally:
            self._start(port)

    def forget(self) -> None:
        """Answer normally again and forget every request so far."""
        self.refusal = None
        self.pause_seconds = 0.0
        self.received.clear()

    def _start(self, port: int) -> None:
        backend = self

        class Handler(_Handler):
            owner = backend

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)
        for connection in self.connections:
            with contextlib.suppress(OSError):  # the client may have closed it already
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()


class _Handler(BaseHTTPRequestHandler):
    owner: Backend
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.owner.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        """Keep the test output free of access lines."""

    def do_POST(self) -> None:  # the name is http.server's
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.owner.received.append(Received(path=self.path, body=body, headers=headers))
        if self.owner.refusal is not None:
            status, message = self.owner.refusal
            self._send_json(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})
            return
        chat = self.path.endswith("/chat/completions")
        if body.get("stream"):
            self._send_stream(chat, bool((body.get("stream_options") or {}).get("include_usage")))
        else:
            self._send_json(200, self._completion(chat))

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": "cmpl-1", "object": kind, "created": 1, "model": self.owner.name, "choices": choices}

    def _completion(self, chat: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if chat:
            choice["message"] = {"role": "assistant", "content": ANSWER}
        else:
            choice["text"] = ANSWER
        return {**self._envelope("chat.completion" if chat else "text_completion", [choice]), "usage": USAGE}

    def _send_stream(self, chat: bool, include_usage: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        events = []
        words = ANSWER.split(" ")
        for position, word in enumerate(words):
            last = position == len(words) - 1
            text = word if last else f"{word} "
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop" if last else None}
            if chat:
                choice["delta"] = {"role": "assistant", "content": text} if position == 0 else {"content": text}
            else:
                choice["text"] = text
            events.append(self._envelope(kind, [choice]))
        if include_usage:
            events.append({**self._envelope(kind, []), "usage": USAGE})
        lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(sum(map(len, lines))))
        self.end_headers()
        self.wfile.write(lines[0])
        if self.owner.gate is not None:
            self.owner.gate.wait(timeout=60)
        with contextlib.suppress(BrokenPipeError):  # the gateway may have hung up
            for line in lines[1:]:
                time.sleep(self.owner.pause_seconds)
                self.wfile.write(line)

    def _send_json(self, status: int, document: dict[str, Any]) -> None:
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)
