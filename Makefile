# Two commands do everything on a fresh machine with python3 and make: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: help setup demo test test-slow test-hard test-ui lint types docs clean

help:
	@echo "make demo       distill the bundled teacher into runs/demo (minutes on two CPU cores)"
	@echo "make test       lint, types, tests"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make test-hard  damaged and hostile files of every kind, and a table of what came of them"
	@echo "make test-ui    the tests of \`dmdistill ui\`, with gradio and, if installed, Chromium"
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

# gradio needs a pillow older than the pinned one
$(VENV)-ui/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-ui
	grep -v '^pillow=' constraints.txt > $(VENV)-ui/constraints.txt
	$(VENV)-ui/bin/python -m pip install --quiet --constraint $(VENV)-ui/constraints.txt torch
	$(VENV)-ui/bin/python -m pip install --quiet --constraint $(VENV)-ui/constraints.txt --editable '.[ui,diffusers]' \
		pytest 'gradio==6.31.0' 'selenium==4.51.0'
	touch $@

test-ui: $(VENV)-ui/.ready
	$(VENV)-ui/bin/pytest tests/commands/ui -m "slow or not slow"

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-ui site dist
