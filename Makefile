# Each target sets up what it needs in .venv, once; again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# Workers take one core each: a BLAS that starts threads of its own would only get in their way.
export OMP_NUM_THREADS ?= 1
# Real data beside the checkout, if it is there and nothing else is said.
BESIDE := $(abspath ../shared/data)
ifndef TXEVAL_DATA
ifneq ($(wildcard $(BESIDE)),)
export TXEVAL_DATA := $(BESIDE)
endif
endif

# MkDocs 2 is not what is pinned here.
export NO_MKDOCS_2_WARNING := 1

.PHONY: help demo test check bench docs screenshots clean

help:
	@echo "make demo    run the benchmark on a small real screen (a few minutes)"
	@echo "make test    run the tests"
	@echo "make check   lint, types, import rules, documentation"
	@echo "make bench   every kernel against named alternatives, every level at rising sizes: hours; make bench BENCH=--quick"
	@echo "make docs    build the documentation into site/"
	@echo "make screenshots    pictures of the demo's report, wide and narrow, light and dark (needs Chromium)"
	@echo "make clean   remove what the targets made"

demo: $(VENV)/.installed
	$(BIN)/txeval demo

# One file stays on one worker: its fixtures are made once.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

# Goes on where it was stopped. Screens of up to 2 million cells take 20 GB in .bench/; without them: make bench BENCH=
BENCH ?= --growth 50000 200000 800000 1980000
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.bench $(BENCH)

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

# Of the report that `make demo` ends with.
screenshots: $(VENV)/.installed-dev
	test -e demo-results/report.html || $(BIN)/txeval demo
	$(BIN)/python docs/screenshots.py demo-results/report.html screenshots

clean:
	rm -rf $(VENV) .bench site demo-results screenshots build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "txeval needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[test,check,docs]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[bench]'
	@touch $@ $(VENV)/.installed
