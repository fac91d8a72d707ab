# make help says what there is. ARGS passes options on: make demo ARGS="steps=5", make test-local ARGS="-k packing".
SHELL := /bin/bash
.DEFAULT_GOAL := help

ARGS ?=
TORCH_INDEX ?=
PYTHON ?=
# The tests use a GPU where one is visible, in an environment of its own; everything else here runs on CPUs.
DEVICE ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo cuda || echo cpu)
TEST_PY = $(if $(filter cuda,$(DEVICE)),.venv-cuda,.venv)/bin/python
PY := .venv/bin/python
STAMP := $(shell date +%Y%m%d-%H%M%S)

export TORCH_INDEX PYTHON
# Every model is a local folder: a mistyped path must fail at once, not after a connection attempt.
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1

.PHONY: help setup setup-dev demo smoke test-local lint bench bench-step bench-learner bench-memory bench-scoring \
	bench-async bench-dispatch bench-soak chaos parity clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## .venv with the pinned CPU wheels, and the local models
	@launch/setup_env.sh
	@$(PY) -m launch.setup_models --out models

setup-dev: ## setup, with the tools for tests, lint and bench
	@launch/setup_env.sh --dev --bench
	@$(PY) -m launch.setup_models --out models

demo: setup ## texts, a reward model, then a 135M model that learns to write to length (up to 30 minutes)
	$(PY) -m lwz_ray.main run=curate_demo run.name=demo-$(STAMP)-pairs
	$(PY) -m lwz_ray.main run=rm_demo run.name=demo-$(STAMP)-rm preference.path=runs/demo-$(STAMP)-pairs/pairs.jsonl \
	    preference.eval_path=runs/demo-$(STAMP)-pairs/pairs_heldout.jsonl
	$(PY) -m lwz_ray.main run=demo_cpu run.name=demo-$(STAMP) rewards.writing.path=runs/demo-$(STAMP)-rm/export $(ARGS)

smoke: setup ## three steps of a random model, every part real (under 2 minutes)
	$(PY) -m lwz_ray.main run=smoke_cpu run.name=smoke-$(STAMP) $(ARGS)

test-local: ## set-up and the whole test suite (on a GPU where one is visible; DEVICE=cpu|cuda decides)
	@launch/setup_env.sh --device $(DEVICE) --dev --bench
	@$(TEST_PY) -m launch.setup_models --out models
	LWZ_DEVICE=$(DEVICE) $(TEST_PY) -m tests.suite $(ARGS)

lint: setup-dev ## ruff, pyright and the import rules between rooms
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/lint-imports

bench: ## bench-step, then bench-learner
	$(if $(ARGS),$(error bench takes no ARGS: use make bench-step ARGS="$(ARGS)" or make bench-learner ARGS="$(ARGS)"))
	$(MAKE) bench-step
	$(MAKE) bench-learner

bench-step: ## our step, synchronous and asynchronous, against TRL's GRPOTrainer on this machine's CPU
	@launch/setup_env.sh --bench
	@$(PY) -m launch.setup_models --out models
	$(PY) -m benchmarks.compare $(ARGS)

bench-learner: setup ## memory and time of one long sample against plain transformers, by length
	$(PY) -m benchmarks.learner $(ARGS)

bench-memory: setup ## a learner rank's peak memory, measured and as the plan predicts it
	$(PY) -m benchmarks.memory_check $(ARGS)

parity: setup ## every backend and algorithm against plain transformers over padded batches
	$(PY) -m benchmarks.parity $(ARGS)

bench-dispatch: setup ## what longest first, cache routing and cache-steered concurrency buy, real and simulated
	$(PY) -m benchmarks.dispatch $(ARGS)

bench-scoring: setup ## texts a second that the reward pool scores, against a plain transformers loop
	$(PY) -m benchmarks.scoring $(ARGS)

bench-async: setup ## generation and training on a core each: the asynchronous step against the longer of the two
	$(PY) -m benchmarks.async_step $(ARGS)

bench-soak: setup ## memory of every kind of process over 200 steps
	$(PY) -m benchmarks.memory_curve $(ARGS)

chaos: setup ## kill a run's processes at random 30 times, then audit what it left
	$(PY) -m benchmarks.chaos $(ARGS)

clean: ## remove environments, local models and caches; runs stay
	rm -rf .venv .venv-cuda models build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
