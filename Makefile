# `make quickstart` and `make test` need nothing but Python 3.10 or newer, pip and this folder.
# A stamp file in the environment remembers what is installed, so a second run installs nothing;
# an environment that is already there is used as it is.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help quickstart install lint types test test-fast mutants bench compatibility docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(PY):
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: $(VENV)/.lightning-dp-<extra>
$(VENV)/.lightning-dp-%: pyproject.toml | $(PY)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip --upgrade
	$(PY) -m pip install --disable-pip-version-check --quiet --editable '.[$*]'
	@touch $@

quickstart: $(VENV)/.lightning-dp-recipes ## install, then train a small network privately on scikit-learn's digits
	$(PY) recipes/quickstart/quickstart.py

install: $(VENV)/.lightning-dp-dev ## install what tests, linting and typing need

lint: install ## ruff
	$(BIN)/ruff check .

types: install ## mypy, strict, on the package
	$(BIN)/mypy

test: lint types ## everything that must pass before a change lands
	$(PY) -m pytest

test-fast: install ## tests that take no more than a few seconds and one process
	$(PY) -m pytest -m "not slow and not multi_process"

mutants: install ## break the privacy on purpose, one fault at a time: each must turn a test red
	$(PY) tests/mutants/run.py

bench: $(VENV)/.lightning-dp-test ## the cost of a private step beside the plain one and beside peers (ten minutes, quiet machine)
	$(PY) -m benchmarks.step_cost
	$(PY) -m benchmarks.outside_step
	$(PY) -m benchmarks.ranks
	$(PY) -m benchmarks.strategies
	$(PY) -m benchmarks.models

compatibility: $(VENV)/.lightning-dp-test ## which of timm's families train exactly (half an hour)
	$(PY) benchmarks/compatibility.py

docs: $(VENV)/.lightning-dp-docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove what the targets made, the environment excepted
	rm -rf site dist .mypy_cache .pytest_cache .ruff_cache
