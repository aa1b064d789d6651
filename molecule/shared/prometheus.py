"""The lab host's Prometheus."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from lab_host import Answer, ask


class Prometheus:
    """Asked as an operator's browser asks it, through the edge."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str, **parameters: str) -> Any:
        answer = ask(self._port, f"/api/v1/{path}?{urlencode(parameters)}")
        assert answer.status == 200, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])

    def console(self, page: str, **parameters: str) -> Answer:
        """Ask for a page that it serves itself."""
        answer = ask(self._port, f"/consoles/{page}?{urlencode(parameters)}")
        assert answer.status == 200, answer.text
        return answer

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
