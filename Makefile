# `make demo` sets everything up and compares learning rules on handwritten digits; `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DOCUMENTS ?= README.md docs/*.md

.PHONY: demo test test-fast mutants lint types documents site matrix wheel benchmarks benchmarks-quick gpu

demo: $(VENV)/ready
	$(BIN)/mpgraph compare --task digits --protocols backprop,feedback_alignment --seeds 3 --out results

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2

test-fast: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 -m "not slow"

mutants: $(VENV)/ready
	$(BIN)/python tests/mutants.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

documents: $(VENV)/ready
	$(BIN)/python docs/run_blocks.py $(DOCUMENTS)

site: $(VENV)/ready
	$(BIN)/mkdocs build --strict --quiet --site-dir site

matrix: $(VENV)/ready
	$(BIN)/python tests/matrix.py

wheel: $(VENV)/ready
	$(BIN)/python -m build --outdir dist

benchmarks: $(VENV)/ready
	$(BIN)/python -m benchmarks --json benchmarks.json

benchmarks-quick: $(VENV)/ready
	$(BIN)/python -m benchmarks --quick

gpu: $(VENV)/ready
	$(BIN)/python -m benchmarks.gpu

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@
