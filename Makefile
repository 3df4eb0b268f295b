# Every target makes what it needs by itself: on a fresh machine with Python 3.11 or later, `make demo` is enough.
# ARGS passes options on:  make test ARGS="tests/unit -k view"    make demo ARGS="--kill head@5s"

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
DEMO_JOB := examples/fashion-mnist-demo.yaml
DEMO_REPORT := reports/demo
DEMO_KILLS := --kill head@update=1600
CODE := trainer operator tests docs benchmarks examples
ARGS ?=

.PHONY: help venv demo test check docs constraints clean distclean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

venv: ## Make or mend the environment in .venv (the other targets do it too)
	@scripts/setup.sh

demo: venv ## Train a small network, kill its parameter server, write a report
	@$(BIN)/outlast run $(DEMO_JOB) $(DEMO_KILLS) --report $(DEMO_REPORT) $(ARGS)

test: venv ## Run all tests
	@$(BIN)/python -m pytest $(ARGS)

check: venv ## Lint, format, types, import rules and the fast tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -m "not slow and not integration and not cluster" $(ARGS)

docs: venv ## Renew the generated parts of docs/
	@$(BIN)/python docs/generate.py

constraints: venv ## Pin in constraints.txt what .venv holds now (pins of what only other Pythons need stay)
	@{ grep '^#' constraints.txt; { $(BIN)/python -m pip freeze --exclude-editable; cat constraints.txt; } \
		| grep -E '^[A-Za-z0-9_.-]+==' | awk -F== '!seen[tolower($$1)]++' | LC_ALL=C sort -f; } > .constraints.new
	@mv .constraints.new constraints.txt

clean: ## Remove caches, reports and build output, keep .venv
	@rm -rf reports build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Remove .venv as well
	@rm -rf .venv .venv.lock
