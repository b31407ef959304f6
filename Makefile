# Needs nothing but `make` and Python 3.11 or newer. Every target installs what it uses into .venv.
#
#   make demo     attack, diagnose, repair and prove the embedded model: runs/demo/report.html
#   make test     the tests, the fast ones first
#   make test-lmms   the tests that need lmms-eval, in .venv-lmms (minutes; not part of CI)
#   make bench    every benchmark; each prints one JSON object as its last line
#
# PYTHON=…     another interpreter            TORCH=…       another torch, such as torch==2.14.1
# TORCH_ARGS=… more pip options for torch alone, such as the index of a particular CUDA build
# PYTEST_ARGS=… more options for pytest, such as -m "not embedded"

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.care-installed

# What importing lmms-eval and running its tasks about pictures needs. All that it declares would bring
# torchvision, and with it another torch; video, sound and most model backends are left out.
LMMS ?= lmms-eval>=0.7
LMMS_VENV := .venv-lmms
LMMS_BIN := $(LMMS_VENV)/bin
LMMS_STAMP := $(LMMS_VENV)/.care-installed
LMMS_NEEDS := accelerate datasets evaluate loguru openpyxl pandas pytablewriter pytz requests sacrebleu tenacity

.PHONY: help venv test test-lmms demo lint format types bench clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

# torch first and pinned: left to the resolver, a newer build of several GB would be chosen. A torch
# that is already there stays.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one or pass PYTHON=/path/to/python."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH_ARGS) '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

# One pytest run: the tests that need the assembled embedded model are put last (tests/conftest.py).
test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(LMMS_STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one or pass PYTHON=/path/to/python."; exit 2; }
	@test -x $(LMMS_BIN)/python || $(PYTHON) -m venv $(LMMS_VENV)
	@$(LMMS_BIN)/python -c 'import torch' 2>/dev/null || $(LMMS_BIN)/python -m pip install --quiet $(TORCH_ARGS) '$(TORCH)'
	$(LMMS_BIN)/python -m pip install --quiet -e . pytest $(LMMS_NEEDS)
	$(LMMS_BIN)/python -m pip install --quiet --no-deps '$(LMMS)'
	@touch $@

# The import comes first: without it every test would be skipped, which looks like success.
test-lmms: $(LMMS_STAMP)
	$(LMMS_BIN)/python -c 'import lmms_eval.evaluator'
	$(LMMS_BIN)/python -m pytest -m lmms tests/test_lmms_eval.py $(PYTEST_ARGS)

# A killed demo goes on where it stopped. To start over: rm -r runs/demo
demo: $(STAMP)
	$(BIN)/care repair --out runs/demo --resume

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/pyright

bench: $(STAMP)
	@set -e; for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python "$$b"; done

# Removes what can be made again. Runs are results: they stay.
clean:
	rm -rf $(VENV) $(LMMS_VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
