from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from inventories import CASES, planned

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def plans_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(params=CASES, scope="session")
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def plan(case: str, plans_folder: Path) -> dict[str, Any]:
    return dict(planned(case, plans_folder)["plan"])
