"""What the gateway asks of the edge: how the models are."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class EdgeState:
    """Answers every GET with `document` on a free loopback port; use it as a context manager."""

    document: dict[str, Any]
    asked: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Self:
        edge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name is http.server's
                with edge.changed:
                    payload = json.dumps(edge.document).encode()
                    edge.asked += 1
                    edge.changed.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # the gateway waits no longer than it wants to
                    self.wfile.write(payload)

            def log_message(self, *_: object) -> None:
                """Keep the test output free of access lines."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    @property
    def url(self) -> str:
        """Where the gateway asks."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/state"

    def tell(self, document: dict[str, Any]) -> None:
        """Say something else from now on; returns when a gateway of one worker goes by it: it has come back for the next answer."""
        with self.changed:
            if document == self.document:
                return
            self.document = document
            seen = self.asked
            assert self.changed.wait_for(lambda: self.asked >= seen + 2, timeout=20), "the gateway no longer asks how the models are"
