"""A small steady load through the platform, as clients make it. Bounded in count and time; ends by itself."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from lab_host import Answer, ask

RETRIES = 2
FIRST_RETRY_SECONDS = 0.5
"""What OpenAI's own client does with a broken connection and with 429, 5xx: two more attempts, after half a second and after one."""

ATTEMPT_SECONDS = 300
"""OpenAI's own client waits twice as long; the edge's bounds, which are to decide, are below it."""


@dataclass(frozen=True)
class Outcome:
    """What became of one request: the status of each attempt (0: the connection broke), and who answered in the end."""

    at: float
    seconds: float
    statuses: tuple[int, ...]
    asked: str | None
    answered_by: str | None
    text: str

    @property
    def lost(self) -> bool:
        return self.statuses[-1] != 200


@dataclass
class Client(threading.Thread):
    """Asks for one model (None: for any) at a steady pace, one request after the other."""

    port: int
    model: str | None
    every_seconds: float
    requests: int
    max_tokens: int = 8
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.stopped = threading.Event()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        began = time.monotonic()
        for number in range(self.requests):
            if self.stopped.wait(max(0.0, began + number * self.every_seconds - time.monotonic())):
                return
            self.outcomes.append(self._request(f"request {number}"))

    def _request(self, text: str) -> Outcome:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": self.max_tokens} | (
            {"model": self.model} if self.model else {}
        )
        began, statuses, answer = time.monotonic(), [], None
        for attempt in range(1 + RETRIES):
            if attempt and self.stopped.wait(FIRST_RETRY_SECONDS * 2 ** (attempt - 1)):
                break
            answer = attempted(self.port, body)
            statuses.append(answer.status)
            if answer.status in range(200, 500) and answer.status != 429:
                break
        good = answer is not None and answer.status == 200
        return Outcome(
            at=began,
            seconds=time.monotonic() - began,
            statuses=tuple(statuses),
            asked=self.model,
            answered_by=json.loads(answer.text)["model"] if answer is not None and good else None,
            text="" if answer is None or good else answer.text[:300],
        )


def attempted(port: int, body: dict[str, object]) -> Answer:
    """Ask once; status 0 where the connection broke."""
    try:
        return ask(port, "/v1/chat/completions", body, timeout=ATTEMPT_SECONDS)
    except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
        return Answer(0, f"{type(error).__name__}: {error}", {})


class SteadyLoad:
    """One client per port and model (None: any), all at the same pace; use it as a context manager."""

    def __init__(self, ways: list[tuple[int, str | None]], *, every_seconds: float, seconds: float, max_tokens: int = 8) -> None:
        requests = int(seconds / every_seconds)
        self.clients = [Client(port, model, every_seconds, requests, max_tokens) for port, model in ways]

    def __enter__(self) -> Self:
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self.clients:
            client.stopped.set()
        for client in self.clients:
            client.join()

    def outcomes(self, *, models: Sequence[str | None] | None = None, port: int | None = None) -> list[Outcome]:
        """What became of the requests: all of them, those for some models, or those through one port."""
        chosen = (client for client in self.clients if (models is None or client.model in models) and port in {None, client.port})
        return [outcome for client in chosen for outcome in client.outcomes]
