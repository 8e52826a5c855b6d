# Two commands do everything: `make demo` (installs first) and `make test`.
#
#   make install                         creates .venv from constraints.txt; does nothing when it is up to date
#   make install TORCH="torch --index-url ADDRESS"   a CPU or CUDA build of torch from an index of your choice
#   make install PIP_EXTRA="OPTIONS"     further options for pip, e.g. --find-links DIR
#   make demo | test | test-slow | test-long | lint | types
#   make bench [BENCH="--quick"]          speed of every kernel beside its rivals: see docs/performance.md

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH ?=
BENCH ?=
PIP_EXTRA ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt $(PIP_EXTRA)

# The first interpreter of a supported version; a version manager may list ones that do not start.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
FIND_PYTHON := for p in python3 python3.13 python3.12 python3.11; do \
	if $$p -c '$(SUPPORTED)' 2>/dev/null; then echo $$p; break; fi; done
PYTHON ?= $(shell $(FIND_PYTHON))

.PHONY: install demo test test-slow test-long lint types bench

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one or name it: make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes some minutes, most of them for torch."
	$(if $(strip $(TORCH)),$(PIP) $(TORCH))
	$(PIP) -e ".[dev]"
	@touch $@

demo: install
	$(BIN)/inf-nerf demo

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: install
	$(BIN)/python -m pytest -m "slow and not long and not gpu" --timeout=900

test-long: install
	$(BIN)/python -m pytest -m "long and not gpu" --timeout=1200

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: install
	$(BIN)/python -m benchmarks $(BENCH)
