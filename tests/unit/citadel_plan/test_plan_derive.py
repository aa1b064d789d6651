"""A catalogue entry from a folder of weights; the committed catalogue from the shapes of the real models' tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from citadel_plan.__main__ import main
from citadel_plan.catalogue import merge_catalogue
from citadel_plan.derive import read_model_folder
from citadel_plan.model_folder import CLASSES, ModelFolderError, UnknownArchitectureError, mismatches, read_architecture
from citadel_plan.problems import Problems
from lab import tiny_models
from unit.model_folders import (
    AWQ,
    FP8,
    GPTQ,
    W8A8,
    config_of,
    real_model,
    tensors_of,
    write_folder,
    write_weights,
)
from unit.plan_examples import GIB, HOST, PROJECT, host_facts, production_models, production_plan

NAMES = ["mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini"]
FORMATS: dict[str, tuple[str, dict[str, Any] | None]] = {"bf16": ("bf16", None), "int8": ("int8", W8A8), "int4": ("awq", AWQ)}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.make_models(folder)
    return folder


def small(tmp_path: Path, weight_format: str = "bf16", name: str = "hermes-2", **changes: object) -> Path:
    """A folder with one of the lab's models, without the weights themselves; wide enough for groups of 128."""
    model = next(model for model in tiny_models.MODELS if model.name == name)
    wide = replace(model, hidden=256, intermediate=512, head_dim=128)
    return write_folder(tmp_path / "model", config_of(wide, **changes), tensors_of(wide, weight_format))


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_the_committed_catalogue_is_what_the_real_tensors_make(tmp_path: Path, name: str, weight_format: str) -> None:
    layout, quantization = FORMATS[weight_format]
    model = real_model(name)
    config = config_of(model, quantization_config=quantization or ...)
    folder = write_folder(tmp_path / name, config, tensors_of(model, layout), shards=3)
    description, _ = read_model_folder(folder)
    entry = production_models()[name]
    assert description.architecture == entry["architecture"]
    variants = [variant for variant in entry["variants"] if variant["weight_format"] == weight_format]
    assert variants
    assert {variant["weights_bytes"] for variant in variants} == {description.weights_bytes}
    assert description.weight_format == weight_format


@pytest.mark.parametrize("name", NAMES)
def test_the_lab_s_models_are_what_its_inventory_says(tiny_folder: Path, name: str) -> None:
    text = (PROJECT / "lab" / "inventory" / "group_vars" / "all" / "lab.yml").read_text(encoding="utf-8")
    merged = merge_catalogue(production_models(), yaml.safe_load(text)["citadel_model_overrides"], Problems(HOST)).entries[name]
    assert isinstance(merged, dict)
    description, modes = read_model_folder(tiny_folder / name)
    assert description.architecture == merged["architecture"]
    assert description.weights_bytes == merged["variants"]["bf16"]["weights_bytes"]
    assert modes == ["chat", "completion"]


@pytest.mark.parametrize(
    ("layout", "quantization", "weight_format"),
    [
        ("bf16", None, "bf16"),
        ("int8", W8A8, "int8"),
        ("awq", AWQ, "int4"),
        ("gptq", GPTQ, "int4"),
        ("gptq", GPTQ | {"desc_act": True, "group_size": -1}, "int4"),
        ("fp8", FP8, "fp8"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_format_has_the_same_parameters(
    tmp_path: Path, name: str, layout: str, quantization: dict[str, Any] | None, weight_format: str
) -> None:
    plain, _ = read_model_folder(small(tmp_path / "plain", name=name))
    described, modes = read_model_folder(small(tmp_path / "quantized", layout, name=name, quantization_config=quantization or ...))
    assert described.architecture == plain.architecture
    assert described.weight_format == weight_format
    assert described.weights_bytes <= plain.weights_bytes
    assert modes == ["completion"], "there is no chat template"


def test_only_the_files_that_the_index_names_count(tmp_path: Path) -> None:
    model = real_model("hermes-2")
    folder = write_folder(tmp_path / "model", config_of(model), tensors_of(model), shards=2)
    write_weights(folder / "consolidated.safetensors", tensors_of(model))
    assert read_model_folder(folder)[0].weights_bytes == 14_483_496_960


def test_tied_embeddings_count_once(tmp_path: Path) -> None:
    folder = small(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    model = tensors_of_folder(folder)
    del model["lm_head.weight"]
    write_folder(folder, config | {"tie_word_embeddings": True}, model)
    head = config["vocab_size"] * config["hidden_size"]
    untied, _ = read_model_folder(small(tmp_path / "untied"))
    tied, _ = read_model_folder(folder)
    assert tied.architecture["other_parameters"] == int(untied.architecture["other_parameters"] or 0) - head


def tensors_of_folder(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}


@pytest.mark.parametrize(
    ("architecture", "changes", "window"),
    [
        ("MistralForCausalLM", {"sliding_window": 4096}, 4096),
        ("MistralForCausalLM", {"sliding_window": None}, None),
        ("MistralForCausalLM", {"sliding_window": 0}, None),
        ("MistralForCausalLM", {"sliding_window": ...}, 4096),  # what the transformers library takes it for
        ("MixtralForCausalLM", {"sliding_window": ..., "num_local_experts": 8, "num_experts_per_tok": 2}, None),
        ("Phi3ForCausalLM", {"sliding_window": 2047}, 2047),
        ("Phi3ForCausalLM", {"sliding_window": ...}, None),
        ("Qwen2ForCausalLM", {"sliding_window": 4096, "use_sliding_window": False}, None),
        ("Qwen2ForCausalLM", {"sliding_window": 4096, "use_sliding_window": True}, 4096),
        ("Qwen2ForCausalLM", {"sliding_window": 4096}, None),  # off unless it is on
        ("LlamaForCausalLM", {"sliding_window": ...}, None),
        ("MistralForCausalLM", {"sliding_window": 4096, "use_sliding_window": False}, None),
    ],
)
def test_the_attention_window(architecture: str, changes: dict[str, Any], window: int | None) -> None:
    config = config_of(real_model("hermes-2"), architectures=[architecture], **changes)
    assert read_architecture(config)["sliding_window_tokens"] == window


def test_what_a_configuration_may_leave_out() -> None:
    model = real_model("phi-3-mini")
    figures = read_architecture(config_of(model, num_key_value_heads=...))
    assert (figures["kv_heads"], figures["head_dim"]) == (32, 96)
    assert read_architecture(config_of(model, head_dim=128))["head_dim"] == 128
    with pytest.raises(ModelFolderError, match="without 'num_key_value_heads'"):
        read_architecture(config_of(real_model("hermes-2"), num_key_value_heads=...))
    with pytest.raises(ModelFolderError, match="without 'head_dim'"):
        read_architecture(config_of(real_model("hermes-2"), architectures=["Qwen3ForCausalLM"]))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def text_config(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def changed_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value is not ...}))

    return change


def changed_tensors(change: Callable[[dict[str, tuple[str, tuple[int, ...]]]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = tensors_of_folder(folder)
        change(tensors)
        write_weights(folder / "model.safetensors", tensors)

    return write


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_to(size: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(size if size >= 0 else (folder / "model.safetensors").stat().st_size + size)

    return cut


def raw_header(header: bytes, claimed: int | None = None) -> Callable[[Path], None]:
    content = struct.pack("<Q", len(header) if claimed is None else claimed) + header
    return lambda folder: (folder / "model.safetensors").write_bytes(content) and None


def with_index(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors.index.json").write_text(text) and None


def second_copy(folder: Path) -> None:
    write_weights(folder / "copy.safetensors", {"lm_head.weight": ("BF16", (512, 256))})


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (no_config, "has no config.json"),
    "corrupt config": (
        text_config('{"architectures": ['),
        "has a config.json that is not JSON (Expecting value: line 1 column 20 (char 19))",
    ),
    "a list": (text_config("[1]"), "has a config.json without 'architectures'"),
    "no architectures": (changed_config(architectures=...), "has a config.json without 'architectures'"),
    "unknown": (
        changed_config(architectures=["BambaForCausalLM"]),
        f"is of the architecture BambaForCausalLM, which nobody has counted: known are {', '.join(CLASSES)}",
    ),
    "key missing": (changed_config(num_hidden_layers=...), "has a config.json without 'num_hidden_layers'"),
    "no number": (changed_config(hidden_size="4096"), 'has a config.json with hidden_size "4096", which is not a number from 1 up'),
    "zero": (changed_config(num_attention_heads=0), "has a config.json with num_attention_heads 0, which is not a number from 1 up"),
    "no weights": (no_weights, "has no weights (*.safetensors)"),
    "bin only": (
        only_bin,
        "has weights as pytorch_model.bin only, not as *.safetensors: take a revision that has those, or convert them with",
    ),
    "empty file": (cut_to(0), "has damaged weights: model.safetensors is cut off after 0 bytes"),
    "cut in the header": (cut_to(100), "has damaged weights: model.safetensors is cut off in its header"),
    "cut in the data": (cut_to(-1), "has damaged weights: model.safetensors is cut off: "),
    "not safetensors": (raw_header(b"PK\x03\x04", claimed=2**40), "has damaged weights: model.safetensors is not a safetensors file"),
    "header no JSON": (raw_header(b"not json"), "has damaged weights: model.safetensors is not a safetensors file"),
    "header a list": (raw_header(b"[1, 2]"), "has damaged weights: model.safetensors has a header that does not describe tensors"),
    "entry without a shape": (
        raw_header(b'{"a": {"dtype": "BF16", "data_offsets": [0, 0]}}'),
        "has damaged weights: model.safetensors has a header that does not describe tensors",
    ),
    "backwards": (
        raw_header(b'{"a": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 0]}}'),
        "has damaged weights: model.safetensors has a header that does not describe tensors",
    ),
    "no tensor": (raw_header(b"{}"), "has weight files without a single tensor"),
    "file of the index missing": (
        with_index('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        "lacks model-00001-of-00002.safetensors, which its model.safetensors.index.json names",
    ),
    "index no index": (with_index("[]"), "has damaged weights: model.safetensors.index.json does not say which file holds which tensor"),
    "twice": (second_copy, "has the tensor lm_head.weight twice, the second time in model.safetensors: remove the copies or add"),
    "a block missing": (
        changed_tensors(lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.1." in name]),
        "has 589824 parameters in the matrices of its decoder blocks, and its config.json makes 1179648 (2 layers, 2 heads, 1 key and value"
        " heads): files are missing, or the two belong to different models",
    ),
    "another number of heads": (
        changed_config(num_key_value_heads=2),
        "has 1179648 parameters in the matrices of its decoder blocks, and its config.json makes 1310720 (2 layers, 2 heads, 2 key",
    ),
    "another vocabulary": (
        changed_config(vocab_size=32000),
        "has lm_head.weight of 512 x 256, and its config.json makes 32000 x 256 (vocab_size x hidden_size)",
    ),
    "no head": (
        changed_tensors(lambda tensors: tensors.pop("lm_head.weight")),
        "has no lm_head.weight, and its config.json has no tie_word_embeddings",
    ),
    "no embeddings": (
        changed_tensors(lambda tensors: tensors.pop("model.embed_tokens.weight")),
        "has no embed_tokens.weight among its tensors",
    ),
    "float32": (
        changed_tensors(lambda tensors: tensors.update({name: ("F32", shape) for name, (_, shape) in tensors.items()})),
        "has weights in F32, twice what vLLM would use: save them in bfloat16 first",
    ),
    "promised int8": (
        changed_config(quantization_config=W8A8),
        "has matrices of type BF16, and its config.json promises int8 (I8): the two belong to different models",
    ),
    "unknown method": (
        changed_config(quantization_config={"quant_method": "bitsandbytes"}),
        "is quantized as bitsandbytes: the plan knows awq, gptq, fp8 and compressed-tensors",
    ),
    "eight bits": (changed_config(quantization_config=GPTQ | {"bits": 8}), "is quantized as gptq with 8 bits: the plan knows 4"),
    "act order": (
        changed_config(quantization_config=GPTQ | {"desc_act": True}),
        "is quantized as gptq with desc_act in groups of 128, which vLLM no longer loads: take a revision with desc_act false",
    ),
    "weights only": (
        changed_config(quantization_config={**W8A8, "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}}}),
        "is quantized as compressed-tensors with int8 weights with 16-bit activations: the plan knows int8 weights with 8-bit",
    ),
    "no scheme": (
        changed_config(quantization_config={"quant_method": "compressed-tensors"}),
        "is quantized as compressed-tensors with no scheme",
    ),
    "no mapping": (changed_config(quantization_config="awq"), "has a config.json whose quantization_config is not a mapping"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_served_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, sentence = BROKEN[case]
    folder = small(tmp_path)
    read_model_folder(folder)
    spoil(folder)
    assert main([str(folder), "--name", "mine", "--port", "11410"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"{folder} {sentence}")
    assert shown.err.endswith(".\n")


def test_only_an_unknown_class_is_unknown(tmp_path: Path) -> None:
    folder = small(tmp_path)
    changed_config(architectures=["BambaForCausalLM"])(folder)
    with pytest.raises(UnknownArchitectureError):
        read_model_folder(folder)


def test_the_entry_plans_as_it_is(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = real_model("hermes-2")
    folder = write_folder(tmp_path / "mine", config_of(model, quantization_config=W8A8), tensors_of(model, "int8"))
    assert main([str(folder), "--name", "mine", "--port", "11410"]) == 0
    text = capsys.readouterr().out
    entry = yaml.safe_load(text)
    service = next(
        service
        for service in production_plan(facts=host_facts(memory_gib=200, cores=32), overrides=entry).services
        if service.name == "mine"
    )
    assert (service.api_port, service.variant, service.expected_weights_bytes) == (11410, "int8", 7_506_927_616)
    assert service.source.path == str(folder)
    # Two sequences fit the request that is proposed, with less than a GiB to spare.
    assert service.max_num_seqs >= entry["mine"]["min_num_seqs"]
    assert service.memory_max_bytes == service.memory_requested_bytes == int(entry["mine"]["request"]["memory"].removesuffix("GiB")) * GIB
    less = {"mine": {**entry["mine"], "request": {**entry["mine"]["request"], "memory": f"{service.memory_requested_bytes // GIB - 1}GiB"}}}
    assert any(
        warning.startswith("mine: requested")
        for warning in production_plan(facts=host_facts(memory_gib=200, cores=32), overrides=less).warnings
    )
    assert "2 sequences of 8192 tokens" in text


def test_what_runs_on_no_cpu_asks_for_memory_beside_the_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = real_model("mixtral-8x7b")
    folder = write_folder(tmp_path / "fp8", config_of(model, quantization_config=FP8), tensors_of(model, "fp8"))
    assert main([str(folder), "--name", "mine", "--port", "11410"]) == 0
    entry = yaml.safe_load(capsys.readouterr().out)["mine"]
    assert entry["variants"][0]["weight_format"] == "fp8"
    assert int(entry["request"]["memory"].removesuffix("GiB")) * GIB < entry["variants"][0]["weights_bytes"]


@pytest.mark.parametrize(
    ("name", "port", "sentence"),
    [
        ("Mine", "11410", 'citadel_models.Mine has the name "Mine", which cannot name a systemd instance and a folder'),
        ("mine", "80", "citadel_models.mine.request.port is 80, which is not between 1024 and 65535"),
        ("mine", "", "PORT is empty: write make model FOLDER="),
        ("", "11410", "NAME is empty: write make model FOLDER="),
        ("mine", "eleven", 'PORT is "eleven", which is not a number'),
    ],
)
def test_a_name_or_port_that_the_plan_refuses(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], name: str, port: str, sentence: str
) -> None:
    assert main([str(tiny_folder / "hermes-2"), "--name", name, "--port", port]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(sentence)


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), "--name", "mine", "--port", "11410"]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'nowhere'} is no folder.\n"


def test_a_mismatch_names_both_figures() -> None:
    expected = production_models()["hermes-2"]["architecture"]
    assert mismatches(expected, expected) == []
    found = {**expected, "layers": 31, "sliding_window_tokens": None}
    assert mismatches(found, expected) == [
        "layers is 31 in the files and 32 in the catalogue",
        "sliding_window_tokens is none in the files and 4096 in the catalogue",
    ]
    assert mismatches({"class": "X"}, {"class": "Y", "layers": 3}) == ["class is X in the files and Y in the catalogue"]
