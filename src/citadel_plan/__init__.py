"""Plans what a host can serve: variants, memory, CPUs, GPUs, ports and disk of all its model services together.

Pure and typed, without Ansible: ``filter_plugins/citadel_plan.py`` is the adapter.
"""

from __future__ import annotations

from .api import plan
from .compare import compare_memory, comparison_table
from .diff import diff_plans
from .problems import PlanError
from .report import plan_table
from .result import Plan
from .targets import list_metrics_targets, list_state_targets
from .upstreams import list_upstreams
from .variable_names import variable_name_problems

__all__ = [
    "Plan",
    "PlanError",
    "compare_memory",
    "comparison_table",
    "diff_plans",
    "list_metrics_targets",
    "list_state_targets",
    "list_upstreams",
    "plan",
    "plan_table",
    "variable_name_problems",
]
