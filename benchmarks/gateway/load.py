"""Sends requests over as many connections as asked for, each with one request at a time, and times every one of them."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import cast

READ_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go. `fresh`: each on a connection of its own."""

    port: int
    body: dict[str, object]
    path: str = "/v1/chat/completions"
    key: str | None = None
    address: str = "127.0.0.1"
    source: str = "127.0.0.1"
    fresh: bool = False

    @property
    def request(self) -> bytes:
        """One request as it is sent."""
        body = json.dumps(self.body).encode()
        key = "" if self.key is None else f"Authorization: Bearer {self.key}\r\n"
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.address}\r\nContent-Type: application/json\r\n{key}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


@dataclass
class Outcome:
    """What came of a run: seconds until the first byte of each answer's body and until its end, and what was not answered with 200."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Outcome) -> None:
        """Take another run's requests in."""
        self.first += other.first
        self.whole += other.whole
        self.failures += other.failures
        self.seconds += other.seconds


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.lost = False

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        """End what was waited for."""
        self.lost = True
        self._finish()

    async def send(self, request: bytes) -> tuple[bytes, float, float]:
        """Send one request; its status line, and the seconds until the first byte of its body and until its end."""
        self._buffer = b""
        self._first = 0.0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(request)
        await self._done
        ended = time.perf_counter()
        status = self._buffer.partition(b"\r\n")[0] or b"closed without an answer"
        return status, (self._first or ended) - began, ended - began

    def data_received(self, data: bytes) -> None:
        """Read until the answer is complete: by its length, or by its last chunk."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or end + 4 == len(self._buffer):
            return
        if self._first == 0.0:
            self._first = time.perf_counter()
            head = self._buffer[:end].lower()
            length = head.find(b"content-length:")
            self._end = None if length < 0 else end + 4 + int(head[length + 15 :].split(b"\r\n", 1)[0])
        complete = self._buffer.endswith(b"0\r\n\r\n") if self._end is None else len(self._buffer) >= self._end
        if complete:
            self._finish()

    def _finish(self) -> None:
        if hasattr(self, "_done") and not self._done.done():
            self._done.set_result(None)


async def _run(target: Target, *, connections: int, seconds: float, requests: int) -> Outcome:
    outcome, request = Outcome(), target.request
    left = requests
    began = time.perf_counter()

    async def connect() -> Client:
        _, client = await asyncio.get_running_loop().create_connection(Client, target.address, target.port, local_addr=(target.source, 0))
        return client

    async def keep_asking() -> None:
        nonlocal left
        client = None
        while left > 0 and time.perf_counter() - began < seconds:
            left -= 1
            if client is not None and (client.lost or target.fresh):
                client.close()
                client = None
            try:
                async with asyncio.timeout(READ_SECONDS):
                    client = client or await connect()
                    status, first, whole = await client.send(request)
            except (OSError, TimeoutError) as error:
                if client is not None:
                    client.close()
                    client = None
                outcome.failures.append(repr(error))
                continue
            if status == b"HTTP/1.1 200 OK":
                outcome.first.append(first)
                outcome.whole.append(whole)
            else:
                outcome.failures.append(status.decode(errors="replace"))
        if client is not None:
            client.close()

    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    outcome.seconds = time.perf_counter() - began
    return outcome


def run(target: Target, *, connections: int, seconds: float, requests: int = 1_000_000) -> Outcome:
    """Ask for `seconds`, or `requests` times, whichever is over first; what has begun is waited for."""
    return asyncio.run(_run(target, connections=connections, seconds=seconds, requests=requests))
