"""What monitoring costs: a scrape of each target of a running lab host, and a week of such scrapes in a Prometheus of its own.

    .venv/bin/python benchmarks/monitoring_cost.py            # `make demo` must be running; takes half an hour
    .venv/bin/python benchmarks/monitoring_cost.py --days 1   # three minutes

Every series of the host is read once from its Prometheus. Then a Prometheus on loopback, with the host's own rules, is handed a week of
samples of all of them by remote write, as fast as it takes them. They pass through its write-ahead log, its head and its compaction as
scraped ones do, which blocks made by promtool would not, and no text of tens of gigabytes is written. What is not zero on the host moves at
every scrape, which is more than a host under load does. At the end its retention by size is made too small for what it holds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
HOST = "hx-llm-server-01"
PORT = 19390
INTERVAL_SECONDS = 15
BATCH_SAMPLES = 120
"""Half an hour: the head takes nothing older than an hour before its newest."""
SERIES_PER_REQUEST = 500
SETTLE_SECONDS = 90
MEBIBYTE = 2**20
GIBIBYTE = 2**30
_SERIES = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+) \d+$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


# --- the lab host ---


def on_host(*command: str) -> str:
    """Run a command on the lab host; refuses where none is up."""
    done = subprocess.run([PROJECT / "lab" / "ssh", HOST, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr.strip())
    return done.stdout


def asked_on_host(path: str) -> Any:  # noqa: ANN401 - JSON
    """Ask the host's Prometheus."""
    return json.loads(on_host(f"curl --silent --fail '127.0.0.1:9090/api/v1/{path}'"))["data"]


def scrapes() -> None:
    """Print what a scrape of each target is: bytes of the page, bytes on the wire, samples, series of its own, seconds."""
    samples = {
        result["metric"]["instance"] + result["metric"]["job"]: result["value"][1]
        for result in asked_on_host("query?query=scrape_samples_scraped")["result"]
    }
    print(f"{'job':>13} {'service':>20} {'bytes':>9} {'compressed':>11} {'samples':>8} {'ms':>6}")
    for target in sorted(
        asked_on_host("targets?state=active")["activeTargets"], key=lambda entry: (entry["labels"]["job"], entry["scrapeUrl"])
    ):
        labels, url = target["labels"], target["scrapeUrl"]
        plain = on_host(f"curl --silent --output /dev/null --write-out '%{{size_download}}' {url}")
        wire = on_host(f"curl --silent --output /dev/null --header 'Accept-Encoding: gzip' --write-out '%{{size_download}}' {url}")
        print(
            f"{labels['job']:>13} {labels['service']:>20} {int(plain):>9} {int(wire):>11}"
            f" {samples.get(labels['instance'] + labels['job'], '?'):>8} {target['lastScrapeDuration'] * 1000:>6.0f}"
        )


@dataclass(frozen=True)
class Series:
    """A series as the host's Prometheus has it."""

    labels: tuple[tuple[str, str], ...]
    value: float

    @property
    def model(self) -> str:
        """The model that it is about, by the labels of vLLM, citadel-exporter, the rules and HAProxy."""
        labels = dict(self.labels)
        return labels.get("model") or labels.get("proxy", "").partition("model_")[2]

    def of_model(self, name: str) -> Series:
        """The same of another model."""
        return replace(self, labels=tuple((key, value.replace(self.model, name)) for key, value in self.labels))


def models(series: Sequence[Series]) -> set[str]:
    """Names of the models that are scraped; LiteLLM puts other things into a label of that name."""
    return {entry.model for entry in series if ("job", "models") in entry.labels}


def all_series() -> list[Series]:
    """Read every series that the host's Prometheus has now, those of the rules among them."""
    page = on_host("curl --silent --fail --get --data-urlencode 'match[]={__name__=~\".+\"}' 127.0.0.1:9090/federate")
    found = []
    for line in page.splitlines():
        if match := _SERIES.match(line):
            labels = [("__name__", match[1]), *_LABEL.findall(match[2] or "")]
            found.append(Series(tuple(sorted(labels)), float(match[3])))
    return found


# --- remote write: protocol buffers in a snappy frame ---


def varint(number: int) -> bytes:
    """Write an unsigned number as protocol buffers do."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    """Write a field with a length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def samples_of(values: np.ndarray[Any, Any], times: np.ndarray[Any, Any]) -> bytes:
    """Write samples (value: double, field 1; milliseconds: varint of six bytes, field 2), each as field 2 of its series."""
    layout = np.dtype([("tag", "u1"), ("length", "u1"), ("value_tag", "u1"), ("value", "<f8"), ("time_tag", "u1"), ("time", "u1", 6)])
    out = np.empty(len(values), layout)
    out["tag"], out["length"], out["value_tag"], out["time_tag"] = 0x12, layout.itemsize - 2, 0x09, 0x10
    out["value"] = values
    for place in range(6):
        out["time"][:, place] = (times >> 7 * place) & 0x7F | (0x80 if place < 5 else 0)
    return out.tobytes()


def framed(message: bytes) -> bytes:
    """Frame a message as snappy, as one literal: nothing is gained on loopback by compressing."""
    return varint(len(message)) + b"\xfc" + (len(message) - 1).to_bytes(4, "little") + message


def write(bodies: Sequence[bytes]) -> None:
    """Hand over series."""
    headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf", "X-Prometheus-Remote-Write-Version": "0.1.0"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/api/v1/write", framed(b"".join(bodies)), headers)
    urllib.request.urlopen(request, timeout=120).close()  # noqa: S310 - loopback


def is_recorded(name: str) -> bool:
    """Whether a rule writes it."""
    return ":" in name.replace("vllm:", "") or name.startswith("ALERTS")


class Week:
    """Samples of all series over time: what is not zero moves at every scrape, counters upwards."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._own = [not is_recorded(dict(entry.labels)["__name__"]) for entry in series]
        self._labels = [
            b"".join(field(1, field(1, name.encode()) + field(2, value.encode())) for name, value in entry.labels) for entry in series
        ]
        names = [dict(entry.labels)["__name__"] for entry in series]
        self._values = np.array([entry.value for entry in series])
        self._counts = np.array([name.endswith(("_total", "_count", "_sum", "_bucket")) for name in names])
        constant = np.array([name.endswith(("_created", "_info")) for name in names])
        self._moves = np.isfinite(self._values) & (self._values != 0) & ~constant
        self._whole = self._moves & (self._values == np.rint(self._values))
        self._random = np.random.default_rng(1)

    def write(self, times: np.ndarray[Any, Any], *, recorded: bool = True) -> None:
        """Write a sample of each series at each of the times; without those that rules record, where the rules themselves do."""
        for first in range(0, len(self._labels), SERIES_PER_REQUEST):
            bodies = []
            for number in range(first, min(first + SERIES_PER_REQUEST, len(self._labels))):
                if recorded or self._own[number]:
                    bodies.append(field(1, self._labels[number] + samples_of(self._next(number, len(times)), times)))
            write(bodies)

    def _next(self, number: int, count: int) -> np.ndarray[Any, Any]:
        value = self._values[number]
        if not self._moves[number]:
            return np.full(count, value)
        if self._counts[number]:
            steps = self._random.poisson(3, count) if self._whole[number] else self._random.gamma(2, 0.05, count)
            values = value + np.cumsum(steps)
            self._values[number] = values[-1]
        else:
            values = value * (1 + 0.01 * self._random.standard_normal(count))
            values = np.rint(values) if self._whole[number] else values
        return np.asarray(values)


# --- a Prometheus on loopback ---


@contextmanager
def prometheus(folder: Path, *, with_rules: bool = False, retention_bytes: int = 0) -> Iterator[int]:
    """Run Prometheus on the folder's data until the end of the block; its process id."""
    rules = [f"{folder}/rules-*.yml"] if with_rules else []
    settings = {"global": {"evaluation_interval": f"{INTERVAL_SECONDS}s"}, "rule_files": rules}
    (folder / "prometheus.yml").write_text(json.dumps(settings), encoding="utf-8")
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{PORT}"]
    words += ["--web.enable-remote-write-receiver", "--storage.tsdb.retention.time=30d"]
    words += [f"--storage.tsdb.retention.size={retention_bytes}B"] if retention_bytes else []
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(["nice", "-n", "15", "prometheus", *words], stdout=log, stderr=log)
    try:
        while not ready():
            if process.poll() is not None:
                sys.exit((folder / "log").read_text(encoding="utf-8")[-2000:])
            time.sleep(0.5)
        yield process.pid
    finally:
        process.terminate()
        process.wait(120)


def ready() -> bool:
    """Whether it answers."""
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/-/ready", timeout=5).status == 200)
    except OSError:
        return False


def get(path: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
    """Ask it."""
    url = f"http://127.0.0.1:{PORT}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    return json.loads(urllib.request.urlopen(url, timeout=300).read())["data"]


def memory(pid: int) -> str:
    """What a process holds: memory of its own, mapped files, and the most of both together so far."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    own, files, peak = (int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM"))
    return f"{own:.0f} MiB of its own, {files:.0f} MiB of files, {peak:.0f} MiB at most"


def own_mebibytes(pid: int) -> float:
    """Memory of its own alone."""
    return int(re.findall(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))[0]) / 1024


def goes_on(week: Week, seconds: float) -> None:
    """Write a sample of each series every fifteen seconds, as scrapes do, while the rules are evaluated."""
    for _ in range(int(seconds / INTERVAL_SECONDS)):
        week.write(np.array([int(time.time() * 1000)]), recorded=False)
        time.sleep(INTERVAL_SECONDS)


def blocks(folder: Path) -> list[tuple[int, int, int, int]]:
    """Bytes, samples, first and last millisecond of each block."""
    found = []
    for meta in (folder / "data").glob("*/meta.json"):
        text = json.loads(meta.read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in meta.parent.rglob("*") if file.is_file())
        found.append((size, text["stats"]["numSamples"], text["minTime"], text["maxTime"]))
    return sorted(found, key=lambda block: block[2])


def fill(week: Week, days: float) -> None:
    """Hand over all samples from so many days ago until now."""
    now = int(time.time() * 1000)
    times = now - np.arange(int(days * 86400 / INTERVAL_SECONDS), 0, -1) * INTERVAL_SECONDS * 1000
    for first in range(0, len(times), BATCH_SAMPLES):
        week.write(times[first : first + BATCH_SAMPLES])


def a_week(folder: Path, series: Sequence[Series], days: float) -> None:
    """Print disk and memory for so many days, and what retention by size leaves."""
    week = Week(series)
    began = time.monotonic()
    with prometheus(folder) as pid:
        fill(week, days)
        print(f"\n{days:g} days handed over in {time.monotonic() - began:.0f} s; Prometheus meanwhile: {memory(pid)}")
    with prometheus(folder, with_rules=True) as pid:
        print(f"right after a start (the head is read from the write-ahead log): {memory(pid)}")
        goes_on(week, SETTLE_SECONDS)
        print(f"{SETTLE_SECONDS} s later, with the host's rules:                            {memory(pid)}")
        for rule in (rule for group in get("rules")["groups"] for rule in group["rules"] if rule["type"] == "recording"):
            now = time.time()
            get("query_range", query=rule["query"], start=f"{now - days * 86400:.0f}", end=f"{now:.0f}", step="600")
        print(f"after a picture of {days:g} days of each recorded figure:              {memory(pid)}")
    held = blocks(folder)
    size, samples = sum(block[0] for block in held), sum(block[1] for block in held)
    log = sum(file.stat().st_size for name in ("wal", "chunks_head") for file in (folder / "data" / name).rglob("*") if file.is_file())
    per_day = size / samples * len(series) * 86400 / INTERVAL_SECONDS
    print(
        f"\non disk: {size / MEBIBYTE:.0f} MiB in {len(held)} blocks, {size / samples:.2f} bytes a sample; {log / MEBIBYTE:.0f} MiB of log"
    )
    print(f"{len(series)} series: {per_day / MEBIBYTE:.0f} MiB a day, {per_day * 30 / GIBIBYTE:.1f} GiB in 30 days")
    for model, count in sorted(Counter(entry.model for entry in series if entry.model in models(series)).items()):
        print(f"  of {model}: {count} series, {per_day * count / len(series) / MEBIBYTE:.0f} MiB a day")

    bound = int(size * 0.6 + log)
    with prometheus(folder, retention_bytes=bound):
        deadline = time.monotonic() + 180
        while sum(block[0] for block in blocks(folder)) + log > bound and time.monotonic() < deadline:
            time.sleep(1)
    left = blocks(folder)
    remains = sum(block[0] for block in left)
    print(
        f"\nretention by size: {bound / MEBIBYTE:.0f} MiB allowed; {len(held)} blocks of {size / MEBIBYTE:.0f} MiB became {len(left)} of"
        f" {remains / MEBIBYTE:.0f} MiB, the oldest sample {(left[0][2] - held[0][2]) / 86_400_000:.1f} days younger:"
        f" {'holds' if remains + log <= bound else 'DOES NOT HOLD'}"
    )


def models_more(folder: Path, series: Sequence[Series]) -> None:
    """Print the memory for three hours of the host with more and more models."""
    first = min(models(series))
    measured = []
    for more in (0, 8, 16):
        grown = [*series, *(entry.of_model(f"model-{number}") for number in range(more) for entry in series if entry.model == first)]
        place = folder / f"more-{more}"
        place.mkdir()
        for file in folder.glob("rules-*.yml"):
            (place / file.name).write_bytes(file.read_bytes())
        week = Week(grown)
        with prometheus(place):
            fill(week, 3 / 24)
        with prometheus(place, with_rules=True) as pid:
            goes_on(week, SETTLE_SECONDS)
            measured.append((more, len(grown), own_mebibytes(pid)))
    for more, count, used in measured:
        print(f"{more} models more: {count} series, {used:.0f} MiB of its own")
    (_, fewest, least), (more, most, greatest) = measured[0], measured[-1]
    print(f"each model more: {(most - fewest) / more:.0f} series, {(greatest - least) / more:.1f} MiB")


def main() -> int:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=float, default=7)
    days = parser.parse_args().days
    scrapes()
    series = all_series()
    print(f"\n{len(series)} series, those of rules, of scrapes and of Prometheus among them")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("alerts", "recording"):
            (folder / f"rules-{name}.yml").write_text(on_host(f"cat /etc/prometheus/citadel/rules-{name}.yml"), encoding="utf-8")
        models_more(folder, series)
        a_week(folder, series, days)
    return 0


if __name__ == "__main__":
    sys.exit(main())
