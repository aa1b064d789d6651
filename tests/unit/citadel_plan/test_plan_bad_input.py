"""Bad inventories: each gives a sentence that names the path, the value, the limit and the way out; none gives a traceback."""

# ruff: noqa: E501 - a table of whole sentences reads best one case per line

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest

from citadel_plan import PlanError, plan
from unit.plan_examples import HOST, host_facts, problems_of, production_models, production_plan, settings

OVER = "citadel_model_overrides"


def hermes(**changes: object) -> dict[str, Any]:
    return {"overrides": {"hermes-2": changes}}


def hermes_request(**changes: object) -> dict[str, Any]:
    return hermes(request=changes)


CASES: list[tuple[dict[str, Any], str]] = [
    # wrong types and units
    (hermes_request(memory="15GB"), f'{OVER}.hermes-2.request.memory is "15GB", which has the unit "GB", which is not one of KiB, MiB, GiB, TiB: write "15GiB" (the specification\'s GB is read as GiB).'),
    (hermes_request(memory=15), f'{OVER}.hermes-2.request.memory is 15, which is not a size: write a number with a binary unit, for example "4GiB" or "512MiB".'),
    (hermes_request(memory="15"), f'{OVER}.hermes-2.request.memory is "15", which has no unit: write "15GiB" or "15MiB".'),
    (hermes_request(memory="-1GiB"), f'{OVER}.hermes-2.request.memory is "-1GiB", which is not a size: write a number with a binary unit, for example "4GiB" or "512MiB".'),
    (hermes_request(memory="1MiB"), f'{OVER}.hermes-2.request.memory is "1MiB", which is not between 64 MiB and 65536.0 GiB.'),
    (hermes_request(memory=None), f'{OVER}.hermes-2.request.memory is empty, which is not a size: write a number with a binary unit, for example "4GiB" or "512MiB".'),
    (hermes_request(port="11401"), f'{OVER}.hermes-2.request.port is "11401", which is not a whole number: write it without quotes, unit or fraction.'),
    (hermes_request(port=80), f"{OVER}.hermes-2.request.port is 80, which is not between 1024 and 65535."),
    (hermes_request(cpus=0), f"{OVER}.hermes-2.request.cpus is 0, which is not between 1 and 4096."),
    (hermes_request(cpus=True), f"{OVER}.hermes-2.request.cpus is true, which is not a whole number: write it without quotes, unit or fraction."),
    (hermes_request(cpus=2.5), f"{OVER}.hermes-2.request.cpus is 2.5, which is not a whole number: write it without quotes, unit or fraction."),
    (hermes_request(cpu_weight=10001), f"{OVER}.hermes-2.request.cpu_weight is 10001, which is not between 1 and 10000."),
    (hermes_request(context_tokens=65536), f"{OVER}.hermes-2.request.context_tokens is 65536, which is more than the model was made for: write 32768 (native_context_tokens) or less."),
    (hermes_request(max_output_tokens=9000), f"{OVER}.hermes-2.request.max_output_tokens is 9000, which is not between 1 and 8191: prompt and answer share context_tokens."),
    (hermes(request="15GiB"), f'{OVER}.hermes-2.request is "15GiB", which is not a mapping: write keys and values below it.'),
    (hermes(modes="chat"), f'{OVER}.hermes-2.modes is "chat", which is not a list of texts: write one per line, each after a dash.'),
    (hermes(modes=["chat", "speech"]), f"{OVER}.hermes-2.modes is ['chat', 'speech'], which holds \"speech\": use chat and completion only."),
    (hermes(description=""), f'{OVER}.hermes-2.description is "", which is not a text: write a word in quotes.'),
    (hermes(enabled="yes"), f'{OVER}.hermes-2.enabled is "yes", which is neither true nor false: write it without quotes.'),
    (hermes(min_num_seqs=17), "citadel_models.hermes-2.max_num_seqs is 16, which is below min_num_seqs (17): raise it or lower min_num_seqs."),
    (hermes(engine={"max_num_batched_tokens": 16}, max_num_seqs=64), f"{OVER}.hermes-2.engine.max_num_batched_tokens is 16, which is below max_num_seqs (64), which vLLM refuses: raise it or lower max_num_seqs."),
    (hermes(engine={"extra_arguments": ["--max-model-len=4096"]}), f"{OVER}.hermes-2.engine.extra_arguments is ['--max-model-len=4096'], which sets --max-model-len, which the plan decides: leave it out."),
    (hermes(engine={"extra_arguments": ["--port", "80"]}), f"{OVER}.hermes-2.engine.extra_arguments is ['--port', '80'], which sets --port, which the plan decides: leave it out."),
    (hermes(engine={"extra_arguments": ["--max-num-s=4"]}), f"{OVER}.hermes-2.engine.extra_arguments is ['--max-num-s=4'], which sets --max-num-seqs, which the plan decides: leave it out."),
    (hermes(engine={"extra_arguments": ["-tp=2"]}), f"{OVER}.hermes-2.engine.extra_arguments is ['-tp=2'], which sets --tensor-parallel-size, which the plan decides: leave it out."),
    (hermes(engine={"extra_arguments": ["--chat-template=/x y"]}), f"{OVER}.hermes-2.engine.extra_arguments is ['--chat-template=/x y'], which holds \"--chat-template=/x y\": a space, quote, backslash, $ or % would not reach vLLM as it is; write one argument per line, option and value as --option=value."),
    (hermes(engine={"load_timeout_seconds": 1}), f"{OVER}.hermes-2.engine.load_timeout_seconds is 1, which is not between 10 and 86400."),
    (hermes_request(memory="0GiB"), f'{OVER}.hermes-2.request.memory is "0GiB", which is not between 64 MiB and 65536.0 GiB.'),
    (hermes_request(memory="99999TiB"), f'{OVER}.hermes-2.request.memory is "99999TiB", which is not between 64 MiB and 65536.0 GiB.'),
    (hermes_request(memory="15.0001GiB"), f'{OVER}.hermes-2.request.memory is "15.0001GiB", which is not a whole number of MiB: write "15360MiB".'),
    (hermes_request(memory="1e1GiB"), f'{OVER}.hermes-2.request.memory is "1e1GiB", which is not a size: write a number with a binary unit, for example "4GiB" or "512MiB".'),
    (hermes_request(storage="2TB"), f'{OVER}.hermes-2.request.storage is "2TB", which has the unit "TB", which is not one of KiB, MiB, GiB, TiB: write "2TiB" (the specification\'s GB is read as GiB).'),
    (hermes_request(context_tokens=1), f"{OVER}.hermes-2.request.context_tokens is 1, which is not between 2 and 16777216."),
    (hermes_request(port=11401.0), f"{OVER}.hermes-2.request.port is 11401.0, which is not a whole number: write it without quotes, unit or fraction."),
    (hermes(max_num_seqs=0, min_num_seqs=1), f"{OVER}.hermes-2.max_num_seqs is 0, which is not between 1 and 4096."),
    (hermes(pin={"memory": "20 GB"}), f'{OVER}.hermes-2.pin.memory is "20 GB", which has the unit "GB", which is not one of KiB, MiB, GiB, TiB: write "20GiB" (the specification\'s GB is read as GiB).'),
    (hermes(pin={"cpu_set": "7-4"}), f'{OVER}.hermes-2.pin.cpu_set is "7-4", which has a range that runs backwards ("7-4"): write "4-7".'),
    (hermes(architecture={"layers": 0}), f"{OVER}.hermes-2.architecture.layers is 0, which is not between 1 and 1024."),
    (hermes(architecture={"sliding_window_tokens": 0}), f"{OVER}.hermes-2.architecture.sliding_window_tokens is 0, which is not between 1 and 16777216."),
    # misspelt and unknown
    (hermes_request(**{"1": 2}), f"{OVER}.hermes-2.request.1 is not a key that is known here; known here: context_tokens, cpu_quota_percent, cpu_weight, cpus, io_weight, max_output_tokens, memory, port, storage, target_latency_milliseconds, tasks_max."),
    (hermes_request(memroy="15GiB"), f'{OVER}.hermes-2.request.memroy is not a key that is known here (did you mean "memory"?).'),
    (hermes(requests={}), f'{OVER}.hermes-2.requests is not a key that is known here (did you mean "request"?).'),
    (hermes(zebra=1), f"{OVER}.hermes-2.zebra is not a key that is known here; known here: architecture, description, enabled, engine, max_num_seqs, min_num_seqs, modes, pin, request, specialisation, variants."),
    ({"overrides": {"hermes2": {"request": {"memory": "20GiB"}}}}, f'{OVER}.hermes2 changes a model that citadel_models does not have (did you mean "hermes-2"?): use the name of an entry, or describe a whole new model with its architecture and variants.'),
    (hermes(pin={"variant": "int16"}), f'{OVER}.hermes-2.pin.variant is "int16", which is not one of bf16, int8, int4.'),
    (hermes(pin={"cpu_set": "0-x"}), f'{OVER}.hermes-2.pin.cpu_set is "0-x", which is not a list of ids such as "0-3,8".'),
    (hermes(pin={"gpu_ids": [0, 0]}), f"{OVER}.hermes-2.pin.gpu_ids is [0, 0], which is not a list of different GPU numbers such as [0, 1]."),
    (hermes(pin={"gpu_ids": [0]}), f"{OVER}.hermes-2.pin.gpu_ids is set and the models run on the CPU: leave it out, or set citadel_device to cuda."),
    # variants and sources
    (hermes(variants={"name": "bf16"}), f"{OVER}.hermes-2.variants is {{'name': 'bf16'}}, which is not a list: write each variant after a dash."),
    (hermes(variants=[{"weights_bytes": 5}]), f"{OVER}.hermes-2.variants[0] has no name: give it one, such as bf16 or int8."),
    (hermes(variants=[{"name": "int8"}, {"name": "int8"}]), f"{OVER}.hermes-2.variants names int8 twice: each variant needs a name of its own."),
    (hermes(variants=[{"name": "int8", "weight_format": "int16"}]), f'{OVER}.hermes-2.variants.int8.weight_format is "int16", which is not one of bf16, int8, int4, fp8.'),
    (hermes(variants=[{"name": "int8", "weights_bytes": "7GiB"}]), f'{OVER}.hermes-2.variants.int8.weights_bytes is "7GiB", which is not a whole number: write it without quotes, unit or fraction.'),
    (hermes(variants=[{"name": "int8", "weights_bytes": -5}]), f"{OVER}.hermes-2.variants.int8.weights_bytes is -5, which is not between 1 and 70368744177664."),
    (hermes(variants=[{"name": "bf16", "source": {"revision": "main"}}]), f'{OVER}.hermes-2.variants.bf16.source.revision is "main", which is not a commit: write its 40 hexadecimal digits, a branch or tag can move.'),
    (hermes(variants=[{"name": "bf16", "source": {"repository": "hermes"}}]), f'{OVER}.hermes-2.variants.bf16.source.repository is "hermes", which is not a repository of the hub: write "owner/name".'),
    (hermes(variants=[{"name": "bf16", "source": {"type": "host_folder"}}]), "citadel_models.hermes-2.variants.bf16.source.path is missing: set it."),
    (hermes(variants=[{"name": "int8", "source": {"path": "weights/hermes"}}]), f'{OVER}.hermes-2.variants.int8.source.path is "weights/hermes", which is not an absolute path: begin it with /.'),
    (hermes(variants=[{"name": "bf16", "source": {"type": "s3"}}]), f'{OVER}.hermes-2.variants.bf16.source.type is "s3", which is not one of hub, controller_folder, host_folder.'),
    # architecture
    (hermes(architecture={"kv_heads": 5}), f"{OVER}.hermes-2.architecture.kv_heads is 5, which does not divide heads (32): take both from the model's config.json."),
    (hermes(architecture={"experts": 8}), "citadel_models.hermes-2.architecture.experts_per_token is 0, which is not between 1 and experts (8), or 0 where there are none."),
    # settings
    ({"policy": "rebalanced"}, 'citadel_plan_settings.policy is "rebalanced", which is not one of rebalance, strict (did you mean "rebalance"?).'),
    ({"device": "gpu"}, 'citadel_plan_settings.device is "gpu", which is not one of auto, cpu, cuda.'),
    ({"device": "cuda"}, "citadel_plan_settings.device is cuda and citadel_host_facts.gpus is empty: set citadel_device to auto or cpu, or install the driver so that the GPUs are seen."),
    ({"memory_reserve": "6"}, 'citadel_plan_settings.memory_reserve is "6", which has no unit: write "6GiB" or "6MiB".'),
    ({"ephemeral_ports": "32768"}, 'citadel_plan_settings.ephemeral_ports is "32768", which is not a range of ports: write "32768-60999", as in net.ipv4.ip_local_port_range.'),
    ({"prometheus_prot": 9090}, 'citadel_plan_settings.prometheus_prot is not a key that is known here (did you mean "prometheus_port"?).'),
    ({"gateway": {"workers": 9}}, 'citadel_plan_settings.gateway.memory is 2.0 GiB, which is too little for 9 workers: raise it to "5056MiB" or lower citadel_plan_settings.gateway.workers.'),
    ({"gateway": {"memory": "512MiB"}}, 'citadel_plan_settings.gateway.memory is 0.5 GiB, which is too little for 1 worker: raise it to "960MiB".'),
    ({"gateway": {"name": "Gate Way"}}, 'citadel_plan_settings.gateway.name is "Gate Way", which cannot name a systemd instance and a folder: use lower-case letters, digits, dots and dashes, 63 at most.'),
    ({"gateway": {"name": "hermes-2"}}, "citadel_models.hermes-2 has the name of the gateway (citadel_plan_settings.gateway.name): rename one of them."),
    ({"memory_reserve": "200GiB"}, "citadel_plan_settings.memory_reserve is 200.0 GiB and citadel_plan_settings.gateway.memory 2.0 GiB, which is more than the 128.0 GiB of the host: lower them."),
    ({"gateway": {"cpus": 0}}, "citadel_plan_settings.gateway.cpus is 0, which is not between 1 and 4096."),
    ({"gateway": {"port": 80}}, "citadel_plan_settings.gateway.port is 80, which is not between 1024 and 65535."),
    ({"ephemeral_ports": "60999-32768"}, 'citadel_plan_settings.ephemeral_ports is "60999-32768", which is not a range of ports: write "32768-60999", as in net.ipv4.ip_local_port_range.'),
    # host facts
    ({"facts": "unknown"}, 'citadel_host_facts is "unknown", which is not a mapping: write keys and values below it.'),
    ({"facts": host_facts(cpus=None)}, "citadel_host_facts.cpus is empty, which holds no CPU: list the host's logical CPUs."),
    ({"facts": host_facts(cpus=["zero"])}, "citadel_host_facts.cpus is ['zero'], which is not a list of CPU numbers."),
    ({"facts": host_facts(cpus="0-5000", numa_nodes=[])}, 'citadel_host_facts.cpus is "0-5000", which holds 5001 CPUs, more than the 4096 that are planned for.'),
    ({"facts": host_facts(memory_bytes=0)}, "citadel_host_facts.memory_bytes is 0, which is not between 268435456 and 70368744177664."),
    ({"facts": host_facts(storage_free_bytes=-1)}, "citadel_host_facts.storage_free_bytes is -1, which is not between 0 and 1125899906842624."),
    ({"facts": host_facts(numa_nodes=[{"id": 0, "cpus": "0-23", "memory_bytes": 2**38}])}, "citadel_host_facts.numa_nodes have 256.0 GiB together, which is more than citadel_host_facts.memory_bytes (128.0 GiB): take all of them from the same host."),
    ({"facts": host_facts(numa_nodes=[{"id": 0, "cpus": "0-11", "memory_bytes": 2**35}, {"id": 0, "cpus": "12-23", "memory_bytes": 2**35}])}, "citadel_host_facts.numa_nodes[1].id is 0, which is the id of another node already: number the nodes as the kernel does."),
    ({"facts": host_facts(gpus=[{"id": 0, "memory_bytes": 81559}])}, "citadel_host_facts.gpus[0].memory_bytes is 81559, which is not between 1073741824 and 70368744177664."),
    ({"facts": host_facts(listening_ports=[22])}, "citadel_host_facts.listening_ports[0] is 22, which is not a mapping: write keys and values below it."),
    ({"facts": host_facts(memory=2**37)}, 'citadel_host_facts.memory is not a key that is known here; known here: cpus, gpus, isa, listening_ports, memory_bytes, numa_nodes, storage_free_bytes, thread_siblings.'),
    ({"facts": host_facts(cpus=[])}, "citadel_host_facts.cpus is [], which holds no CPU: list the host's logical CPUs."),
    ({"facts": host_facts(isa="sse4")}, 'citadel_host_facts.isa is "sse4", which is not one of avx2, avx512, amx, none.'),
    ({"facts": host_facts(isa="none")}, "citadel_host_facts.isa is none and the models run on the CPU, for which vLLM needs AVX2 at least: choose a host with avx2, avx512 or amx, or one with GPUs."),
    ({"facts": host_facts(memory_bytes="128GiB")}, 'citadel_host_facts.memory_bytes is "128GiB", which is not a whole number: write it without quotes, unit or fraction.'),
    ({"facts": host_facts(numa_nodes=[{"id": 0, "cpus": "0-11", "memory_bytes": 2**36}])}, "citadel_host_facts.numa_nodes has no node for CPU 12 of citadel_host_facts.cpus: list every CPU in one node."),
    ({"facts": host_facts(numa_nodes=[{"id": 0, "cpus": "0-23", "memory_bytes": 2**36}, {"id": 1, "cpus": "23", "memory_bytes": 2**36}])}, 'citadel_host_facts.numa_nodes[1].cpus is "23", which names CPU 23, which node 0 has already: list each CPU in one node.'),
    ({"facts": host_facts(thread_siblings=["0-1", "1-2"])}, "citadel_host_facts.thread_siblings is ['0-1', '1-2'], which names CPU 1 in two cores."),
    ({"facts": host_facts(gpus=[{"id": 0, "memory_bytes": 2**36}, {"id": 0, "memory_bytes": 2**36}])}, "citadel_host_facts.gpus[1].id is 0, which is the id of another GPU already."),
    ({"facts": host_facts(listening_ports=[{"address": "0.0.0.0", "port": 70000, "unit": ""}])}, "citadel_host_facts.listening_ports[0].port is 70000, which is not between 1 and 65535."),
    ({"facts": host_facts(storage_free_bytes=40 * 2**30)}, "The weights need 57.0 GiB (mixtral-8x7b 43.8 GiB, hermes-2 7.1 GiB, openchat-3.5 3.9 GiB, phi-3-mini 2.2 GiB) but 20.0 GiB of disk are usable (40.0 GiB free, 20.0 GiB kept by citadel_plan_settings.storage_reserve), 37.0 GiB too little: free them, or set enabled: false on a model."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "sentence"), CASES, ids=[sentence[:70] for _, sentence in CASES])
def test_a_bad_inventory_gives_one_clear_sentence(arguments: dict[str, Any], sentence: str) -> None:
    assert problems_of(**arguments) == (sentence,)


@pytest.mark.parametrize("key", ["port", "memory", "cpus", "context_tokens", "storage", "target_latency_milliseconds"])
def test_a_missing_value_is_named(key: str) -> None:
    models = production_models()
    del models["hermes-2"]["request"][key]
    assert problems_of(models=models) == (f"citadel_models.hermes-2.request.{key} is missing: set it.",)


def test_a_missing_value_beside_a_misspelt_one_says_so() -> None:
    models = production_models()
    models["hermes-2"]["request"]["memroy"] = models["hermes-2"]["request"].pop("memory")
    assert problems_of(models=models) == (
        'citadel_models.hermes-2.request.memory is missing (there is a "memroy": is that a misspelling?): set it.',
        'citadel_models.hermes-2.request.memroy is not a key that is known here (did you mean "memory"?).',
    )


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        (None, "citadel_models is empty, which is not a mapping: write one entry per service name below it."),
        ([], "citadel_models is [], which is not a mapping: write one entry per service name below it."),
        ({}, "citadel_models has no entry: describe at least one model in it."),
        ({"hermes-2": None}, "citadel_models.hermes-2 is empty, which is not a mapping: write keys and values below it."),
    ],
)
def test_a_catalogue_of_the_wrong_shape_is_refused(models: object, sentence: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(models, overrides=None, host=HOST, host_facts=host_facts(), settings=settings())
    assert caught.value.problems == (sentence,)


def test_no_enabled_model_is_refused() -> None:
    overrides = {name: {"enabled": False} for name in production_models()}
    assert problems_of(overrides=overrides) == (
        "citadel_models has no enabled entry: leave enabled: true (or nothing) on at least one model.",
    )


def test_a_name_that_systemd_could_not_take_is_refused() -> None:
    models = production_models()
    models["Hermes 2"] = models.pop("hermes-2")
    (problem,) = problems_of(models=models)
    assert problem.startswith('citadel_models.Hermes 2 has the name "Hermes 2", which cannot name a systemd instance')


def test_everything_that_is_wrong_is_said_at_once() -> None:
    # Ports, memory, a quota and disk are independent: one run names them all.
    problems = problems_of(
        facts=host_facts(memory_gib=64, storage_free_bytes=0),
        overrides={"phi-3-mini": {"request": {"port": 11401, "cpu_quota_percent": 9900}}, "hermes-2": {"pin": {"cpu_set": "99"}}},
    )
    starts = [
        "citadel_model_overrides.phi-3-mini.request.port",
        "citadel_model_overrides.phi-3-mini.request.cpu_quota_percent",
        "The requests",
    ]
    assert [any(problem.startswith(start) for problem in problems) for start in starts] == [True] * 3
    assert any("pin.cpu_set is 99" in problem for problem in problems)


def test_the_message_counts_and_lists() -> None:
    with pytest.raises(PlanError) as caught:
        production_plan(overrides={"hermes-2": {"request": {"cpus": 0, "port": 1}}})
    assert str(caught.value) == (
        "No plan for hx-llm-server-01: 2 problems.\n"
        "  - citadel_model_overrides.hermes-2.request.port is 1, which is not between 1024 and 65535.\n"
        "  - citadel_model_overrides.hermes-2.request.cpus is 0, which is not between 1 and 4096."
    )


def test_keys_that_are_no_text_are_refused_like_others() -> None:
    models = production_models()
    models["hermes-2"]["request"] = {1: 2} | {key: value for key, value in models["hermes-2"]["request"].items() if key != "memory"}
    first, *rest = problems_of(models=models)
    assert first == "citadel_models.hermes-2.request.memory is missing: set it."
    assert [problem.split(" is ")[0] for problem in rest] == ["citadel_models.hermes-2.request.1"]


def test_a_refusal_does_not_depend_on_the_order_of_keys() -> None:
    wrong = {"zebra": 1, "aardvark": {"b": 1, "a": 2}, "request": {"ape": 1, "cow": 2, "port": "x", "cpus": {"y": 1, "x": 2}}}
    other = {"request": {key: wrong["request"][key] for key in reversed(wrong["request"])}, "aardvark": {"a": 2, "b": 1}, "zebra": 1}
    other["request"]["cpus"] = {"x": 2, "y": 1}
    one = {"hermes-2": wrong, "phi-4": {"modes": 1}, "mixtral": {"modes": 2}}
    reversed_one = {"mixtral": {"modes": 2}, "phi-4": {"modes": 1}, "hermes-2": other}
    assert problems_of(overrides=one) == problems_of(overrides=reversed_one)


def _paths(tree: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(*path, key), *_paths(value, (*path, key))]]


INPUT = {"models": production_models(), "settings": settings(), "facts": host_facts(thread_siblings=["0-1"], gpus_gib=(80,))}


@pytest.mark.parametrize("junk", [None, "junk", -1, 2**70, 1.5, True, [], {}, [None], {"a": None}], ids=repr)
def test_junk_anywhere_never_gives_a_traceback(junk: object) -> None:
    for path in _paths(INPUT):
        data = copy.deepcopy(INPUT)
        target: Any = data
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = junk
        # What a model says is read alike on both devices.
        for device in ("cpu",) if path[0] == "models" else ("cpu", "cuda"):
            given = data["settings"] | {"device": device} if isinstance(data["settings"], dict) else data["settings"]
            with contextlib.suppress(PlanError):
                plan(data["models"], overrides=None, host=HOST, host_facts=data["facts"], settings=given)
