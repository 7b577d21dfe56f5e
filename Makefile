PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all lint bench docs clean

demo: $(VENV)/.package  ## train a small network on real digits and survey its minimum
	$(BIN)/thalweg survey --out thalweg-demo --resume

test: $(VENV)/.test  ## the whole test suite but what is marked slow
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.test  ## slow tests too
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.test  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench  ## side by side with peers, in an environment of its own
	$(VENV)-bench/bin/python -m benchmarks

docs: $(VENV)/.test  ## build the site into site/
	$(BIN)/mkdocs build --strict

$(VENV)/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) -e '.[test]'
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt benchmarks/requirements.txt benchmarks/requirements-no-deps.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet -c constraints.txt -e . -r benchmarks/requirements.txt
	$(VENV)-bench/bin/python -m pip install --quiet --no-deps -r benchmarks/requirements-no-deps.txt
	mkdir -p $(VENV) && touch $@

clean:  ## remove the environments and what was built
	rm -rf $(VENV) $(VENV)-bench site build dist
