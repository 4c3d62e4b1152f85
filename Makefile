# make demo    a bundled tiny model learns palettes for themes, in a few minutes
# make demo-pictures   another one learns to say all that a picture shows
# make test    the whole suite
# make check   lint, the import rule and the fast tests
# make hostile tries 20,000 bad inputs and kills runs 60 times; SEED=N repeats a seed's inputs
# make format  put the code into its one format

PYTHON ?= python3
BIN := .venv/bin
# Tests whose assertions pytest has rewritten are kept from run to run, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

demo: .venv/.ready
	$(BIN)/python -m jaxtune.cli.demo

demo-pictures: .venv/.ready
	$(BIN)/python launch.py train --config configs/paligemma_demo.py
	$(BIN)/python launch.py eval --config configs/paligemma_demo.py --both

test: .venv/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

hostile: .venv/.test-ready
	$(BIN)/python -m tests.hostile $(if $(SEED),--seed $(SEED)) $(OPTIONS)

format: .venv/.test-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "jaxtune needs Python 3.11 or later: make PYTHON=/path/to/python3.11 …"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.ready: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/.test-ready: requirements-test.txt .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

.PHONY: demo demo-pictures test check hostile format
