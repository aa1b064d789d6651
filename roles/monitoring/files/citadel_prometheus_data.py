"""Set aside what keeps Prometheus from starting, so that it comes back by itself: a broken block of its data is worth less than all alerts.

Prometheus repairs its write-ahead log by itself, but refuses to start for a block that it cannot open, and for a file of recent chunks
that does not begin as one. Both are moved out of its folder, and said: in the journal what and of which time, in a metric how many.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

PROMTOOL = "promtool"
PROMTOOL_SECONDS = 60
CHUNKS_BEGIN = b"\x01\x30\xbc\x91"
METRIC = "citadel_prometheus_data_set_aside"


def broken_blocks(data: Path) -> dict[Path, str]:
    """Find the blocks that Prometheus' own library cannot open; why, by folder."""
    done = subprocess.run(
        [PROMTOOL, "tsdb", "list", str(data)], capture_output=True, text=True, errors="replace", check=False, timeout=PROMTOOL_SECONDS
    )
    found = re.findall(r"corrupted block ([0-9A-Z]{26}): (.*?)(?=; corrupted block |$)", done.stderr, re.MULTILINE)
    return {data / name: why for name, why in found if (data / name).is_dir()}


def broken_chunks(data: Path) -> dict[Path, str]:
    """Find files of recent chunks that do not begin as one; an empty one Prometheus removes itself."""
    found = {}
    for file in sorted((data / "chunks_head").glob("[0-9]*")):
        with file.open("rb") as content:
            begin = content.read(len(CHUNKS_BEGIN))
        if begin not in {CHUNKS_BEGIN, b""}:
            found[file] = f"begins with {begin.hex()}"
    return found


def time_of(broken: Path) -> str:
    """Say which time is lost with it."""
    try:
        meta = json.loads((broken / "meta.json").read_text(encoding="utf-8"))
        first, last = (datetime.fromtimestamp(meta[end] / 1000, UTC).strftime("%Y-%m-%d %H:%M") for end in ("minTime", "maxTime"))
    except (OSError, ValueError, KeyError, TypeError):
        return "part of the last three hours" if broken.is_file() else "an unknown time"
    return f"{first} to {last} UTC"


def set_aside(data: Path, aside: Path) -> None:
    """Move what is broken out of the folder, and say so."""
    for broken, why in (broken_blocks(data) | broken_chunks(data)).items():
        lost = time_of(broken)
        aside.mkdir(exist_ok=True)
        broken.rename(aside / f"{broken.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        line = f"<3>set aside {broken}, the measurements of {lost}, which would keep Prometheus from starting: {why}"
        print(line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Set aside, and write how much lies there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aside", type=Path, required=True, help="on the same file system")
    parser.add_argument("--metric-file", type=Path, required=True, help="read by the node exporter")
    options = parser.parse_args(arguments)
    set_aside(options.data, options.aside)
    count = sum(1 for _ in options.aside.iterdir()) if options.aside.is_dir() else 0
    new = options.metric_file.with_name(f".{options.metric_file.name}.new")
    new.write_text(
        f"# HELP {METRIC} Parts of Prometheus' data that could not be opened.\n# TYPE {METRIC} gauge\n{METRIC} {count}\n", encoding="utf-8"
    )
    new.replace(options.metric_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
