"""LiteLLM's own ASGI application, unmodified, behind `citadel_request_form`, which refuses requests of a form that no model reads, and
`citadel_model_list`, which completes the list of models; and warm at the end of its start: uvicorn takes no connection before it is over.

The first request of a process imports a part of LiteLLM and builds validators and clients, for about a second. So each worker sends itself
a few requests and answers them itself, in the place of a model. They are not counted: Prometheus' client writes what is counted meanwhile
into a folder that is then thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from prometheus_client import REGISTRY, Counter, values

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_COUNT: Final = "litellm_proxy_total_requests_metric_total"
_CHAT: Final = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
_TEXT: Final = {"prompt": "Hello", "max_tokens": 1}
_REQUESTS: Final = (
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", _CHAT | {"stream": True}),
    ("/v1/completions", _TEXT),
    ("/v1/completions", _TEXT | {"stream": True}),
)
_ROUNDS: Final = 3
_WARM_UP_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.01
_LAST_COUNTS_SECONDS: Final = 2.0

_log: Final = logging.getLogger("uvicorn.error")
_warming_up = False

# What runs as long as the worker does.
_lasting: Final[set[asyncio.Task[Any]]] = set()


def _counts_as() -> str:
    """Name the files that this process counts into; when the name changes, Prometheus' client opens others."""
    return f"{os.getpid()}-warming-up" if _warming_up else str(os.getpid())


# Before LiteLLM makes its metrics. This is how prometheus_client is told of another name than the process id.
values.ValueClass = values.MultiProcessValue(process_identifier=_counts_as)

from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER  # noqa: E402 - see above
from litellm.proxy import proxy_server  # noqa: E402 - see above
from litellm.proxy.proxy_server import app as litellm_app  # noqa: E402 - see above

from citadel_model_list import ModelList, described_by  # noqa: E402 - see above
from citadel_request_form import FormCheck  # noqa: E402 - see above

# LiteLLM counts what it has seen. The values of the label are ours: nothing that a client sends can make a series of its own.
_MALFORMED: Final = Counter("citadel_gateway_malformed_requests", "Requests that were refused before LiteLLM saw them.", ["code"])

# LiteLLM makes its router while it starts.
_describing_app: Final = ModelList(litellm_app, lambda: described_by(proxy_server.llm_router.get_model_list()))
_checked_app: Final = FormCheck(_describing_app, lambda refusal: _MALFORMED.labels(refusal.code).inc())


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Serve a request; "the start is complete" is held back until the worker is warm."""

    async def send_when_warm(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            await _warm_up()
            _lasting.update(asyncio.all_tasks())
        await send(message)

    async def receive_when_counted() -> Message:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await _count_the_last()
        return message

    if scope["type"] == "lifespan":
        await litellm_app(scope, receive_when_counted, send_when_warm)
    else:
        await _checked_app(scope, receive, send)


async def _warm_up() -> None:
    """Never keeps a worker from starting: whatever goes wrong, the first clients find out."""
    global _warming_up
    folder = os.environ[_METRICS_FOLDER]
    with tempfile.TemporaryDirectory(prefix="warming-up-", dir=folder) as elsewhere:
        os.environ[_METRICS_FOLDER], _warming_up = elsewhere, True
        try:
            async with asyncio.timeout(_WARM_UP_SECONDS):
                async with await asyncio.start_server(_answer_myself, "127.0.0.1", 0) as model:
                    port = model.sockets[0].getsockname()[1]
                    for path, body in _REQUESTS * _ROUNDS:
                        await _ask_myself(path, body, port)
                # LiteLLM counts after it has answered.
                while _counted() < len(_REQUESTS) * _ROUNDS:
                    await asyncio.sleep(_LOOK_SECONDS)
                await GLOBAL_LOGGING_WORKER.flush()
        except Exception:
            _log.exception("The warm-up failed; the first requests will take longer")
        finally:
            os.environ[_METRICS_FOLDER], _warming_up = folder, False


async def _count_the_last() -> None:
    """Let LiteLLM finish with the requests that it has answered: it counts them in tasks of their own, which nobody waits for."""
    about_requests = asyncio.all_tasks() - _lasting - {asyncio.current_task()}
    if about_requests:
        await asyncio.wait(about_requests, timeout=_LAST_COUNTS_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_COUNTS_SECONDS):
            await GLOBAL_LOGGING_WORKER.flush()


def _counted() -> float:
    return sum(sample.value for metric in REGISTRY.collect() for sample in metric.samples if sample.name == _COUNT)


async def _answer_myself(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request as a model would."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.partition(b":")[2]) for line in head.splitlines() if line.lower().startswith(b"content-length:"))
    stream = json.loads(await reader.readexactly(length)).get("stream") is True
    chat = b"/chat/completions " in head
    kind = ("chat.completion.chunk" if stream else "chat.completion") if chat else "text_completion"
    said: dict[str, Any] = {"delta" if stream else "message": {"role": "assistant", "content": "Hello"}} if chat else {"text": "Hello"}
    document: dict[str, Any] = {
        "id": "warm-up",
        "object": kind,
        "created": 1,
        "model": "warm-up",
        "choices": [{"index": 0, "finish_reason": "stop", **said}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    text = json.dumps(document)
    payload = (f"data: {text}\n\ndata: [DONE]\n\n" if stream else text).encode()
    content_type = "text/event-stream" if stream else "application/json"
    writer.write(
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n".encode() + payload
    )
    await writer.drain()
    writer.close()


async def _ask_myself(path: str, body: dict[str, Any], port: int) -> None:
    payload = json.dumps(body).encode()
    headers = [
        (b"authorization", f"Bearer {os.environ['LITELLM_MASTER_KEY']}".encode()),
        (b"content-type", b"application/json"),
        (b"x-citadel-warm-up", str(port).encode()),
        (b"content-length", str(len(payload)).encode()),
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }
    answers: list[Message] = []
    arriving = [{"type": "http.request", "body": payload, "more_body": False}]

    async def receive() -> Message:
        # A client that stays until it has its answer.
        return arriving.pop() if arriving else await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        answers.append(message)

    await litellm_app(scope, receive, send)
    if answers[0]["status"] != 200:
        raise RuntimeError(f"{path}: {b''.join(message.get('body', b'') for message in answers).decode(errors='replace')}")
