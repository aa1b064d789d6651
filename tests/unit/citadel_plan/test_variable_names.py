"""A misspelt or missing variable is named, with the way out; an operator's own names are left alone."""

from __future__ import annotations

from citadel_plan import variable_name_problems

REQUIRED = {"plan.yml": ["citadel_device", "citadel_plan_policy"]}
OPTIONAL = ["citadel_plan", "edge_trusted_networks"]


def problems(*defined: str) -> list[str]:
    return variable_name_problems(defined, required=REQUIRED, optional=OPTIONAL)


def test_nothing_to_say() -> None:
    assert problems("citadel_device", "citadel_plan_policy", "edge_trusted_networks", "inventory_hostname", "site_trusted_networks") == []


def test_misspelt() -> None:
    assert problems("citadel_device", "citadel_plan_policy", "citadel_plan_polcy") == [
        'There is no variable "citadel_plan_polcy" (did you mean "citadel_plan_policy"?): rename it or take it out.'
    ]


def test_misspelt_variable_of_a_role() -> None:
    assert problems("citadel_device", "citadel_plan_policy", "edge_trusted_network") == [
        'There is no variable "edge_trusted_network" (did you mean "edge_trusted_networks"?): rename it or take it out.'
    ]


def test_unknown_name_with_the_prefix() -> None:
    assert problems("citadel_device", "citadel_plan_policy", "citadel_xyz") == [
        'There is no variable "citadel_xyz", and names that start with "citadel_" belong to this project: rename it or take it out.'
    ]


def test_missing() -> None:
    assert problems("citadel_device") == [
        'The variable "citadel_plan_policy" is missing: inventory/group_vars/all/plan.yml sets it; put the line back.'
    ]
