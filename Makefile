# Two commands do everything on a fresh machine with python3 and make: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: help setup demo test test-slow test-hard lint types docs clean

help:
	@echo "make demo       distill the bundled teacher into runs/demo (minutes on two CPU cores)"
	@echo "make test       lint, types, tests"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make test-hard  damaged and hostile files of every kind, and a table of what came of them"
	@echo "make docs       the documentation, in site/"

setup: $(VENV)/.ready

# pip >= 25.1 knows dependency groups; torch comes first so that no later step can choose another build
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: setup
	$(BIN)/dmdistill demo --out $(RUN)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/pyright

test: lint types
	$(BIN)/pytest --numprocesses auto --dist worksteal

test-slow: setup
	$(BIN)/pytest -m slow

test-hard: setup
	$(BIN)/pytest -m hard

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site dist
