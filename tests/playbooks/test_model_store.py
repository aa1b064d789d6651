"""The files of a model against the figures that the plan counted with: a mismatch stops before anything starts, naming both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from citadel_plan import list_architectures
from citadel_plan.catalogue import CATALOGUE
from lab import tiny_models
from rendering import PROJECT
from unit.plan_examples import production_models, tiny_overrides

# The last two are what a deployment asks when the weights are on the host already: compared, then verified.
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: model_store, tasks_from: validate}
    - ansible.builtin.import_role: {name: model_store, tasks_from: compare}
    - ansible.builtin.import_role: {name: model_store, tasks_from: verify}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_models.make_models(folder)
    return folder


def run(folder: Path, path: Path, on_host: Path, **changes: object) -> tuple[bool, str]:
    expected = list_architectures(production_models(), overrides=tiny_overrides())["hermes-2"]
    variables: dict[str, Any] = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "model_store_name": "hermes-2",
        "model_store_source": {"type": "controller_folder", "path": str(path)},
        "model_store_expected_weights_bytes": changes.pop("weights_bytes", 279168),
        "model_store_expected_architecture": {**expected, **changes},
        "model_store_folder": str(on_host),
    }
    playbook = folder / "play.yml"
    playbook.write_text(PLAY)
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        str(playbook),
        "--inventory",
        "localhost,",
        "--extra-vars",
        json.dumps(variables),
    ]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    output = finished.stdout + finished.stderr
    assert "Traceback" not in output
    return finished.returncode == 0, " ".join(output.split())


def test_the_right_files_pass(models: Path, tmp_path: Path) -> None:
    assert run(tmp_path, models / "hermes-2", models)[0]


def test_other_files_on_the_controller_stop_with_both_figures(models: Path, tmp_path: Path) -> None:
    passed, said = run(tmp_path, models / "hermes-2", models, layers=32, sliding_window_tokens=None, weights_bytes=14_483_496_960)
    assert not passed
    assert "layers is 2 in the files and 32 in the catalogue; sliding_window_tokens is 4096 in the files and none in the catalogue;" in said
    assert "weights_bytes is 279168 in the files and 14483496960 in the catalogue" in said
    assert f"The folder of {CATALOGUE}.hermes-2 on the controller, '{models}/hermes-2', is not what the plan counted with" in said


def test_other_files_on_the_host_stop_before_anything_starts(models: Path, tmp_path: Path) -> None:
    on_host = tmp_path / "on-host"
    on_host.mkdir()
    (on_host / "hermes-2").symlink_to(models / "phi-3-mini")
    passed, said = run(tmp_path, models / "hermes-2", on_host)
    assert not passed
    assert "class is Phi3ForCausalLM in the files and MistralForCausalLM in the catalogue" in said
    assert "kv_heads is 2 in the files and 1 in the catalogue" in said
    assert "Nothing was started." in said


def test_a_class_that_nobody_counted_is_compared_by_its_bytes(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "hermes-2"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(models / "hermes-2" / "model.safetensors")
    config = json.loads((models / "hermes-2" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BambaForCausalLM"]}))
    assert run(tmp_path, folder, folder.parent, **{"class": "BambaForCausalLM"})[0]
    passed, said = run(tmp_path, folder, folder.parent, **{"class": "BambaForCausalLM"}, weights_bytes=1)
    assert not passed
    assert "weights_bytes is 279168 in the files and 1 in the catalogue" in said
