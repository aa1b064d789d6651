"""Ansible's way into citadel_plan: plain types in, plain types out, no arithmetic.

Each filter has its documentation beside this file, in NAME.yml, where ansible-doc looks when one file holds several.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

# The package is used from the checkout, so that no installation step can be forgotten.
_SOURCE = str(Path(__file__).resolve().parent.parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)

from citadel_plan import (
    PlanError,
    benchmark_jobs,
    benchmark_problems,
    benchmark_record,
    benchmark_records,
    benchmark_table,
    compare_memory,
    comparison_table,
    diff_plans,
    diff_sentences,
    host_warnings,
    list_addresses,
    list_architectures,
    list_edge_targets,
    list_gateway_targets,
    list_latency_objectives,
    list_metrics_targets,
    list_node_targets,
    list_shared_models,
    list_upstreams,
    plan,
    plan_page,
    plan_table,
    routing_rule_problems,
    status_problems,
    status_table,
    variable_name_problems,
)


def _plain(value: object) -> Any:  # noqa: ANN401 - what comes out is as free as what YAML can hold
    """Rebuild a value from plain types: Ansible hands over lazy containers and tagged strings."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def citadel_plan(models: object, *, overrides: object = None, host: str, host_facts: object, settings: object) -> dict[str, Any]:
    """Plan one host; see citadel_plan.yml.

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


def citadel_upstreams(plans: object, *, host: str) -> list[dict[str, Any]]:
    """List the upstreams of the gateway on ``host``; see citadel_upstreams.yml.

    Raises:
        AnsibleFilterError: With a sentence, where a host has no plan or no address, or two models would have one port.

    """
    try:
        return list_upstreams(_plain(plans), host=_plain(host))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_shared_models(plans: object, *, host: str) -> list[dict[str, Any]]:
    """List the models that other hosts have too, or alone; see citadel_shared_models.yml.

    Raises:
        AnsibleFilterError: As citadel_upstreams, and where the hosts' addresses do not go together.

    """
    try:
        return list_shared_models(_plain(plans), host=_plain(host))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_plan_diff(deployed: object, planned: object) -> dict[str, Any]:
    """Say what restarts; see citadel_plan_diff.yml.

    Raises:
        AnsibleFilterError: With a sentence, where the text of the deployed plan is not that of a plan.

    """
    before = _plain(deployed)
    if isinstance(before, str):
        try:
            before = json.loads(before or "{}")
        except ValueError as error:
            raise AnsibleFilterError(
                f"The plan to compare with is not JSON ({error}): remove the file, and everything counts as new."
            ) from error
    if not isinstance(before, dict | None):
        raise AnsibleFilterError("The plan to compare with is JSON and not a plan: remove the file, and everything counts as new.")
    return diff_plans(before, _plain(planned))


def citadel_plan_diff_sentences(difference: object) -> list[str]:
    """Write a diff for a person; see citadel_plan_diff_sentences.yml."""
    return diff_sentences(_plain(difference))


def citadel_plan_table(planned: object) -> str:
    """Lay a plan out as text; see citadel_plan_table.yml."""
    return plan_table(_plain(planned))


def citadel_plan_comparison(planned: object, measured: object) -> str:
    """Set predicted beside measured memory; see citadel_plan_comparison.yml."""
    return comparison_table(compare_memory(_plain(planned), _plain(measured)))


def citadel_plan_page(planned: object, *, host_facts: object) -> str:
    """Draw a plan as a page of HTML; see citadel_plan_page.yml.

    Raises:
        AnsibleFilterError: With a sentence for everything that is wrong with the facts.

    """
    try:
        return plan_page(_plain(planned), _plain(host_facts))
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_architectures(models: object, *, overrides: object = None) -> dict[str, dict[str, Any]]:
    """List the figures of each model; see citadel_architectures.yml.

    Raises:
        AnsibleFilterError: With a sentence for everything that is wrong in the catalogue.

    """
    try:
        return list_architectures(_plain(models), overrides=_plain(overrides))
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_benchmark_jobs(planned: object, *, status: object, settings: object) -> list[dict[str, Any]]:
    """Say what to measure; see citadel_benchmark_jobs.yml.

    Raises:
        AnsibleFilterError: With a sentence for everything that is wrong with the settings.

    """
    try:
        return benchmark_jobs(_plain(planned), status=_plain(status), settings=_plain(settings))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_benchmark_problems(record: object, *, tolerance_percent: object) -> list[str]:
    """Say what is slower than it should be; see citadel_benchmark_problems.yml."""
    return benchmark_problems(_plain(record), tolerance_percent=float(_plain(tolerance_percent)))


def citadel_benchmark_record(
    planned: object,
    *,
    jobs: object,
    measured: object,
    status: object,
    started: str,
    citadel_version: str,
    earlier: object,
    any_plan: bool,
) -> dict[str, Any]:
    """Compare what was measured; see citadel_benchmark_record.yml."""
    return benchmark_record(
        _plain(planned),
        jobs=_plain(jobs),
        measured=_plain(measured),
        status=_plain(status),
        started=_plain(started),
        citadel_version=_plain(citadel_version),
        earlier=_plain(earlier),
        any_plan=bool(any_plan),
    )


def citadel_benchmark_records(texts: object) -> list[dict[str, Any]]:
    """Read records of earlier benchmarks; see citadel_benchmark_records.yml.

    Raises:
        AnsibleFilterError: With a sentence that names a file that holds none.

    """
    try:
        return benchmark_records(_plain(texts))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_benchmark_table(record: object, *, tolerance_percent: object) -> str:
    """Lay a benchmark out as text; see citadel_benchmark_table.yml."""
    return benchmark_table(_plain(record), tolerance_percent=float(_plain(tolerance_percent)))


def citadel_host_warnings(condition: object) -> list[str]:
    """Say what a host lacks; see citadel_host_warnings.yml."""
    return host_warnings(_plain(condition))


def citadel_addresses(places: object) -> list[str]:
    """List the addresses that a unit must be able to reach; see citadel_addresses.yml.

    Raises:
        AnsibleFilterError: With a sentence that names what is no address.

    """
    try:
        return list_addresses(_plain(places))
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def citadel_metrics_targets(plans: object, *, loopback_host: str = "") -> list[dict[str, Any]]:
    """List where Prometheus finds the models; see citadel_metrics_targets.yml."""
    return list_metrics_targets(_plain(plans), loopback_host=_plain(loopback_host))


def citadel_routing_rule_problems(rules: object, *, models: object) -> list[str]:
    """Say what is wrong with the gateway's rules; see citadel_routing_rule_problems.yml."""
    return routing_rule_problems(_plain(rules), models=_plain(models))


def citadel_node_targets(plans: object, *, host: str) -> list[dict[str, Any]]:
    """List where Prometheus on ``host`` finds the node exporters; see citadel_node_targets.yml."""
    return list_node_targets(_plain(plans), host=_plain(host))


def citadel_edge_targets(plans: object, *, host: str) -> list[dict[str, Any]]:
    """List where Prometheus on ``host`` finds the edges' own metrics; see citadel_edge_targets.yml."""
    return list_edge_targets(_plain(plans), host=_plain(host))


def citadel_gateway_targets(plans: object, *, gateways: object, loopback_host: str = "") -> list[dict[str, Any]]:
    """List where Prometheus finds the gateways; see citadel_gateway_targets.yml."""
    return list_gateway_targets(_plain(plans), gateways=_plain(gateways), loopback_host=_plain(loopback_host))


def citadel_latency_objectives(plans: object) -> list[dict[str, Any]]:
    """Say which requests of each model count as in time; see citadel_latency_objectives.yml."""
    return list_latency_objectives(_plain(plans))


def citadel_status_problems(status: object, *, host: str) -> list[str]:
    """Say what is not well on a host; see citadel_status_problems.yml."""
    return status_problems(_plain(status), host=_plain(host))


def citadel_status_table(status: object, *, host: str) -> str:
    """Lay the status of a host out as text; see citadel_status_table.yml."""
    return status_table(_plain(status), host=_plain(host))


def citadel_variable_name_problems(defined: object, *, required: object, optional: object) -> list[str]:
    """Find misspelt and missing variables; see citadel_variable_name_problems.yml."""
    return variable_name_problems(_plain(defined), required=_plain(required), optional=_plain(optional))


class FilterModule:
    """The plan and what is derived from it."""

    def filters(self) -> dict[str, Any]:
        """Name the filters."""
        return {
            "citadel_addresses": citadel_addresses,
            "citadel_architectures": citadel_architectures,
            "citadel_benchmark_jobs": citadel_benchmark_jobs,
            "citadel_benchmark_problems": citadel_benchmark_problems,
            "citadel_benchmark_record": citadel_benchmark_record,
            "citadel_benchmark_records": citadel_benchmark_records,
            "citadel_benchmark_table": citadel_benchmark_table,
            "citadel_edge_targets": citadel_edge_targets,
            "citadel_gateway_targets": citadel_gateway_targets,
            "citadel_host_warnings": citadel_host_warnings,
            "citadel_latency_objectives": citadel_latency_objectives,
            "citadel_metrics_targets": citadel_metrics_targets,
            "citadel_node_targets": citadel_node_targets,
            "citadel_plan": citadel_plan,
            "citadel_plan_comparison": citadel_plan_comparison,
            "citadel_plan_diff": citadel_plan_diff,
            "citadel_plan_diff_sentences": citadel_plan_diff_sentences,
            "citadel_plan_page": citadel_plan_page,
            "citadel_plan_table": citadel_plan_table,
            "citadel_routing_rule_problems": citadel_routing_rule_problems,
            "citadel_shared_models": citadel_shared_models,
            "citadel_status_problems": citadel_status_problems,
            "citadel_status_table": citadel_status_table,
            "citadel_upstreams": citadel_upstreams,
            "citadel_variable_name_problems": citadel_variable_name_problems,
        }
