# Every target sets up `.venv` by itself. PYTHON picks the interpreter it is made from (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench lint format docs clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/docs-ready: .venv/ready
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

demo: .venv/ready
	$(BIN)/trainwell fit digits --folds 1 --out runs/demo --overwrite
	$(BIN)/trainwell fit digits --folds 1 --out runs/demo-transfer --overwrite --pretrained embedded --transfer stage

test: .venv/ready
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

bench: .venv/ready
	$(BIN)/python bench/fit_speed.py
	$(BIN)/python bench/import_time.py
	$(BIN)/python bench/keep_memory.py
	$(BIN)/python bench/optimizer_step.py
	$(BIN)/python bench/first_step.py
	$(BIN)/python bench/lr_range.py

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/docs-ready
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean:
	rm -rf .venv docs/_build
