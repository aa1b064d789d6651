"""The figures of each model that the plan counts with, for whoever compares them with the files."""

from __future__ import annotations

from dataclasses import asdict

from .catalogue import CATALOGUE, merge_catalogue
from .parse import parse_models
from .problems import Problems


def list_architectures(models: object, *, overrides: object) -> dict[str, dict[str, object]]:
    """List the architecture of every enabled model.

    Args:
        models: ``citadel_models``.
        overrides: ``citadel_model_overrides``; may be None.

    Returns:
        By service the keys of ``architecture`` in the catalogue.

    Raises:
        PlanError: With a sentence for everything that is wrong in the catalogue.

    """
    problems = Problems(CATALOGUE)
    parsed = parse_models(merge_catalogue(models, overrides, problems), problems)
    problems.raise_if_any()
    figures = {model.name: asdict(model.architecture) for model in parsed}
    return {name: {"class": each.pop("model_class"), **each} for name, each in figures.items()}
