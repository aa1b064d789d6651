"""Ansible's way into citadel_pictures: plain types in, plain types out.

Each filter has its documentation beside this file, in NAME.yml.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# The package is used from the checkout, so that no installation step can be forgotten.
_SOURCE = str(Path(__file__).resolve().parent.parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)

from citadel_pictures import console_pictures


def _percents(lines: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(percent) for name, percent in lines.items()}


def citadel_console_pictures(lines: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the consoles that Prometheus serves; see citadel_console_pictures.yml."""
    return console_pictures(_percents(lines))


def citadel_dashboards(lines: Mapping[str, Any]) -> dict[str, str]:
    """Write Grafana's dashboards; see citadel_dashboards.yml.

    Raises:
        AnsibleFilterError: With a sentence, where the library that writes them is not installed on the controller.

    """
    try:
        from citadel_pictures.dashboards import dashboards  # noqa: PLC0415  # only who has a Grafana needs the library
    except ModuleNotFoundError as error:
        raise AnsibleFilterError(
            f"Grafana's dashboards cannot be written, because the controller's Python has no module {error.name}: "
            "run ansible-playbook from .venv, which `make setup` makes anew."
        ) from error
    return dashboards(_percents(lines))


class FilterModule:
    """What is drawn, for Prometheus' consoles and for Grafana."""

    def filters(self) -> dict[str, Any]:
        """Name the filters."""
        return {"citadel_console_pictures": citadel_console_pictures, "citadel_dashboards": citadel_dashboards}
