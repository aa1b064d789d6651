"""What a host's services do, for whoever is woken by them: a table, and what is not well with the next command to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .columns import COLUMNS, Column, lay_out
from .prose import wrap
from .units import GIB, MIB

_DEPLOY: Final = "ansible-playbook site.yml"
_COLUMNS: Final[tuple[Column, ...]] = (
    ("service", str.ljust, 23),
    ("state", str.ljust, 12),
    ("since", str.ljust, 14),
    ("restarts", str.rjust, 8),
    ("memory", str.rjust, 20),
    ("breaker", str.ljust, 7),
    ("run+wait", str.rjust, 8),
    ("KV", str.rjust, 4),
    ("version", str.ljust, 20),
)
"""With two spaces between them they fill a line."""

_SMALL_BYTES: Final = 10 * GIB
_SSH_ENDED: Final = "Data could not be sent to remote host"
"""What Ansible says, in place of ssh's own words, of an ssh that closed its input a moment before it ended."""

_RUNNING: Final = frozenset({"active", "activating", "reloading", "deactivating", None})
"""States of a unit in which what answers on its ports is the service itself; None: systemd does not say."""

Entry = Mapping[str, Any]


def status_problems(status: Entry, *, host: str) -> list[str]:
    """Say what is not well.

    Args:
        status: What the module citadel_status returned, or what Ansible says of a host that it could not reach.
        host: The host's name in the inventory.

    Returns:
        A sentence for each thing that is not well, with the next command to run; none where all is well.

    """
    if status.get("unreachable"):
        why = _clean(status.get("msg", "")).rpartition("ssh: ")[2].rstrip(".")
        if _SSH_ENDED in why:
            why = "its ssh ended before anything could be sent"
        return [f"{host} cannot be reached: {why}. Next: ssh {host}"]
    plan = status["plan"]
    if plan["problem"]:
        running = f", though there run {', '.join(status['unplanned'])}" if status["unplanned"] else ""
        nothing = f"Nothing is deployed on {host}" if plan["problem"] == "does not exist" else f"{host} has no plan to go by"
        return [f"{nothing}: {plan['file']} {plan['problem']}{running}. Next: {_DEPLOY}"]
    problems = []
    if status["units_problem"]:
        problems.append(f"systemd does not tell of its units ({_clean(status['units_problem'])}). Next: systemctl is-system-running")
    if status["alerts_problem"]:
        problems.append(
            f"Prometheus does not tell which alerts fire ({_clean(status['alerts_problem'])}). Next: journalctl -u prometheus -n 50"
        )
    for service in status["services"]:
        problems += service_problems(service)
    edge_answers = any(service["kind"] == "edge" and service["answers"] for service in status["services"])
    for service in status["services"] if edge_answers else ():
        if _state(service) == "generating" and service["breaker"] != "closed":
            breaker = f"the edge's breaker of {service['name']} is {service['breaker'] or 'not there'}, though it generates"
            problems.append(f"{breaker}. Next: journalctl -u haproxy -n 50")
    problems += [
        f"the alert {alert['name']} ({alert['severity']}) fires since {alert['since'][5:]}: {_clean(alert['summary'])}"
        f" Next: docs/runbooks/{alert['name']}.md"
        for alert in status["alerts"]
    ]
    problems += [f"{unit} runs and is not in the plan. Next: systemctl status {unit}" for unit in status["unplanned"]]
    if deviations := _deviations(status):
        problems.append(f"the plan is not in force: {'; '.join(deviations)}. Next: {_DEPLOY} --check --diff")
    return problems


def status_table(status: Entry, *, host: str) -> str:
    """Lay the status of a host out in columns.

    Args:
        status: As for :func:`status_problems`.
        host: The host's name in the inventory.

    Returns:
        Lines of at most :data:`COLUMNS` without trailing spaces: a heading, a row per service with what it says of itself below where that
        is more than its state, the plan, and what is not well. Where there is nothing to show, only the last.

    """
    problems = status_problems(status, host=host)
    if status.get("unreachable") or status["plan"]["problem"]:
        return "\n".join(line for problem in problems for line in _wrapped(problem))
    held = _memory(status["slice"]["held_bytes"], status["slice"]["limit_bytes"])
    lines = [f"{host} ({status['plan']['device']}) at {status['now']}; memory of models and gateway together: {held}"]
    table = lay_out(_COLUMNS, [_cells(service) for service in status["services"]])
    lines.append(table[0])
    for row, service in zip(table[1:], status["services"], strict=True):
        lines.append(row)
        if notes := "; ".join(_notes(service)):
            lines += _wrapped(f"  {notes}")
    lines.append(f"plan of {status['plan']['written']} ({status['plan']['file']}): {_force(status)}")
    if not problems:
        return "\n".join([*lines, "All well."])
    # docs/status.md is the runbook.
    lines.append("Not well (docs/status.md):")
    return "\n".join([*lines, *(line for problem in problems for line in _wrapped(f"- {problem}"))])


def _wrapped(sentence: str) -> list[str]:
    return wrap(sentence, indent="  ", columns=COLUMNS)


def _clean(text: object) -> str:
    """One line without anything that a terminal would obey."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def _state(service: Entry) -> str:
    """One word for what a service does: its own where it tells, else systemd's."""
    if service["load_state"] == "not-found":
        return "missing"
    if service["sub_state"] == "auto-restart":
        return "auto-restart"
    active = service["active_state"]
    if service["answers"] and active in _RUNNING:
        return str(service.get("state") or "answering")
    return "silent" if active in {"active", None} else str(active)


def service_problems(service: Entry) -> Iterator[str]:
    """Say what is not well with one service, and the next command to run."""
    name, unit, state = service["name"], service["unit"], _state(service)
    look, journal = f"systemctl status {unit}", f"journalctl -u {unit} -n 50"
    said = _clean(service.get("detail") or service["status_text"])
    because = f" ({service['result']})" if service["result"] not in {"success", None} else ""
    match state:
        case "generating" | "answering" | "reloading":
            return
        case "missing":
            yield f"{name} is not installed. Next: {_DEPLOY}"
        case "failed":
            yield f"{name} has failed{because}. Next: {journal}"
        case "auto-restart":
            yield f"{name} is started again after a failure{because}. Next: {journal}"
        case "inactive":
            yield f"{name} is stopped. Next: systemctl start {unit}"
        case "silent":
            yield f"{name} does not answer at {service['asked']}. Next: {journal}"
        case "hung":
            yield f"{name} is hung and about to be restarted. Next: {journal}"
        case _:
            yield f"{name} is not ready ({said or state}). Next: {look}"


def _notes(service: Entry) -> Iterator[str]:
    """What stands below the row."""
    said = _clean(service.get("detail") or service["status_text"])
    if said and _state(service) not in {said, "generating", "answering"}:
        yield said
    if service["result"] not in {"success", None}:
        yield f"result: {service['result']}"
    if workers := service.get("workers_bytes"):
        each = ", ".join(f"{size / MIB:.0f}" for size in workers)
        yield f"{len(workers)} {'worker' if len(workers) == 1 else 'workers'}: {each} MiB"


def _cells(service: Entry) -> tuple[str, ...]:
    model = service["kind"] == "model"
    load = "-" if service.get("running") is None else f"{service['running']}+{service['waiting']}"
    cache = "-" if service.get("kv_cache_percent") is None else f"{service['kv_cache_percent']}%"
    return (
        service["name"],
        _state(service),
        # Without the year.
        service["since"][5:] or "-",
        "-" if service["restarts"] is None else str(service["restarts"]),
        _memory(service["held_bytes"], service["limit_bytes"]),
        (service["breaker"] or "unknown") if model else "",
        load if model else "",
        cache if model else "",
        service["version"] or "unknown",
    )


def _memory(held_bytes: int | None, limit_bytes: int | None) -> str:
    if held_bytes is None:
        return "-"
    size, unit, digits = (MIB, "MiB", 0) if max(held_bytes, limit_bytes or 0) < _SMALL_BYTES else (GIB, "GiB", 1)
    limit = "" if limit_bytes is None else f" of {limit_bytes / size:.{digits}f}"
    return f"{held_bytes / size:.{digits}f}{limit} {unit}"


def _force(status: Entry) -> str:
    planned = [service for service in status["services"] if service["planned_limit_bytes"] is not None]
    running = sum(service["held_bytes"] is not None for service in planned)
    if _deviations(status):
        return "not in force"
    if running == len(planned):
        return "in force"
    return f"in force for the {running} of {len(planned)} services that run" if running else "none of its services runs"


def _deviations(status: Entry) -> list[str]:
    """Name limits that are others than planned. What does not run has none."""
    entries: Sequence[Entry] = [*status["services"], {"name": "all together", **status["slice"]}]
    return [
        f"{entry['name']}: {'no limit' if entry['limit_bytes'] is None else _mib(entry['limit_bytes'])} instead of"
        f" {_mib(entry['planned_limit_bytes'])}"
        for entry in entries
        if entry["held_bytes"] is not None
        and entry["planned_limit_bytes"] is not None
        and entry["limit_bytes"] != entry["planned_limit_bytes"]
    ]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.0f} MiB"
