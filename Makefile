# Two commands set everything up on a machine that has Python 3.11 or later, pip and make:
#   make demo    a bank account, two runners, and a conversation that explains itself
#   make test    everything that CI checks

.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Node.js and pyright itself come from PyPI; a Node.js of the machine would be another version.
export PYRIGHT_PYTHON_GLOBAL_NODE := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := entityq cli tests $(wildcard docs examples benchmarks)

.PHONY: install demo test lint format types imports pytest crash-points soak sabotage chaos bench bench-faults constraints clean help

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile
	@echo "Also: install, lint, format, types, imports, pytest, crash-points, soak, sabotage, chaos, bench, bench-faults, constraints, clean"

install: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "entityq needs Python 3.11 or later: make PYTHON=python3.13 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/python -m examples.demo

test: lint types imports pytest

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: install
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

types: install
	$(BIN)/mypy $(SOURCES)
	$(BIN)/pyright

imports: install
	$(BIN)/lint-imports --no-logo --no-cache

# ARGS: which tests, for example make pytest ARGS="tests/embedded -x"
# Three processes, because the tests wait for servers more than they compute; each has servers of its own. Not
# reordered: the files with few and long tests would come last.
pytest: install
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Kills, cuts, pauses and slows real processes at every point of the path of a request. ARGS: --help
crash-points: install
	$(BIN)/python -m tests.crash_points $(ARGS)

# Random faults for some minutes. SOAK_EXAMPLES: how many sequences of them.
soak: export SOAK_EXAMPLES ?= 300
soak: install
	$(BIN)/pytest tests/promises

# Each safeguard switched off in a copy of the sources, and noticed by a test: about 5 minutes.
sabotage: install
	$(BIN)/python -m tests.sabotage $(ARGS)

# Producers and runners as processes, under random faults, for ten minutes. ARGS: --seconds, --seed, ...
chaos: install
	$(BIN)/python -m tests.chaos $(ARGS)

bench: install
	$(BIN)/python -m benchmarks

# How long each fault interrupts a request, 50 times each: about 20 minutes. ARGS: for example --only kill.
bench-faults: install
	$(BIN)/python -m benchmarks.faults $(ARGS)

# Pins what a fresh environment gets today. async-timeout is needed by Python 3.11.0 to 3.11.2 only.
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet '.[dev]'
	build/constraints/bin/pip install --quiet async-timeout
	build/constraints/bin/pip freeze --exclude entityq | sort -f > constraints.txt
	rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
