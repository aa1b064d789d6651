#!/usr/bin/python
"""Ansible module: measures how quick one model is, with vLLM's own `bench serve`, and leaves nothing behind."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_benchmark
short_description: Measures how quick a model is with vLLM's bench serve
description:
  - Runs C(bench serve) of the runtime that serves the model, in a transient unit. The unit has a memory limit, so that it takes no more than the host
    has set aside, the least CPU time wherever somebody else wants it, a read-only host, and a F(/tmp) of its own that goes with it.
  - The client key is handed over by standard input and set as E(OPENAI_API_KEY) where it is needed. It is in no command line, no property of the
    unit and no log.
  - What cannot be measured is a result like any other, with its reason.
options:
  model:
    description: Name under which the model is served.
    type: str
    required: true
  python:
    description: Python of the runtime that serves it.
    type: path
    required: true
  tokenizer:
    description: Folder of the model's tokenizer.
    type: path
    required: true
  runs:
    description:
      - What to measure, one after the other; each with C(way), C(base_url), C(concurrency), C(prompts), C(input_tokens) and C(output_tokens).
      - The client key is sent where the way is C(gateway).
    type: list
    elements: dict
    required: true
  api_key:
    description: Client key for the gateway; empty where none is needed.
    type: str
    default: ""
  timeout_seconds:
    description: How long each run may take.
    type: int
    default: 600
  user:
    description: Who measures.
    type: str
    default: agent0
attributes:
  check_mode:
    support: full
    description: Changes nothing, so it does the same.
"""

EXAMPLES = r"""
- name: Measure hermes-2, 20 requests one after the other
  citadel_benchmark:
    model: hermes-2
    python: /opt/citadel/runtime/vllm/0.32.0-1a2b3c4d5e6f/bin/python
    tokenizer: /opt/models/hermes-2
    runs:
      - {way: direct, base_url: "http://127.0.0.1:11401", concurrency: 1, prompts: 20, input_tokens: 128, output_tokens: 32}
"""

RETURN = r"""
runs:
  description:
    - For each run its C(result), as C(bench serve) saves it without what there is per request and with C(errors), the distinct ones; or null and
      its C(problem).
  returned: always
  type: list
  elements: dict
log:
  description: The end of what C(bench serve) wrote, where anything could not be measured.
  returned: always
  type: list
  elements: str
"""

import inspect
import json

from ansible.module_utils import citadel_bench_serve
from ansible.module_utils.basic import AnsibleModule

UNIT = "citadel-benchmark.service"
START_SECONDS = 300
PROPERTIES = (
    "--description=Measures how quick the models are",
    # Beside all slices, so that the weight counts against every service. The models' own would take it for one of them.
    "--slice=-.slice",
    "--property=CPUWeight=10",
    "--property=IOWeight=10",
    # bench serve held 520 MiB.
    "--property=MemoryMax=1G",
    "--property=MemorySwapMax=0",
    "--property=PrivateTmp=yes",
    "--property=ProtectSystem=strict",
    "--property=ProtectHome=yes",
    "--property=NoNewPrivileges=yes",
    "--setenv=HOME=/tmp",
    # One thread is enough, and the others of every library would be the models' cores.
    "--setenv=OMP_NUM_THREADS=1",
    "--setenv=TOKENIZERS_PARALLELISM=false",
    "--setenv=HF_HUB_OFFLINE=1",
    "--setenv=VLLM_NO_USAGE_STATS=1",
    "--setenv=DO_NOT_TRACK=1",
)


def program(values):
    """What Python reads from its standard input: how to measure, and what."""
    runs = [
        run
        | {
            "model": values["model"],
            "tokenizer": values["tokenizer"],
            "timeout_seconds": values["timeout_seconds"],
            "api_key": values["api_key"] if run["way"] == "gateway" else "",
        }
        for run in values["runs"]
    ]
    return f"{inspect.getsource(citadel_bench_serve)}\nmeasure(json.loads({json.dumps(runs)!r}))\n"


def main():
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "python": {"type": "path", "required": True},
            "tokenizer": {"type": "path", "required": True},
            "runs": {"type": "list", "elements": "dict", "required": True},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "timeout_seconds": {"type": "int", "default": 600},
            "user": {"type": "str", "default": "agent0"},
        },
        supports_check_mode=True,
    )
    values = module.params
    command = ["systemd-run", f"--unit={UNIT}", f"--uid={values['user']}", *PROPERTIES]
    # For what the program's own limit does not reach. Nothing else ends it when Ansible's connection breaks off.
    command += [f"--property=RuntimeMaxSec={len(values['runs']) * values['timeout_seconds'] + START_SECONDS}"]
    command += ["--quiet", "--collect", "--wait", "--pipe", "--", values["python"], "-I", "-"]
    _, out, log = module.run_command(command, data=program(values))
    lines = log.strip().splitlines()
    runs = [json.loads(line) for line in out.splitlines()]
    broken = {"result": None, "problem": lines[-1] if lines else f"{UNIT} ended without a word"}
    runs += [broken] * (len(values["runs"]) - len(runs))
    well = all(run["result"] and not run["result"]["failed"] for run in runs)
    module.exit_json(changed=False, runs=runs, log=[] if well else lines[-40:])


if __name__ == "__main__":
    main()
