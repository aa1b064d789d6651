"""Every figure that a picture shows: which series it is, of what, and in which unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final


class Level(Enum):
    """What a figure is told of: the labels that tell its series apart."""

    MODEL = ("host", "model")
    SERVICE = ("host", "service")
    HOST = ("host",)


@dataclass(frozen=True, slots=True)
class Unit:
    """How a value is shown."""

    grafana: str
    """Grafana's name of the unit that the series is in."""
    form: str
    """How the consoles write it: a verb of Go's printf, and the unit."""
    factor: str = "1"
    """What the consoles multiply it with, in PromQL."""


RATIO: Final = Unit("percentunit", "%.1f %%", "100")
PER_SECOND: Final = Unit("cps", "%.3f /s")
"""One request in five minutes is not nothing."""
TOKENS_PER_SECOND: Final = Unit("cps", "%.1f /s")
BYTES: Final = Unit("bytes", "%.2f GiB", "2^-30")
MILLISECONDS: Final = Unit("s", "%.0f ms", "1000")
SECONDS: Final = Unit("s", "%.2f s")
NUMBER: Final = Unit("none", "%.0f")
CPUS: Final = Unit("none", "%.1f")
SWITCH: Final = Unit("bool_yes_no", "%.0f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One series per model, service or host."""

    metric: str
    level: Level
    name: str
    """What it is called beside others of the same panel."""
    unit: Unit
    labels: tuple[tuple[str, str], ...] = ()
    """Values of labels that are the same for each series that is meant."""
    idle: str = ""
    """What it means that the series is there and its value is not a number."""
    of_models_alone: bool = False
    """Level.SERVICE: the gateway has none."""
    absent: str = ""
    """Why there is no series on a host on which all is well; empty: then there is one."""

    def selector(self, **labels: str) -> str:
        """Select the series in PromQL; ``labels`` are further conditions, each with its operator and quoted value (``host='="a"'``)."""
        conditions = [f'{label}="{value}"' for label, value in self.labels]
        conditions += [f"{label}{condition}" for label, condition in labels.items()]
        return f"{self.metric}{{{','.join(conditions)}}}" if conditions else self.metric


_NO_REQUESTS: Final = "no requests"
_AFTER_A_FALLBACK: Final = "LiteLLM tells of fallbacks when there was one"


def _model(metric: str, name: str, unit: Unit, idle: str = "") -> Figure:
    return Figure(metric=metric, level=Level.MODEL, name=name, unit=unit, idle=idle)


def _service(metric: str, name: str, unit: Unit, *, of_models_alone: bool = False, idle: str = "") -> Figure:
    return Figure(metric=metric, level=Level.SERVICE, name=name, unit=unit, of_models_alone=of_models_alone, idle=idle)


def _host(metric: str, name: str, unit: Unit, *, idle: str = "", absent: str = "", **labels: str) -> Figure:
    return Figure(metric=metric, level=Level.HOST, name=name, unit=unit, labels=tuple(labels.items()), idle=idle, absent=absent)


def _quantiles(key: str, metric: str, unit: Unit) -> dict[str, Figure]:
    return {
        f"{key}_{quantile}": _model(f"model:{metric}:{quantile}_rate5m", quantile, unit, _NO_REQUESTS) for quantile in ("p95", "p50", "p99")
    }


FIGURES: Final[Mapping[str, Figure]] = MappingProxyType(
    {
        # --- a model
        "generating": _model("model:generating:max", "generates", SWITCH),
        "state": _model("citadel_service_state", "state", SWITCH),
        "scraped": _model("up", "gives metrics", SWITCH),
        "breaker": _model("citadel_edge_breaker_state", "state of the breaker", SWITCH),
        "breaker_open": _model("model:breaker_open:max", "open", SWITCH),
        "breaker_half_open": _model("model:breaker_half_open:max", "half-open", SWITCH),
        "breaker_openings": _model("model:breaker_openings:increase1h", "openings in an hour", NUMBER),
        "requests": _model("model:requests:rate5m", "requests", PER_SECOND),
        "share": _model("model:requests:share_rate5m", "share of all requests", RATIO, _NO_REQUESTS),
        "errors": _model("model:errors:ratio_rate5m", "errors", RATIO, _NO_REQUESTS),
        "slow": _model("model:slow:ratio_rate1h", "in an hour", RATIO, _NO_REQUESTS),
        "prompt_tokens": _model("model:prompt_tokens:rate5m", "prompt", TOKENS_PER_SECOND),
        "generation_tokens": _model("model:generation_tokens:rate5m", "generated", TOKENS_PER_SECOND),
        "target": _model("citadel_service_target_latency_seconds", "target", MILLISECONDS),
        **_quantiles("first_token", "time_to_first_token_seconds", MILLISECONDS),
        **_quantiles("per_token", "time_per_output_token_seconds", MILLISECONDS),
        **_quantiles("end_to_end", "end_to_end_seconds", SECONDS),
        **_quantiles("queue", "queue_seconds", MILLISECONDS),
        "waiting": _model("model:requests_waiting:sum", "waiting", NUMBER),
        "running": _model("model:requests_running:sum", "running", NUMBER),
        "places": _model("citadel_service_places", "places", NUMBER),
        "context": _model("citadel_service_context_tokens", "tokens of a full context", NUMBER),
        "kv_cache": _model("model:kv_cache_used:max", "used", RATIO),
        "prefix_hits": _model("model:prefix_cache_hits:ratio_rate5m", "hits", RATIO, _NO_REQUESTS),
        "preemptions": _model("model:preemptions:rate5m", "preemptions", PER_SECOND),
        # --- a service: a model or the gateway
        "info": _service("citadel_service_info", "variant and runtime", SWITCH),
        "memory_held": _service("citadel_service_memory_held_bytes", "held", BYTES),
        "memory_predicted": _service("service:memory_predicted_bytes:sum", "planned", BYTES, of_models_alone=True),
        "memory_limit": _service("citadel_service_memory_limit_bytes", "limit", BYTES),
        "memory_of_limit": _service("service:memory_held_of_limit:ratio", "of limit", RATIO),
        "memory_of_predicted": _service("service:memory_held_of_predicted:ratio", "of planned", RATIO, of_models_alone=True),
        "cpu": _service("service:cpu_used_of_allowed:ratio_rate5m", "used", RATIO),
        "cpus_allowed": _service("citadel_service_cpus_allowed", "CPUs allowed", CPUS),
        "throttled": _service("service:cpu_throttled_periods:ratio_rate5m", "held back", RATIO, idle="did not run"),
        "restarts": _service("citadel_service_restarts_total", "restarts", NUMBER),
        "oom_kills": _service("citadel_service_oom_kills_total", "OOM kills", NUMBER),
        # --- a host's gateway, its edge, and all of its services together
        "gateway_scraped": _host("up", "gives metrics", SWITCH, job="gateway"),
        "gateway_requests": _host("gateway:requests:rate5m", "requests", PER_SECOND),
        "gateway_errors": _host("gateway:errors:ratio_rate5m", "errors", RATIO, idle=_NO_REQUESTS),
        "gateway_errors_hour": _host("gateway:errors:ratio_rate1h", "errors in an hour", RATIO, idle=_NO_REQUESTS),
        "gateway_overhead": _host("gateway:overhead_seconds:p95_rate5m", "p95 of its own time", MILLISECONDS, idle=_NO_REQUESTS),
        "fallbacks": _host("gateway:fallbacks:rate5m", "answered by another", PER_SECOND, absent=_AFTER_A_FALLBACK),
        "fallbacks_failed": _host("gateway:fallbacks_failed:rate5m", "answered by nobody", PER_SECOND, absent=_AFTER_A_FALLBACK),
        "edge_scraped": _host("up", "gives metrics", SWITCH, job="edge", service="edge"),
        "edge_denied": _host("edge:requests_denied:rate5m", "turned away", PER_SECOND),
        "together_held": _host("citadel_slice_memory_held_bytes", "held", BYTES),
        "together_granted": _host("citadel_slice_memory_granted_bytes", "planned", BYTES),
        "together_limit": _host("citadel_slice_memory_limit_bytes", "limit", BYTES),
    }
)
"""By the names that panels and the consoles' pages call them by."""

FIRING_ALERTS: Final = 'ALERTS{alertstate="firing"}'
