#!/usr/bin/python
"""Ansible module: makes the running kernel hold some settings, where it can be told at all."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_kernel_settings
short_description: Applies kernel settings to the running kernel
description:
  - Compares each setting with what the running kernel holds, and writes those that differ. The file that applies them at boot is another task's.
  - A setting that cannot be written here (a container shows C(vm) and C(kernel) read-only) or that this kernel does not have is left alone.
options:
  settings:
    description: The settings.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the setting, as sysctl(8) writes it.
        type: str
        required: true
      value:
        description: Its value. Blanks and tabs are the same.
        type: str
        required: true
      reason:
        description: Why; not used here.
        type: str
  folder:
    description: Where the kernel shows its settings.
    type: path
    default: /proc/sys
attributes:
  check_mode:
    support: full
    description: Says what would be written.
  diff_mode:
    support: full
    description: Shows the values before and after.
"""

EXAMPLES = r"""
- name: Apply the settings
  citadel_kernel_settings:
    settings:
      - {name: net.ipv4.ip_local_port_range, value: 32768 60999}
"""

RETURN = r"""
unavailable:
  description: Names of the settings that cannot be set here.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.citadel_kernel_setting import OPTION, KernelSetting, plain


def main():
    module = AnsibleModule(
        argument_spec={
            "settings": OPTION,
            "folder": {"type": "path", "default": "/proc/sys"},
        },
        supports_check_mode=True,
    )
    before, after, unavailable = {}, {}, []
    for setting in module.params["settings"]:
        name, wanted = setting["name"], plain(setting["value"])
        kernel = KernelSetting(name, module.params["folder"])
        if not kernel.writable:
            unavailable.append(name)
            continue
        held = kernel.held()
        if held != wanted:
            before[name], after[name] = held, wanted
            if not module.check_mode:
                try:
                    kernel.write(wanted)
                except OSError as error:
                    module.fail_json(
                        msg=f"The kernel refuses {name} = {wanted} ({error.strerror}): correct the value.", unavailable=unavailable
                    )
    texts = ["".join(f"{name} = {value}\n" for name, value in values.items()) for values in (before, after)]
    module.exit_json(
        changed=bool(after),
        unavailable=unavailable,
        diff={"before_header": "running kernel", "after_header": "running kernel", "before": texts[0], "after": texts[1]},
    )


if __name__ == "__main__":
    main()
