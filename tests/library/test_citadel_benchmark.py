"""What the module measures: the real `bench serve` of vLLM against small servers on loopback, and a mock of systemd-run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from lab.tiny_models import make_models
from module_utils.citadel_bench_serve import arguments

from edge.haproxy import tool
from gateway.backend import Backend
from playing import local_play, place_program, run_playbook
from ports import free_port
from runtimes import vllm_python

KEY = "sk-of-a-client-0123456789abcdef"
PLAY = local_play(
    {"citadel_benchmark": "{{ options }}", "register": "found"},
    {"ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": "{{ destination }}", "mode": "0600"}},
)
# As systemd does it: the program has the environment that was given, and standard input and output of the caller.
MOCK_SYSTEMD_RUN = """#!{python}
import json, os, pathlib, sys
pathlib.Path(sys.argv[0]).with_name("arguments.json").write_text(json.dumps(sys.argv[1:]))
cut = sys.argv.index("--")
settings = [word.removeprefix("--setenv=") for word in sys.argv[:cut] if word.startswith("--setenv=")]
os.execve(sys.argv[cut + 1], sys.argv[cut + 1 :], dict(setting.split("=", 1) for setting in settings))
"""


def measure(folder: Path, python: str, runs: list[dict[str, Any]], **options: object) -> tuple[dict[str, Any], str]:
    """Run the module as Ansible does; what it returned, and all that Ansible showed."""
    place_program(folder / "mock" / "systemd-run", MOCK_SYSTEMD_RUN.format(python=sys.executable))
    options = {"model": "phi-3-mini", "python": python, "tokenizer": str(folder / "phi-3-mini"), "runs": runs, **options}
    variables = {"options": options, "destination": str(folder / "found.json")}
    finished = run_playbook(PLAY, "-vvv", folder=folder, variables=variables, path=folder / "mock")
    shown = finished.stdout + finished.stderr
    assert finished.returncode == 0, shown
    found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert found["changed"] is False
    return found, shown


def run(port: int, way: str = "direct", **changes: object) -> dict[str, Any]:
    sizes = {"concurrency": 2, "prompts": 6, "input_tokens": 64, "output_tokens": 8}
    return {"way": way, "base_url": f"http://127.0.0.1:{port}"} | sizes | changes


def test_what_vllm_measures(tmp_path: Path) -> None:
    make_models(tmp_path)
    with contextlib.ExitStack() as stack:
        model, gateway, full, hanging = (stack.enter_context(Backend("phi-3-mini")) for _ in range(4))
        full.refusal = (429, "full")
        hanging.gate = threading.Event()
        nobody = free_port()
        runs = [
            run(model.port),
            run(gateway.port, "gateway"),
            run(full.port, "gateway"),
            run(hanging.port),
            run(nobody),
            run(model.port, concurrency=1, prompts=3),
        ]
        found, shown = measure(tmp_path, vllm_python(), runs, api_key=KEY, timeout_seconds=15)
        hanging.gate.set()
        # It also looks for /tokenize, which only the model itself has.
        asked = {
            name: [request for request in backend.received if request.path == "/v1/completions"]
            for name, backend in (("model", model), ("gateway", gateway))
        }
    arguments = json.loads((tmp_path / "mock" / "arguments.json").read_text(encoding="utf-8"))

    direct, through, refused, hung, dead, again = found["runs"]
    assert [each["problem"] for each in found["runs"]] == ["", "", "", "it took longer than 15 s", "", ""]
    assert hung["result"] is None
    for each, prompts, at_once in ((direct, 6, 2), (through, 6, 2), (again, 3, 1)):
        result = each["result"]
        assert (result["completed"], result["failed"], result["max_concurrency"]) == (prompts, 0, at_once)
        assert 0 < result["p50_ttft_ms"] <= result["p50_e2el_ms"] <= result["p95_e2el_ms"]
        # The full length of 8 tokens counts, not what the small server says of its answers.
        assert result["output_throughput_by_length"] == pytest.approx(8 * prompts / result["duration"])
        tpot, span = result["p50_tpot_by_length_ms"], result["p50_e2el_ms"] - result["p50_ttft_ms"]
        assert tpot <= result["p95_tpot_by_length_ms"]
        assert tpot == pytest.approx(span / 7, rel=0.9)
        assert (result["errors"], [key for key, value in result.items() if isinstance(value, list)]) == ([], ["errors"])
    assert (refused["result"]["completed"], refused["result"]["failed"], refused["result"]["errors"]) == (0, 6, ["Too Many Requests"])
    assert dead["result"]["failed"] == 6
    assert "Connect" in dead["result"]["errors"][0]
    assert found["log"], "where something went wrong there is more to read"

    # Each asks for what the plan holds, and every run with prompts of its own: the prefix cache would know the answers to the last one's.
    # Within a run some are alike: of a vocabulary this small a fifth of the places to begin at give a text of unreadable bytes only.
    received = asked["model"] + asked["gateway"]
    assert {request.body["model"] for request in received} == {"phi-3-mini"}
    assert {request.body["max_tokens"] for request in received} == {8}
    assert {request.body["ignore_eos"] for request in received} == {True}
    assert len(received) == 7 + 7 + 4
    prompts_of = {name: sorted(request.body["prompt"] for request in requests[:7]) for name, requests in asked.items()}
    assert prompts_of["model"] != prompts_of["gateway"]

    # The key goes to the gateway and to nobody else: no command line, property, output or model sees it.
    authorizations = {way: {request.headers.get("authorization") for request in requests} for way, requests in asked.items()}
    assert authorizations == {"model": {None}, "gateway": {f"Bearer {KEY}"}}
    assert KEY not in shown + json.dumps(found) + json.dumps(arguments)
    assert arguments[-3:] == [vllm_python(), "-I", "-"]


def test_a_gateway_behind_tls_is_asked_without_looking_at_names() -> None:
    sizes = {"model": "x", "tokenizer": "x", "input_tokens": 1, "output_tokens": 1, "prompts": 1, "concurrency": 1}
    assert "--insecure" in arguments({"base_url": "https://192.168.10.29:8000", **sizes})
    assert "--insecure" not in arguments({"base_url": "http://127.0.0.1:11401", **sizes})


def test_what_cannot_even_start_is_said_of_every_run(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named vllm' >&2\nexit 1\n")
    python.chmod(0o755)
    found, _ = measure(tmp_path, str(python), [run(1), run(1)])
    assert found["runs"] == [{"result": None, "problem": "No module named vllm"}] * 2
    assert found["log"] == ["No module named vllm"]


def test_systemd_knows_every_property(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    found, _ = measure(tmp_path, str(python), [run(1)])
    assert found["runs"] == [{"result": None, "problem": "citadel-benchmark.service ended without a word"}]
    arguments = json.loads((tmp_path / "mock" / "arguments.json").read_text(encoding="utf-8"))
    properties = [word.removeprefix("--property=") for word in arguments if word.startswith("--property=")]
    properties += [f"Environment={word.removeprefix('--setenv=')}" for word in arguments if word.startswith("--setenv=")]
    unit = tmp_path / "citadel-benchmark.service"
    unit.write_text("\n".join(["[Service]", "ExecStart=/bin/true", "Slice=-.slice", *properties, ""]), encoding="utf-8")
    verified = subprocess.run([tool("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (verified.stderr, verified.returncode) == ("", 0)
    assert {"PrivateTmp=yes", "ProtectSystem=strict", "MemoryMax=1G", "CPUWeight=10"} <= set(properties)
    assert {"--uid=agent0", "--wait", "--pipe", "--collect"} <= set(arguments)
