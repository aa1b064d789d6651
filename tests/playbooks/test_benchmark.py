"""playbooks/benchmark.yml as an operator runs it, on a host whose models generate, and where `bench serve` answers what was recorded."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from library.test_citadel_status import Service, state, unit
from playing import place_program, run_playbook
from ports import free_ports
from rendering import PROJECT
from unit.plan_examples import production_plan

HOST = "bench"
KEY = "sk-of-a-client-0123456789abcdef"
VERSION = "0.32.0-1a2b3c4d5e6f"
RECORDED = PROJECT / "tests/unit/citadel_plan/recorded/bench_serve.json"
SYSTEMCTL = """#!{python}
import json, pathlib
units = json.loads(pathlib.Path("{folder}/units.json").read_text())
for name, properties in units.items():
    print("".join(f"{{key}}={{value}}\\n" for key, value in ({{"Id": name}} | properties).items()))
"""
# Keeps what it was told and what it read, and answers for every run what was recorded.
SYSTEMD_RUN = """#!{python}
import json, pathlib, re, sys
told = pathlib.Path("{folder}/told")
text = sys.stdin.read()
told.write_text((told.read_text() if told.exists() else "") + json.dumps([sys.argv[1:], text]) + "\\n")
for way in re.findall(r'"way": "(\\w+)"', text):
    broken = pathlib.Path("{folder}/broken")
    if broken.exists() and way == "gateway":
        print(json.dumps({{"result": None, "problem": broken.read_text()}}))
    else:
        print(json.dumps({{"result": json.loads(pathlib.Path("{recorded}").read_text()), "problem": ""}}))
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a host: its plan, its models' supervisors on loopback, and mocks of what systemd brings."""
    with contextlib.ExitStack() as stack:
        plan = production_plan().to_dict()
        ports = iter(free_ports(10))
        units: dict[str, Any] = {}
        for service in plan["services"]:
            told = stack.enter_context(Service(state("generating", "generating")))
            service |= {"api_port": next(ports), "state_port": told.port}
            units |= unit(service["unit"], ExecStart=f"{{ argv[]=/opt/citadel/runtime/vllm/{VERSION}/bin/python -m vllm ; }}")
        gateway = stack.enter_context(Service({"/health/readiness": (200, "{}")}))
        plan["gateway"]["port"] = gateway.port
        units |= unit(plan["gateway"]["unit"], ExecStart="{ argv[]=/opt/citadel/runtime/litellm/1.106.2-a1b2c3d4e5f6/bin/litellm ; }")
        (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        (tmp_path / "units.json").write_text(json.dumps(units), encoding="utf-8")
        for name, text in (("systemctl", SYSTEMCTL), ("systemd-run", SYSTEMD_RUN)):
            place_program(tmp_path / "mock" / name, text.format(python=sys.executable, folder=tmp_path, recorded=RECORDED))
        variables = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "citadel_server_address": "192.168.10.29",
            "edge_tls": "none",
            "runtime_root_folder": "/opt/citadel/runtime",
        }
        settings = {
            "benchmark_plan_file": f"{tmp_path}/plan.json",
            "benchmark_folder": f"{tmp_path}/kept",
            "benchmark_edge_exporter_port": next(ports),
            "benchmark_client_key": KEY,
        }
        groups = {name: {"hosts": {HOST: variables}} for name in ("llm_servers", "gateways")}
        (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}), encoding="utf-8")
        (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        yield tmp_path


def play(host: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    finished = run_playbook(
        PROJECT / "playbooks" / "benchmark.yml",
        "-vv",
        folder=host,
        inventory=host / "hosts.yml",
        variables=json.loads((host / "settings.json").read_text()) | variables,
        path=host / "mock",
    )
    assert "Traceback" not in finished.stdout + finished.stderr
    assert KEY not in finished.stdout + finished.stderr
    assert set(re.findall(r"changed=(\d+)", finished.stdout)) == {"0"}, finished.stdout + finished.stderr
    return finished


def table(output: str) -> list[str]:
    (text,) = re.findall(rf"^ok: \[{HOST}\] => \n    msg: \|-\n((?: {{8}}.*\n)*)", output, re.MULTILINE)
    return [line.removeprefix("        ") for line in text.splitlines()]


def records(host: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((host / "kept" / HOST).glob("*.json"))]


def told(host: Path) -> list[tuple[list[str], str]]:
    """Arguments and standard input of systemd-run, one pair per model."""
    return [tuple(json.loads(line)) for line in (host / "told").read_text(encoding="utf-8").splitlines()]


def test_a_run_is_shown_kept_and_the_baseline_of_the_next(host: Path) -> None:
    first = play(host)
    assert first.returncode == 0, first.stdout + first.stderr
    shown = table(first.stdout)
    names = [service["name"] for service in json.loads((host / "plan.json").read_text())["services"]]
    assert [line.split()[:3:2] for line in shown[2:18]] == [[name, at_once] for name in names for at_once in _at_once(host, name)]
    assert shown[-2:] == [f"no baseline: {', '.join(names)}", "All well."]
    assert max(map(len, first.stdout.split("TASK [Show it]")[1].splitlines())) <= 140
    (kept,) = records(host)
    assert (kept["host"], kept["versions"]["litellm"], kept["versions"]["haproxy"]) == ("hx-llm-server-01", "1.106.2-a1b2c3d4e5f6", None)
    assert {measurement["vllm"] for measurement in kept["measurements"]} == {VERSION}
    assert kept["measurements"][0]["bench_serve"] == json.loads(RECORDED.read_text(encoding="utf-8"))

    for arguments, text in told(host):
        assert arguments[-3:] == [f"/opt/citadel/runtime/vllm/{VERSION}/bin/python", "-I", "-"]
        assert KEY not in "".join(arguments)
        assert text.count("http://192.168.10.29:") == text.count(KEY) == 2, "the gateway is sent it, alone and at its fullest"

    second = play(host)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"baseline of {kept['started']}: {', '.join(names)}" in table(second.stdout)
    assert len(records(host)) == 2


def _at_once(host: Path, name: str) -> list[str]:
    places = {service["name"]: service["max_num_seqs"] for service in json.loads((host / "plan.json").read_text())["services"]}
    return ["1", "1", str(places[name]), str(places[name])]


def test_it_fails_where_that_was_asked_for(host: Path) -> None:
    (host / "broken").write_text("it took longer than 600 s")
    asked = {"benchmark_models": "hermes-2", "benchmark_concurrency": 1}
    sentence = "- hermes-2, through the gateway, 1 at once, was not measured: it took longer than 600 s."
    finished = play(host, **asked)
    assert (finished.returncode, table(finished.stdout)[-1]) == (0, sentence)
    failed = play(host, **asked, benchmark_fail="true")
    assert (failed.returncode, table(failed.stdout)[-1]) == (2, sentence)
    assert "bench is not as quick as it should be: see above." in failed.stdout
    assert [[each["problem"] == "" for each in kept["measurements"]] for kept in records(host)] == [[True, False]] * 2


REFUSALS: dict[str, tuple[dict[str, object], str]] = {
    "a setting": ({"benchmark_prompts": 0}, "benchmark_prompts is '0', but must be a whole number from 1."),
    "a baseline": ({"benchmark_baseline": "README.md"}, "README.md is no record of a benchmark"),
}


@pytest.mark.parametrize(("variables", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(host: Path, variables: dict[str, object], sentence: str) -> None:
    finished = play(host, **variables)
    assert finished.returncode == 2
    assert sentence in " ".join((finished.stdout + finished.stderr).split())
    assert not (host / "told").exists()


def test_a_named_baseline_is_taken_and_a_model_that_is_down_is_not_asked(host: Path) -> None:
    assert play(host).returncode == 0
    (kept,) = (host / "kept" / HOST).glob("*.json")
    record = json.loads(kept.read_text(encoding="utf-8"))
    record["started"] = "2026-01-01T00:00:00Z"
    for measurement in record["measurements"]:
        measurement["plan_fingerprint"] = "0" * 12
    (host / "named.json").write_text(json.dumps(record), encoding="utf-8")
    units = json.loads((host / "units.json").read_text())
    units["citadel-llm@hermes-2.service"] |= {"ActiveState": "failed", "SubState": "failed", "Result": "oom-kill"}
    (host / "units.json").write_text(json.dumps(units), encoding="utf-8")
    (host / "told").unlink()
    finished = play(host, benchmark_baseline=f"{host}/named.json", benchmark_models="hermes-2,phi-3-mini")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    shown = table(finished.stdout)
    assert "baseline of 2026-01-01T00:00:00Z, another plan: phi-3-mini" in shown
    assert shown[-1] == "- hermes-2 has failed (oom-kill). Next: journalctl -u citadel-llm@hermes-2.service -n 50"
    assert len(told(host)) == 1
