"""Each check of molecule/shared/tests is seen red once: what it checks is broken on the lab host, it must fail, and the host is mended.

The breakages are small and undone by hand, so that nothing is deployed in between; what is left at the end must pass every check again.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest
from lab_host import CHECKOUT
from testinfra.host import Host

CHECKS = CHECKOUT / "molecule/shared/tests"
PHI = "citadel-llm@phi-3-mini.service"
PID = f"$(systemctl show --property=MainPID --value {PHI})"
EDGE = "/etc/haproxy/haproxy.cfg"
MAPS = "/etc/haproxy/citadel"
MEND_MAP = f"rm -r {MAPS} && mv /run/lab-maps {MAPS} && systemctl reload haproxy"
MEND_EDGE = f"cp -a /run/lab-edge {EDGE} && rm /run/lab-edge && systemctl reload haproxy"
NOTICED = """until curl -sG 127.0.0.1:9090/api/v1/query --data-urlencode 'query=up{service="phi-3-mini"} == 0' | grep -q phi-3-mini"""
START_PHI = f"systemctl start {PHI}"
RULES = "/etc/prometheus/citadel/rules-lab.yml"
LAB_RULES = (
    "{groups: [{name: lab, rules: [{record: model:lab:nobody, expr: lab_nobody}, {record: model:lab:wrong, expr: up * on (host) up}]}]}"
)
PROMETHEUS = "/etc/prometheus/prometheus.yml"
RENAMED = (
    "metric_relabel_configs: [{source_labels: [__name__], regex: vllm:kv_cache_usage_perc|citadel_service_memory_held_bytes, action: drop}]"
)
LOOSE = "ProtectSystem=no TemporaryFileSystem= InaccessiblePaths= SystemCallFilter= NoNewPrivileges=no CapabilityBoundingSet=~"


def lead_all_ports_to_phi(kind: str) -> str:
    return f"cp -a {MAPS} /run/lab-maps && sed -i 's/ .*/ phi-3-mini/' {MAPS}/{kind}-ports.map && systemctl reload haproxy"


def answer_everything_with(text: str) -> str:
    """Shell that makes the edge answer every request with 200 and ``text``, which holds no spaces."""
    quoted = text.replace('"', '\\\\"')
    rule = f"http-request return status 200 content-type application/json string {quoted}"
    return f"cp -a {EDGE} /run/lab-edge && sed -i '/^frontend edge_/a\\    {rule}' {EDGE} && systemctl reload haproxy"


def journal_that_tells_it_as(script: str) -> str:
    """Shell that puts a sed script between journalctl and whoever asks it."""
    lines = ["#!/bin/sh", f"/usr/bin/journalctl \"$@\" | sed '{script}'"]
    file = "/usr/local/bin/journalctl"
    return f"printf '%s\\n' {' '.join(map(shlex.quote, lines))} > {file} && chmod 755 {file}"


@dataclass(frozen=True)
class Breakage:
    """What is broken, how, how it is mended, and the checks that must notice."""

    what: str
    break_it: str
    mend_it: str
    checks: tuple[str, ...]


BREAKAGES = [
    Breakage(
        "a unit has failed",
        # That it fails is the point.
        "systemd-run --quiet --unit=lab-broken --wait false || true",
        "systemctl reset-failed lab-broken",
        ("test_init_is_systemd",),
    ),
    Breakage(
        "agent0 has a shell",
        "usermod --shell /bin/bash agent0",
        "usermod --shell /usr/sbin/nologin agent0",
        ("test_user_cannot_log_in",),
    ),
    Breakage(
        "another value in the global environment",
        "cp -a /opt/citadel/.env /run/lab-env && sed -i s/=development/=production/ /opt/citadel/.env",
        "cp -a /run/lab-env /opt/citadel/.env && rm /run/lab-env",
        ("test_global_environment",),
    ),
    Breakage(
        "weights that their group may write",
        "chmod g+w /opt/models/phi-3-mini/*.safetensors",
        "chmod g-w /opt/models/phi-3-mini/*.safetensors",
        ("test_weights_belong_to_root",),
    ),
    Breakage(
        "a secret that its group may read",
        "chmod g+r /opt/citadel/secrets/gateway.key",
        "chmod g-r /opt/citadel/secrets/gateway.key",
        ("test_secrets_are_readable_by_root_alone",),
    ),
    Breakage(
        "the master key in a unit file",
        "cp -a /opt/citadel/secrets/gateway.key /etc/systemd/system/lab-broken",
        "rm /etc/systemd/system/lab-broken",
        ("test_the_master_key_is_nowhere_else",),
    ),
    Breakage(
        "what the secrets file holds is in the journal",
        "cp -a /opt/citadel/secrets/gateway.key /run/lab-secret && echo LAB lab-broken-secret >> /opt/citadel/secrets/gateway.key"
        " && logger lab-broken-secret && journalctl --sync",
        "cp -a /run/lab-secret /opt/citadel/secrets/gateway.key && rm /run/lab-secret",
        ("test_the_master_key_is_in_no_field_of_the_journal",),
    ),
    Breakage(
        "the edge logs what a client puts behind the path",
        f"cp -a {EDGE} /run/lab-edge && sed -i 's/%\\[var(txn.path),bytes(0,256),json(utf8s)\\]/%HU/' {EDGE} && systemctl reload haproxy",
        MEND_EDGE,
        ("test_nothing_that_a_client_sends_is_logged",),
    ),
    Breakage(
        "a journal without variants, in which everything is an error of one line",
        journal_that_tells_it_as('s/"CITADEL_VARIANT"/"VARIANT"/; s/"PRIORITY":"6"/"PRIORITY":"3"/; s/Traceback/Trace/g'),
        "rm /usr/local/bin/journalctl",
        ("test_the_journal_knows_the_service_and_its_variant", "test_a_record_keeps_its_priority", "test_a_traceback_is_one_entry"),
    ),
    Breakage(
        "a log that everybody may read",
        "chmod 755 /var/log/citadel-llm/phi-3-mini",
        "chmod 750 /var/log/citadel-llm/phi-3-mini",
        ("test_logs_are_for_root_and_the_service_alone",),
    ),
    Breakage(
        "a log file beyond its bound",
        "truncate --size=40M /var/log/citadel-llm/phi-3-mini/lab.log",
        "rm /var/log/citadel-llm/phi-3-mini/lab.log",
        ("test_logs_are_bounded",),
    ),
    Breakage(
        "another range of ports for outgoing connections",
        "echo 10000 60999 > /proc/sys/net/ipv4/ip_local_port_range",
        "echo 32768 60999 > /proc/sys/net/ipv4/ip_local_port_range",
        ("test_kernel_settings_are_in_force",),
    ),
    Breakage(
        "a process of agent0's with the master key in its environment",
        "LAB=$(cut -d' ' -f2 /opt/citadel/secrets/gateway.key) setpriv --reuid agent0 --regid agent0 --clear-groups"
        " sleep 600 > /dev/null 2>&1 & echo $! > /run/lab-pid",
        "kill $(cat /run/lab-pid); rm /run/lab-pid",
        ("test_nobody_else_reads_the_key_in_an_environment", "test_only_litellm_has_the_key_in_its_environment"),
    ),
    Breakage(
        "environment files that everybody finds",
        "chmod 755 /opt/citadel/config/services",
        "chmod 700 /opt/citadel/config/services",
        ("test_the_configuration_of_services_is_roots",),
    ),
    Breakage(
        "units without their confinement",
        f"for unit in {PHI} haproxy.service; do mkdir -p /run/systemd/system/$unit.d"
        f" && printf '%s\\n' '[Service]' {LOOSE} > /run/systemd/system/$unit.d/zz-lab.conf || exit; done; systemctl daemon-reload",
        f"rm -r /run/systemd/system/{PHI}.d /run/systemd/system/haproxy.service.d && systemctl daemon-reload",
        (
            "test_exposure_is_within_bounds",
            "test_exposure_of_the_distributions_units_is_within_bounds",
            "test_a_unit_does_what_is_its_own_and_nothing_else",
            "test_a_unit_of_the_distribution_does_nothing_else_either",
        ),
    ),
    Breakage(
        "rules that ask for what nobody tells, and one that cannot be evaluated",
        f"echo '{LAB_RULES}' > {RULES} && chmod 644 {RULES} && systemctl reload prometheus"
        " && until curl -s 127.0.0.1:9090/api/v1/rules | grep -q lab_nobody; do sleep 1; done",
        f"rm {RULES} && systemctl reload prometheus",
        (
            "test_every_rule_is_evaluated",
            "test_every_recorded_figure_is_there_for_each_model",
            "test_every_expression_asks_for_series_that_there_are",
            "test_every_expression_is_evaluated",
        ),
    ),
    Breakage(
        "metrics have other names, as after an upgrade",
        f"cp -a {PROMETHEUS} /run/lab-prometheus"
        f" && sed -i 's/^- job_name: \\(models\\|node\\)$/&\\n  {RENAMED}/' {PROMETHEUS} && systemctl reload prometheus"
        " && while curl -s '127.0.0.1:9090/api/v1/query?query=model:kv_cache_used:max' | grep -q phi-3-mini"
        " || curl -s '127.0.0.1:9090/api/v1/query?query=service:memory_held_of_limit:ratio' | grep -q phi-3-mini; do sleep 1; done",
        f"cp -a /run/lab-prometheus {PROMETHEUS} && rm /run/lab-prometheus && systemctl reload prometheus",
        (
            "test_every_figure_is_there_for_each_model_and_service",
            "test_a_models_page_has_all_its_figures",
            "test_the_overview_has_every_model_the_gateway_and_the_edge",
            "test_the_specifications_key_metrics_have_an_answer",
        ),
    ),
    Breakage(
        "Alertmanager is stopped",
        "systemctl stop prometheus-alertmanager",
        "systemctl start prometheus-alertmanager",
        ("test_alertmanager_takes_alerts_and_listens_on_loopback_alone",),
    ),
    Breakage(
        "a unit that does not start with the host",
        f"systemctl disable --quiet {PHI}",
        f"systemctl enable --quiet {PHI}",
        ("test_unit_runs_and_starts_with_the_host",),
    ),
    Breakage(
        "a process of root's in a model's cgroup",
        f"sleep 60 > /dev/null 2>&1 & echo $! > /run/lab-pid; group=$(systemctl show --property=ControlGroup --value {PHI});"
        " for folder in /sys/fs/cgroup/pids /sys/fs/cgroup; do [ ! -d $folder$group ] || echo $! > $folder$group/cgroup.procs; done",
        "kill $(cat /run/lab-pid); rm /run/lab-pid",
        ("test_user",),
    ),
    Breakage(
        "other limits than the plan's",
        f"systemctl set-property --runtime {PHI} MemoryMax=3G TasksMax=333 CPUQuota=33%"
        " && systemctl set-property --runtime citadel-llm.slice MemoryMax=30G",
        f"rm -r /run/systemd/system.control/{PHI}.d /run/systemd/system.control/citadel-llm.slice.d && systemctl daemon-reload",
        ("test_memory_limit", "test_tasks_limit", "test_cpu_quota", "test_slice_holds_all_of_them"),
    ),
    Breakage(
        "another port in a model's environment file",
        "file=/opt/citadel/config/services/phi-3-mini.env; cp -a $file /run/lab-env && sed -i s/^CITADEL_PORT=.*/CITADEL_PORT=1/ $file",
        "cp -a /run/lab-env /opt/citadel/config/services/phi-3-mini.env && rm /run/lab-env",
        ("test_environment_file",),
    ),
    Breakage(
        "another process in the process id file",
        "echo 1 > /run/citadel-llm/phi-3-mini.pid",
        f"echo {PID} > /run/citadel-llm/phi-3-mini.pid",
        ("test_process_id_file",),
    ),
    Breakage(
        "a model's log file is empty",
        "log=/var/log/citadel-llm/phi-3-mini/phi-3-mini.log; cp -a $log /run/lab-log && truncate --size=0 $log",
        "cat /run/lab-log > /var/log/citadel-llm/phi-3-mini/phi-3-mini.log; rm /run/lab-log",
        ("test_log_file_grows_beside_the_journal",),
    ),
    Breakage(
        "a model sees other weights",
        f"nsenter --target {PID} --mount mount -t tmpfs tmpfs /opt/models",
        f"nsenter --target {PID} --mount umount /opt/models",
        ("test_only_its_own_weights_are_visible",),
    ),
    Breakage(
        "a second listener on a model's port",
        "python3 -m http.server --bind 127.0.0.2 11403 > /dev/null 2>&1 & echo $! > /run/lab-pid; sleep 1",
        "kill $(cat /run/lab-pid); rm /run/lab-pid",
        ("test_listens_on_loopback_alone",),
    ),
    Breakage(
        "metrics ports lead to another model",
        lead_all_ports_to_phi("metrics"),
        MEND_MAP,
        ("test_metrics_port_shows_the_model_one_port_below", "test_first_port_shows_its_own_metrics"),
    ),
    Breakage(
        "API ports lead to another model",
        lead_all_ports_to_phi("api"),
        MEND_MAP,
        ("test_model_port_lists_its_own_model",),
    ),
    Breakage(
        "the edge lets everything through and answers it",
        answer_everything_with("{}"),
        MEND_EDGE,
        (
            "test_last_metrics_port_serves_metrics_only",
            "test_admin_routes_are_not_to_be_had",
            "test_unguarded_routes_of_vllm_are_not_to_be_had",
            "test_gateway_metrics",
            "test_it_is_refused_at_once_and_in_words",
        ),
    ),
    Breakage(
        "the gateway lists no models",
        answer_everything_with('{"data":[]}'),
        MEND_EDGE,
        ("test_models_are_listed_with_capabilities",),
    ),
    Breakage(
        "the gateway answers every prompt by itself",
        answer_everything_with('{"model":"none","usage":{"completion_tokens":99}}'),
        MEND_EDGE,
        ("test_answer_without_a_model", "test_answer_of_a_named_model", "test_completion_of_a_named_model"),
    ),
    Breakage(
        "a model that cannot start",
        f"systemctl stop {PHI} && systemctl mask --runtime --quiet {PHI}",
        f"systemctl unmask --runtime --quiet {PHI} && {START_PHI}",
        ("test_start_as_specified",),
    ),
    Breakage(
        "journalctl is not to be run",
        "printf '#!/bin/sh\\nexit 1\\n' > /usr/local/bin/journalctl && chmod 755 /usr/local/bin/journalctl",
        "rm /usr/local/bin/journalctl",
        ("test_logs_as_specified",),
    ),
    Breakage(
        "a model is stopped",
        f"systemctl stop {PHI} && {NOTICED}; do sleep 1; done",
        START_PHI,
        (
            "test_status_of_all_shows_five",
            "test_status_as_specified",
            "test_health_of_all",
            "test_health_of_each_model",
            "test_prometheus_sees_everything",
            "test_state_is_told_on_loopback",
            "test_status_says_what_the_service_does",
        ),
    ),
]


def checks_in_the_folder() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in CHECKS.glob("test_*.py")]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def failing(checks: tuple[str, ...]) -> set[str]:
    """Run some of the checks; the names of those of which at least one case failed."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quiet", "--tb=no", CHECKS, "-k", " or ".join(checks)]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode in {0, 1}, result.stdout + result.stderr
    return set(re.findall(r"^FAILED \S*::(test_\w+)", result.stdout, re.MULTILINE))


def test_every_check_is_in_the_table() -> None:
    assert checks_in_the_folder() == {check for breakage in BREAKAGES for check in breakage.checks}


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.what)
def test_check_turns_red(server: Host, breakage: Breakage) -> None:
    try:
        broken = server.run(breakage.break_it)
        assert broken.rc == 0, broken.stderr
        assert failing(breakage.checks) >= set(breakage.checks)
    finally:
        mended = server.run(breakage.mend_it)
        assert mended.rc == 0, mended.stderr


def test_the_host_is_as_it_was() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--quiet", "--tb=short", CHECKS]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
