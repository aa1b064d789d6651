"""The units of a plan for the virtual machine, rendered by the project's own templates, as one archive: ``rendered_units.py FOLDER``.

The plan is the production inventory's for a host with as few CPUs as the machine and 128 GiB; then all memory is divided by one number,
as no real model fits a machine that is emulated. What is rendered, how, and what the kernel does with it stays the same.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT / "src"), str(CHECKOUT / "tests")]

from rendering import render, role_defaults  # noqa: E402 - the line above has to come first
from unit.plan_examples import host_facts, production_plan  # noqa: E402 - the line above has to come first

MEMORY_DIVISOR = 128
CPUS = 2
# A set of its own for one service, so that there is a CPU that it must not use; the others share the other CPU, in proportion to
# their weights. A quota for one of those, since services that share have none by themselves.
OVERRIDES = {"hermes-2": {"pin": {"cpu_set": "1"}}, "phi-3-mini": {"request": {"cpu_quota_percent": 40}}}

MOCK = "opt/citadel/libexec/mock_allocator.py"
MOCK_DROP_IN = f"""# The mock that stands in for vLLM and LiteLLM. Everything else of the unit is as rendered.
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I /{MOCK}
"""


def scaled_plan() -> dict[str, Any]:
    plan: dict[str, Any] = production_plan(facts=host_facts(cores=CPUS), overrides=OVERRIDES).to_dict()
    for limited in (*plan["services"], plan["gateway"], plan["slice"]):
        limited["memory_max_bytes"] //= MEMORY_DIVISOR
    return plan


def rendered(role: str, template: str, **given: object) -> str:
    values = {"ansible_managed": "Ansible managed", **role_defaults(role), **given}
    return render(CHECKOUT / "roles" / role / "templates" / template, values)


def templates(role: str, pattern: str) -> list[str]:
    """Names of what a role renders."""
    return sorted(path.name.removesuffix(".j2") for path in (CHECKOUT / "roles" / role / "templates").glob(pattern))


def files(plan: dict[str, Any]) -> dict[str, str]:
    """Text of every file by its path on the host."""
    units = "etc/systemd/system"
    found = {
        MOCK: Path(__file__).with_name("mock_allocator.py").read_text(),
        "etc/tmpfiles.d/citadel-llm.conf": rendered("host", "tmpfiles.conf.j2"),
        "opt/citadel/.env": rendered("host", "env.j2", host_environment={"CITADEL_ENV": "development"}),
    }
    framework = {
        "service_framework_slice": plan["slice"],
        "service_framework_instances": [],
        "service_framework_gateway_unit": plan["gateway"]["unit"],
    }
    for name in templates("service_framework", "citadel-llm*.j2"):
        found[f"{units}/{name}"] = rendered("service_framework", f"{name}.j2", **framework)
    for service in plan["services"]:
        given = {"model_service_plan": service, "model_service_device": plan["device"], "model_service_python": "/usr/bin/python3"}
        for name in templates("model_service", "[0-9][0-9]-*.conf.j2"):
            found[f"{units}/{service['unit']}.d/{name}"] = rendered("model_service", f"{name}.j2", **given)
        found[f"opt/citadel/config/services/{service['name']}.env"] = rendered("model_service", "service.env.j2", **given)
    gateway = plan["gateway"]
    # Its limits only: what it runs, and the user and secrets for that, are replaced by the mock anyway.
    limits = rendered("gateway", "20-resources.conf.j2", gateway_plan=gateway)
    found[f"{units}/{gateway['unit']}.d/20-resources.conf"] = limits
    found[f"opt/citadel/config/services/{gateway['name']}.env"] = ""
    for unit in (*plan["services"], gateway):
        found[f"{units}/{unit['unit']}.d/50-mock-allocator.conf"] = MOCK_DROP_IN
    return found


def folders(plan: dict[str, Any]) -> list[str]:
    return ["opt/citadel/secrets", "var/log/citadel-llm", *(f"opt/models/{service['name']}" for service in plan["services"])]


def main(folder: Path) -> None:
    plan = scaled_plan()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan, indent=2))
    with tarfile.open(folder / "units.tar", "w") as archive:
        for path in folders(plan):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path, text in files(plan).items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
