"""What is run before Prometheus starts: real blocks, really broken, and Prometheus itself, which starts afterwards and not before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.haproxy import tool, until
from ports import free_port
from rendering import PROJECT

PROGRAM = PROJECT / "roles" / "monitoring" / "files" / "citadel_prometheus_data.py"
FIRST_SECONDS = 1795500000 // 7200 * 7200


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blocks of two hours each, as Prometheus' own tool writes them."""
    folder = tmp_path_factory.mktemp("whole")
    samples = "".join(f"lab_gauge {number} {FIRST_SECONDS + number * 600}\n" for number in range(20))
    (folder / "samples").write_text(f"# TYPE lab_gauge gauge\n{samples}# EOF\n", encoding="utf-8")
    command = [tool("promtool"), "tsdb", "create-blocks-from", "openmetrics", folder / "samples", folder / "data"]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert len(blocks(folder / "data")) == 2
    return folder / "data"


def blocks(data: Path) -> list[Path]:
    return sorted(folder for folder in data.iterdir() if re.fullmatch("[0-9A-Z]{26}", folder.name))


def copied(whole: Path, data: Path) -> list[Path]:
    subprocess.run(["cp", "-a", whole, data], check=True)
    return blocks(data)


def run_before(folder: Path) -> tuple[list[str], str]:
    """Run it as systemd does; the lines that it says and its metric."""
    words = ["--data", folder / "data", "--aside", folder / "aside", "--metric-file", folder / "figures.prom"]
    done = subprocess.run([sys.executable, "-sSE", PROGRAM, *words], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    page = (folder / "figures.prom").read_text(encoding="utf-8")
    check = subprocess.run([tool("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False, timeout=60)
    assert (check.returncode, check.stderr) == (0, "")
    return done.stderr.splitlines(), page.splitlines()[-1]


def starts(folder: Path) -> bool:
    """Whether Prometheus starts on the data and answers."""
    (folder / "prometheus.yml").write_text("{}", encoding="utf-8")
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--storage.tsdb.retention.time=100y"]
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [tool("prometheus"), *words, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(
            lambda: process.poll() is not None or "Server is ready" in (folder / "log").read_text(encoding="utf-8"),
            seconds=30,
            what="Prometheus starts or ends",
        )
        return process.poll() is None
    finally:
        process.terminate()
        process.wait(20)


def cut_off(file: str) -> Callable[[Path], None]:
    """Leave the first bytes of a block's file."""

    def cut(block: Path) -> None:
        with (block / file).open("r+b") as content:
            content.truncate(20)

    return cut


def garble(file: str) -> Callable[[Path], None]:
    """Overwrite the beginning of a block's file."""

    def overwrite(block: Path) -> None:
        with (block / file).open("r+b") as content:
            content.write(b"garbage!")

    return overwrite


@pytest.mark.parametrize(
    "break_it",
    [cut_off("index"), garble("index"), garble("chunks/000001"), garble("tombstones")],
    ids=["cut", "index", "chunks", "tombstones"],
)
def test_a_block_that_cannot_be_opened_is_set_aside_and_the_others_stay(
    whole: Path, tmp_path: Path, break_it: Callable[[Path], None]
) -> None:
    first, second = copied(whole, tmp_path / "data")
    start = json.loads((first / "meta.json").read_text(encoding="utf-8"))["minTime"]
    break_it(first)
    assert not starts(tmp_path), "this is why it is set aside"
    said, metric = run_before(tmp_path)
    assert starts(tmp_path)
    assert blocks(tmp_path / "data") == [second]
    assert [folder.name.partition("-")[0] for folder in (tmp_path / "aside").iterdir()] == [first.name]
    assert metric == "citadel_prometheus_data_set_aside 1"
    assert len(said) == 1
    times = "2026-11-24 [0-9:]{5} to 2026-11-24 [0-9:]{5} UTC"
    assert re.fullmatch(rf"<3>set aside \S+, the measurements of {times}, which would keep Prometheus from starting: .+", said[0]), said
    assert start == FIRST_SECONDS * 1000


def test_all_that_is_broken_is_set_aside_at_once(whole: Path, tmp_path: Path) -> None:
    for block in copied(whole, tmp_path / "data"):
        garble("index")(block)
    (tmp_path / "data" / "chunks_head").mkdir()
    (tmp_path / "data" / "chunks_head" / "000001").write_bytes(b"garbage!")
    (tmp_path / "data" / "chunks_head" / "000002").write_bytes(b"")
    assert not starts(tmp_path)
    said, metric = run_before(tmp_path)
    assert starts(tmp_path)
    assert blocks(tmp_path / "data") == []
    assert metric == "citadel_prometheus_data_set_aside 3"
    assert [line for line in said if "part of the last three hours" in line] == said[-1:]
    # What lies there is told at every start, until somebody has looked.
    assert run_before(tmp_path) == ([], metric)


def test_data_that_is_whole_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path / "data")
    assert run_before(tmp_path) == ([], "citadel_prometheus_data_set_aside 0")
    assert len(blocks(tmp_path / "data")) == 2
    assert not (tmp_path / "aside").exists()


def test_the_first_start_has_no_data(tmp_path: Path) -> None:
    assert run_before(tmp_path) == ([], "citadel_prometheus_data_set_aside 0")
