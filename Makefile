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
CODE := trainer operator tests docs benchmarks examples images scripts
ARGS ?=

.PHONY: help venv demo test check e2e e2e-full e2e-oldest cluster cluster-down images docs constraints clean distclean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

venv: ## Make or repair the environment in .venv (the other targets do it too)
	@scripts/setup.sh

demo: venv ## Train a small network, kill its parameter server, write a report
	@$(BIN)/outlast run $(DEMO_JOB) $(DEMO_KILLS) --report $(DEMO_REPORT) $(ARGS)

test: venv ## Run all tests, at the end those on a real Kubernetes (OUTLAST_SKIP_E2E=1: without)
	@scripts/test.sh $(ARGS)

check: venv ## Lint, format, types, import rules and the fast tests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -m "not slow and not integration and not cluster" -n auto --maxprocesses 4 $(ARGS)

e2e e2e-full e2e-oldest: export OUTLAST_E2E_EVERY := 1
e2e: cluster ## Test on a real Kubernetes, 3 kills a case; figures: build/e2e.json
	@$(BIN)/python -m pytest tests/e2e $(ARGS)

e2e-full: cluster ## The same with 20 kills a case, and every figure must hold
	@OUTLAST_E2E_FULL=1 $(BIN)/python -m pytest tests/e2e $(ARGS)

e2e-oldest: export OUTLAST_KUBERNETES := 1.30
e2e-oldest: cluster ## Test on the oldest Kubernetes that is supported, 1.30
	@$(BIN)/python -m pytest tests/apiserver tests/e2e $(ARGS)

cluster: venv ## Make a Kubernetes cluster ready: OUTLAST_E2E_KUBECONFIG, kind, or three nodes built from Go modules
	@scripts/cluster/cluster.sh up

cluster-down: ## End it; what was built for it stays in ~/.cache/outlast/cluster
	@scripts/cluster/cluster.sh down

images: ## Build all images, gigabytes with the trainers' (ARGS="operator redis": these)
	@scripts/cluster/images.sh $(or $(ARGS),all)

docs: venv ## Renew what is generated: parts of docs/, the CRD and its template in the chart
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m outlast.api.crd >crds/trainingjobs.outlast.dev.yaml
	@$(BIN)/python -m outlast.api.crd --helm >charts/outlast/templates/crd.yaml

constraints: venv ## Pin in constraints.txt what .venv holds now (pins of what only other Pythons need stay)
	@{ grep '^#' constraints.txt; { $(BIN)/python -m pip freeze --exclude-editable; cat constraints.txt; } \
		| grep -E '^[A-Za-z0-9_.-]+==' | awk -F== '!seen[tolower($$1)]++' | LC_ALL=C sort -f; } > .constraints.new
	@mv .constraints.new constraints.txt

clean: ## Remove caches, reports and build output, keep .venv
	@rm -rf reports build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## Remove .venv as well
	@rm -rf .venv .venv.lock
