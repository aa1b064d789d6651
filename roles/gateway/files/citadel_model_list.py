"""`GET /v1/models` with what LiteLLM knows of each model and leaves out of its list: modes, specialisation and description."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from citadel_request_form import Application, Receive, Send

_PATH: Final = "/v1/models"
_TOLD: Final = ("modes", "specialisation", "description")


class ModelList:
    """ASGI middleware: adds to each entry of the list what `described` tells of the model; hands everything else on as it came."""

    def __init__(self, app: Application, described: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._app, self._described = app, described

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Hold an answer of 200 back until it is whole."""
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("GET", _PATH):
            await self._app(scope, receive, send)
            return
        start: dict[str, Any] | None = None
        body = b""

        async def send_described(message: dict[str, Any]) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    document = self._describe(body)
                    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                    await send({**start, "headers": [*headers, (b"content-length", str(len(document)).encode())]})
                    await send({"type": "http.response.body", "body": document})

        # What is compressed could not be read here.
        plain = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        await self._app({**scope, "headers": plain}, receive, send_described)

    def _describe(self, body: bytes) -> bytes:
        listed = json.loads(body)
        described = self._described()
        for entry in listed["data"]:
            about = described.get(entry["id"], {})
            entry |= {name: about[name] for name in _TOLD if name in about}
        return json.dumps(listed).encode()


def described_by(deployments: list[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """Give what LiteLLM's router holds of each model, by the name that clients use."""
    return {deployment["model_name"]: deployment.get("model_info", {}) for deployment in deployments or []}
