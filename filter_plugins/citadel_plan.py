"""Ansible's way into citadel_plan: plain types in, plain types out, no arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# The package is used from the checkout, so that no installation step can be forgotten.
_SOURCE = str(Path(__file__).resolve().parent.parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)

from citadel_plan import PlanError, diff_plans, list_upstreams, plan, plan_table  # noqa: E402

DOCUMENTATION = r"""
name: citadel_plan
short_description: Plan what a host serves
version_added: "0.1.0"
author: citadel-llm
description:
  - Computes for all model services of a host together which variant of each model runs, and its memory, CPUs, GPUs,
    ports and disk.
  - Refuses with one message that names every violated constraint, the figures, and a way out.
  - The same input gives the same plan, whatever the order of its keys.
positional: _input
options:
  _input:
    description: The catalogue, C(citadel_models), by service name.
    type: dict
    required: true
  overrides:
    description: C(citadel_model_overrides), of the same shape, merged deeply over it; variants merge by name.
    type: dict
    default: {}
  host:
    description: The host's name in the inventory.
    type: str
    required: true
  host_facts:
    description:
      - C(citadel_host_facts), gathered or given - C(memory_bytes), C(cpus) (logical ids), C(numa_nodes), C(isa),
        C(gpus), C(storage_free_bytes), C(listening_ports).
      - C(thread_siblings), a list such as V(["0,24", "1,25"]), says which logical CPUs share a core; without it each
        logical CPU counts as a core.
    type: dict
    required: true
  settings:
    description: C(citadel_plan_settings), assembled in inventory/group_vars/all/plan.yml.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Plan the host
  ansible.builtin.set_fact:
    citadel_plan: >-
      {{ citadel_models | citadel_plan(overrides=citadel_model_overrides, host=inventory_hostname,
                                       host_facts=citadel_host_facts, settings=citadel_plan_settings) }}
"""

RETURN = r"""
_value:
  description:
    - The plan, of dict, list, str, int, float, bool and None. Sizes are in bytes, CPUs requested in physical cores.
    - Per service C(memory_max_bytes = weights_bytes + kv_cache_bytes + runtime_bytes + headroom_bytes) exactly.
  type: dict
"""


def _plain(value: Any) -> Any:
    """Rebuild a value from plain types: Ansible hands over lazy containers and tagged strings."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)[:]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def citadel_plan(models: Any, *, overrides: Any = None, host: str, host_facts: Any, settings: Any) -> dict[str, Any]:
    """Plan one host; see DOCUMENTATION.

    Raises:
        AnsibleFilterError: With every violated constraint as a sentence.
    """
    try:
        result = plan(
            _plain(models),
            overrides=_plain(overrides),
            host=_plain(host),
            host_facts=_plain(host_facts),
            settings=_plain(settings),
        )
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from error
    return result.to_dict()


def citadel_upstreams(plans: Any, *, host: str) -> list[dict[str, Any]]:
    """List the upstreams of the gateway on ``host``; see citadel_upstreams.yml."""
    try:
        return list_upstreams(_plain(plans), host=_plain(host))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_plan_diff(deployed: Any, planned: Any) -> dict[str, Any]:
    """Say what restarts; see citadel_plan_diff.yml."""
    return diff_plans(_plain(deployed), _plain(planned))


def citadel_plan_table(planned: Any) -> str:
    """Lay a plan out as text; see citadel_plan_table.yml."""
    return plan_table(_plain(planned))


class FilterModule:
    """The plan and what is derived from it."""

    def filters(self) -> dict[str, Any]:
        """Name the filters."""
        return {
            "citadel_plan": citadel_plan,
            "citadel_plan_diff": citadel_plan_diff,
            "citadel_plan_table": citadel_plan_table,
            "citadel_upstreams": citadel_upstreams,
        }
