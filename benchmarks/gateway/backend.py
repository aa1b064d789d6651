"""A model server that costs next to nothing: what it answers is made before anybody asks. It is a process of its own.

    backend.py PORT

A POST is answered at once, or, where its body asks for a stream, in chunks a few milliseconds apart as tokens come. GET says how the
models are, in the edge's words: all of them well.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final, cast

MODELS: Final = ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini")
CHUNKS: Final = 16
CHUNK_SECONDS: Final = 0.005

_USAGE: Final = {"prompt_tokens": 7, "completion_tokens": CHUNKS, "total_tokens": 7 + CHUNKS}


def _document(kind: str, choices: list[dict[str, Any]], **more: object) -> bytes:
    return json.dumps({"id": "chatcmpl-1", "object": kind, "created": 1, "model": MODELS[0], "choices": choices, **more}).encode()


def _answer(kind: str, payload: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload


def _http_chunk(payload: bytes) -> bytes:
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"


def _event(payload: bytes) -> bytes:
    return _http_chunk(b"data: " + payload + b"\n\n")


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    return _event(_document("chat.completion.chunk", [{"index": 0, "delta": delta, "finish_reason": finish_reason}]))


_MESSAGE: Final = {"role": "assistant", "content": "token " * CHUNKS}
STATIC: Final = _answer(
    "application/json", _document("chat.completion", [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}], usage=_USAGE)
)
STATE: Final = _answer(
    "application/json",
    json.dumps({"models": {name: {"breaker": "closed", "running": 0, "queued": 0, "places": 9} for name in MODELS}}).encode(),
)
STREAM_BEGIN: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + _delta(
    {"role": "assistant", "content": ""}
)
STREAM_TOKEN: Final = _delta({"content": "token "})
STREAM_END: Final = (
    _delta({}, "stop") + _event(_document("chat.completion.chunk", [], usage=_USAGE)) + _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
)


class Server(asyncio.Protocol):
    """One connection. Nobody sends a second request before the first has been answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is complete."""
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        if len(body) < length:
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(STATE)
        elif b'"stream":true' in body.replace(b" ", b""):
            self._stream(CHUNKS)
        else:
            self._transport.write(STATIC)

    def _stream(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left == 0:
            self._transport.write(STREAM_END)
            return
        self._transport.write(STREAM_BEGIN if left == CHUNKS else STREAM_TOKEN)
        asyncio.get_running_loop().call_later(CHUNK_SECONDS, self._stream, left - 1)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
