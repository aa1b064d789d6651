"""Not a model: stands in the place of one behind the edge, to fail as vLLM cannot be told to. It says so in its name.

    mock_model.py PORT (500 | slow SECONDS | flap SECONDS)

500: every generation is answered with a 500. slow: with an answer, after so many seconds. flap: with an answer for so many seconds, then
with 500s for as many, and so on.
"""

from __future__ import annotations

import http.server
import json
import sys
import time

PORT, MODE = int(sys.argv[1]), sys.argv[2]
SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
BEGAN = time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        bad = MODE == "500" or (MODE == "flap" and int((time.monotonic() - BEGAN) / SECONDS) % 2 == 1)
        if MODE == "slow":
            time.sleep(SECONDS)
        message = {"role": "assistant", "content": "This is no model."}
        answer = {
            "id": "mock",
            "object": "chat.completion",
            "created": 0,
            "model": "mock-model",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        error = {"error": {"message": "The mock model fails.", "type": "server_error", "param": None, "code": 500}}
        text = json.dumps(error if bad else answer).encode()
        self.send_response(500 if bad else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
