# The venv is made once and again only when what it is made from changes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DEVICE ?= cpu
PEERS := $(patsubst bench/peers/%.txt,build/peers/%/.installed,$(wildcard bench/peers/*.txt))

.DEFAULT_GOAL := help
.PHONY: help setup demo serve cluster test faults lint bench bench-peers bench-paper-deps bench-paper-models clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with the pinned dependencies (skipped when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
		|| { echo "$(PYTHON) is not Python 3.11 to 3.13; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,s3]'
	@touch $(STAMP)

demo: $(STAMP) ## the whole loop once, with real processes on a temporary folder
	@$(BIN)/prefixserve demo

serve: $(STAMP) ## service and worker until Ctrl-C, on $$PREFIX_DATA_DIR or ./prefixserve-data
	@$(BIN)/prefixserve serve --with-worker

cluster: $(STAMP) ## the production form on this machine until Ctrl-C (wants nginx, PostgreSQL, Redis); ARGS=--once tells the demo's story
	@$(BIN)/python -m deploy.cluster $(ARGS)

test: $(STAMP) ## every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder

faults: $(STAMP) ## real processes under kills, restarts, damaged files and deletions, full size; ARGS="--size 0.1 --only jobs"
	OMP_NUM_THREADS=1 PYTHONPATH=tests:. $(BIN)/python -m faults $(ARGS)

lint: $(STAMP) ## style, types, import rules, unused dependencies and code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/vulture

bench: $(STAMP) ## the table and plots of docs/performance.md, and what the prefixes gain on the carried datasets
	@failed=0; for part in "bench --device $(DEVICE)" "bench.service --device $(DEVICE)" "bench.training --device $(DEVICE)" \
		"bench.losses --forms direct --starts 0" "bench.report --device $(DEVICE)" "bench.plots --device $(DEVICE)"; do \
		echo "$(BIN)/python -m $$part"; $(BIN)/python -m $$part || failed=1; done; exit $$failed

bench-peers: $(PEERS) ## what bench compares with and setup does not bring, each in a venv of its own

bench-paper-deps: $(STAMP) ## what python -m bench.paper scores texts with (it also wants Java)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,s3,paper]'

bench-paper-models: $(STAMP) ## BERTScore and BLEURT; their models must be in the hub's cache
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,s3,paper,paper-models]'

# vLLM's CPU build does not start beside the builds of these three that it pulls in.
build/peers/%/.installed: bench/peers/%.txt
	$(PYTHON) -m venv build/peers/$*
	build/peers/$*/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	build/peers/$*/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

clean: ## remove the venv, every cache and build/ (what bench measured, the peers); data folders stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
