# `make train`, `make test`, `make docs` and `make bench` each start from nothing but Python >= 3.11, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The tests that compile quickly: `make check` takes under two minutes on two cores.
CHECKED := tests/core tests/data tests/modules tests/torch_reference tests/test_layering.py \
  $(wildcard tests/config tests/test_config*.py) \
  --ignore=tests/core/test_solver_grid.py --ignore=tests/modules/test_goldens.py

.PHONY: train check test test-slow bench docs lint format clean

# One stamp a set of extras: the environment is rebuilt when its declaration changes.
$(VENV)/.installed-%: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sem_jax needs Python >= 3.11; choose one with: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@

train: $(VENV)/.installed-parquet
	$(BIN)/python -m sem_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

check: lint $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(CHECKED)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/summary.py --folder=runs/bench

# Runs the notebook, a few minutes, unless it has run as it stands; a warning is an error.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs
	@echo "open build/docs/index.html"

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
