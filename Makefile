# Targets that need the environment make it first; `make help` lists them.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Waiting OpenMP threads sleep instead of spinning: beside any other busy process, spinning makes
# torch several times slower.
export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install train test test-full lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' \
		| while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

install: $(STAMP)  ## make .venv: pinned by constraints.txt, without vLLM

# torch comes first, so that the rest is resolved around its pin.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys; sys.exit("Python 3.11 or newer is needed: make install PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(BIN)/python -m pip install --quiet -c constraints.txt torch -e '.[dev]'
	touch $@

train: $(STAMP)  ## train the tiny policy with the method's soft matching, on this machine
	$(BIN)/python src/train.py experiment=matchtir_soft

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -m 'not slow'

test-full: $(STAMP)  ## every test
	$(BIN)/python -m pytest

lint: $(STAMP)  ## formatting, lint, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-logo

clean:  ## remove caches and build outputs; keeps .venv and logs
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
