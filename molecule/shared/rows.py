"""What a proof has measured, row by row: build/NAME.json for programs, build/NAME.md for the docs."""

from __future__ import annotations

import json
from typing import Any

from lab_host import CHECKOUT


def keep_row(name: str, row: dict[str, Any]) -> None:
    """Add a row, in the place of one with the same first cell, and write the table anew; rows of other columns are an older program's."""
    path = CHECKOUT / "build" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    first = next(iter(row))
    before = json.loads(path.read_text()) if path.exists() else []
    rows = {entry[first]: entry for entry in before if list(entry) == list(row)} | {row[first]: row}
    path.write_text(json.dumps(list(rows.values()), indent=2) + "\n")
    lines = [list(row), ["---"] * len(row), *([str(cell) for cell in entry.values()] for entry in rows.values())]
    path.with_suffix(".md").write_text("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    print(f"\n{name}: {json.dumps(row)}")
