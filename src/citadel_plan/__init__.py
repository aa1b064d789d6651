"""Plans what a host can serve: variants, memory, CPUs, GPUs, ports and disk of all its model services together.

Pure and typed, without Ansible: ``filter_plugins/citadel_plan.py`` is the adapter.
"""

from __future__ import annotations

from .addresses import list_addresses
from .api import plan
from .architectures import list_architectures
from .benchmark import benchmark_jobs, benchmark_problems, benchmark_record, benchmark_records, benchmark_table
from .compare import compare_memory, comparison_table
from .diff import diff_plans, diff_sentences
from .host_warnings import host_warnings
from .objectives import list_latency_objectives
from .problems import PlanError
from .report import plan_table
from .report_html import plan_page
from .result import Plan
from .routing_rules import routing_rule_problems
from .status import status_problems, status_table
from .targets import list_edge_targets, list_gateway_targets, list_metrics_targets, list_node_targets
from .upstreams import list_shared_models, list_upstreams
from .variable_names import variable_name_problems

__all__ = [
    "Plan",
    "PlanError",
    "benchmark_jobs",
    "benchmark_problems",
    "benchmark_record",
    "benchmark_records",
    "benchmark_table",
    "compare_memory",
    "comparison_table",
    "diff_plans",
    "diff_sentences",
    "host_warnings",
    "list_addresses",
    "list_architectures",
    "list_edge_targets",
    "list_gateway_targets",
    "list_latency_objectives",
    "list_metrics_targets",
    "list_node_targets",
    "list_shared_models",
    "list_upstreams",
    "plan",
    "plan_page",
    "plan_table",
    "routing_rule_problems",
    "status_problems",
    "status_table",
    "variable_name_problems",
]
