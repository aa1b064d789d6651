"""Templates rendered with Ansible's own engine, as the `template` task renders them.

No mock filters and no stand-in for Jinja: an undefined variable, a filter that does not exist or a
construct that ansible-core refuses fails here as it would fail on a host.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader, init_plugin_loader
from ansible.template import Templar, generate_ansible_template_vars, trust_as_template

PROJECT = Path(__file__).resolve().parent.parent


@cache
def _load_plugins() -> None:
    init_plugin_loader()
    filter_loader.add_directory(str(PROJECT / "filter_plugins"))


def role_defaults(role: str) -> dict[str, Any]:
    """Read the variables of `roles/ROLE/defaults/main.yml`, templates in them still to be rendered.

    Raises what Ansible's loader raises when the file is missing or is not YAML.
    """
    return dict(DataLoader().load_from_file(str(PROJECT / "roles" / role / "defaults" / "main.yml")) or {})


def role_variables_file(role: str) -> dict[str, Any]:
    """Read the variables of `roles/ROLE/vars/main.yml`; templates in them are rendered where they are used."""
    return dict(DataLoader().load_from_file(str(PROJECT / "roles" / role / "vars" / "main.yml"), trusted_as_template=True))


def render(template_path: Path, variables: dict[str, Any]) -> str:
    """Render the text that the `template` task would write for `template_path`.

    `variables` are all that the template sees, besides `ansible_managed` and its relatives.
    Raises ansible's AnsibleError (a subclass for what is undefined) when the template cannot be rendered.
    """
    _load_plugins()
    generated = generate_ansible_template_vars(path=template_path.name, fullpath=str(template_path))
    templar = Templar(loader=DataLoader(), variables=generated | variables).copy_with_new_env(
        searchpath=[str(template_path.parent)], available_variables=generated | variables
    )
    return str(
        templar.template(
            trust_as_template(template_path.read_text(encoding="utf-8")),
            escape_backslashes=False,
            overrides={"trim_blocks": True, "lstrip_blocks": False, "newline_sequence": "\n"},
        )
    )
