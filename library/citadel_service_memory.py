#!/usr/bin/python
"""Ansible module: reads what a model service really holds in memory, at rest and while it works on sequences of full context."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_service_memory
short_description: Reads what a model service really holds in memory
description:
  - Reads from the unit's cgroup the memory that cannot be reclaimed, which is anonymous and shared memory and what the kernel keeps for it.
    Page cache is left out, because the kernel takes it back before it kills anything.
  - Where O(num_seqs) is not 0, sends one request to the service that fills so many sequences to their full context, and reads on until it is answered.
    The prompts are token numbers and differ from their first token on, so that none is answered from the prefix cache.
options:
  unit:
    description: Name of the unit.
    type: str
    required: true
  port:
    description: Port of the service on loopback.
    type: int
    required: true
  model:
    description: Name under which the service serves its model.
    type: str
    required: true
  context_tokens:
    description: Tokens of a full context.
    type: int
    required: true
  num_seqs:
    description: Sequences of full context to be worked on at once; V(0) sends nothing.
    type: int
    default: 0
  timeout_seconds:
    description: How long the request may take.
    type: int
    default: 3600
attributes:
  check_mode:
    support: full
    description: Changes nothing, so it does the same.
"""

EXAMPLES = r"""
- name: Measure hermes-2 while it works on one sequence of full context
  citadel_service_memory:
    unit: citadel-llm@hermes-2.service
    port: 11401
    model: hermes-2
    context_tokens: 8192
    num_seqs: 1
"""

RETURN = r"""
idle_bytes:
  description: What the service held before the request.
  returned: always
  type: int
peak_bytes:
  description: The most that it held while the request was under way; the same as RV(idle_bytes) without a request.
  returned: always
  type: int
limit_bytes:
  description: Its limit as the kernel knows it; V(0) where there is none.
  returned: always
  type: int
"""

import concurrent.futures
import contextlib
import http.client
import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel_cgroup import Cgroup
from ansible.module_utils.citadel_full_load import full_load

SAMPLE_SECONDS = 0.2


def fill(port, model, context_tokens, num_seqs, timeout_seconds):
    """Send a full load. What went wrong, or nothing."""
    body = json.dumps(full_load(model, context_tokens, num_seqs))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__} {error}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"{answer.status} {text[:300]}"


def main():
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "model": {"type": "str", "required": True},
            "context_tokens": {"type": "int", "required": True},
            "num_seqs": {"type": "int", "default": 0},
            "timeout_seconds": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    values = module.params
    _, group, _ = module.run_command(["systemctl", "show", "--property=ControlGroup", "--value", values["unit"]], check_rc=True)
    if not group.strip():
        module.fail_json(msg=f"The unit {values['unit']} is not running: start it first (systemctl start {values['unit']}).")
    cgroup = Cgroup(group.strip())
    idle = peak = cgroup.held_bytes()
    if values["num_seqs"]:
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
            request = pool.submit(fill, *(values[name] for name in ("port", "model", "context_tokens", "num_seqs", "timeout_seconds")))
            while not concurrent.futures.wait([request], timeout=SAMPLE_SECONDS).done:
                with contextlib.suppress(OSError):  # the cgroup may go with its service; the request says what happened
                    peak = max(peak, cgroup.held_bytes())
        if failure := request.result():
            module.fail_json(
                msg=f"{values['model']} did not answer {values['num_seqs']} sequences of {values['context_tokens']} tokens: {failure};"
                f" see journalctl -u {values['unit']}.",
                idle_bytes=idle,
                peak_bytes=peak,
            )
    module.exit_json(changed=False, idle_bytes=idle, peak_bytes=peak, limit_bytes=cgroup.limit_bytes())


if __name__ == "__main__":
    main()
