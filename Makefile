# citadel-llm: one line per thing a person does. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
SETUP := $(VENV)/.complete
PYTHON ?= python3

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(SETUP) ## the controller's environment in .venv, from hashed locks

$(SETUP): requirements/development.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -qq --no-deps --require-hashes --requirement requirements/development.txt
	touch $@

demo: setup ## the whole platform on a lab host on this machine, and its answers
	@lab/demo

destroy: ## remove every lab host and all that belongs to it, or those of OWNER=demo of this checkout
	@$(if $(filter-out 0,$(shell id -u)),sudo) lab/host.py destroy $(if $(OWNER),--owner $(OWNER))

lint: setup ## ansible-lint (production), yamllint, ruff, mypy --strict, shellcheck-free shell syntax
	@tests/lint

test: setup ## everything that CI proves
	@tests/run

FACTS ?= docs/examples/host-facts.yml
plan: setup ## plan the production inventory for given host facts (FACTS=FILE), without a connection
	$(VENV)/bin/ansible-playbook playbooks/plan.yml --extra-vars @$(FACTS)

model: setup ## derive a catalogue entry from a folder of weights (FOLDER=/path NAME=name PORT=11410)
	@PYTHONPATH=src $(VENV)/bin/python -m citadel_plan "$(FOLDER)" --name "$(NAME)" --port "$(PORT)"

benchmark: setup ## how long planning takes, and choosing a model, and what the gateway costs beside LiteLLM as it comes
	@$(VENV)/bin/python benchmarks/plan_speed.py
	@$(VENV)/bin/python benchmarks/routing_speed.py
	@$(VENV)/bin/python benchmarks/gateway/speed.py

verify: setup ## the longer proofs, on the host of a running demo, and the limits on a virtual machine with cgroup v2
	@tests/verify

soak: setup ## a night of small load with deployments in between, on the host of a running demo (CITADEL_SOAK_MINUTES)
	@tests/soak

.PHONY: help setup demo destroy lint test plan model benchmark verify soak
