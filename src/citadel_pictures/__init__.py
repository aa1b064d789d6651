"""What the pictures of the platform show, written down once: for the consoles that Prometheus serves and for Grafana's dashboards.

Pure and typed, without Ansible: ``filter_plugins/citadel_pictures.py`` is the adapter.
"""

from __future__ import annotations

from .consoles import console_pictures
from .figures import FIGURES, Figure, Level
from .panels import MODEL_PANELS, OVERVIEW_PANELS, Panel

__all__ = ["FIGURES", "MODEL_PANELS", "OVERVIEW_PANELS", "Figure", "Level", "Panel", "console_pictures"]
