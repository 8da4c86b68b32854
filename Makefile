# dtrl's commands; `make help` lists them. The environment is .venv, made on first use and renewed when the pins change.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
# a worker a core, each with one thread (tests/conftest.py)
PYTEST  = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
MINUTES ?= 10
PINS   := setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test fast lint bench bench-check fuzz clean

help:  ## list the commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo  ## make a dataset, train a Decision Transformer on it, evaluate it (under 3 minutes once packages are there)
	$(BIN)/dtrl demo

test: $(VENV)/.test  ## run every test
	$(PYTEST)

fast: $(VENV)/.test  ## run the tests that take seconds
	$(PYTEST) -m "not slow"

lint: $(VENV)/.dev  ## style, types and the import contract
	@status=0; for tool in "ruff check" "ruff format --check" mypy lint-imports; do \
	  echo "$$tool"; $(BIN)/$$tool || status=1; \
	done; exit $$status

bench: $(VENV)/.test  ## compare with other implementations (an otherwise idle machine, please)
	mkdir -p runs/bench
	$(BIN)/dtrl bench training --json runs/bench/training.json
	$(BIN)/dtrl bench processes --json runs/bench/processes.json
	OMP_NUM_THREADS=1 $(BIN)/dtrl bench acting --json runs/bench/acting-1.json
	$(BIN)/dtrl bench acting --envs 64 --threads 2 --repetitions 20 --json runs/bench/acting-64.json
	$(BIN)/dtrl bench rollouts --json runs/bench/rollouts.json
	OMP_NUM_THREADS=1 $(BIN)/dtrl bench contexts --json runs/bench/contexts.json
	OMP_NUM_THREADS=1 $(BIN)/dtrl bench decoding --json runs/bench/decoding.json
	$(BIN)/dtrl bench loading --json runs/bench/loading.json
	$(BIN)/dtrl bench startup --json runs/bench/startup.json

bench-check: $(VENV)/.test  ## measure again what benchmarks/RESULTS.md claims (under 3 minutes)
	$(BIN)/python benchmarks/check.py

# atheris has wheels for Linux and few versions of Python; without it the mutations are led by messages alone, and the program says so.
fuzz: $(VENV)/.test  ## give damaged files to every loader (MINUTES=10 each; TARGETS="npz pickle" for some)
	-$(PIP) --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/loaders.py --minutes $(MINUTES) $(TARGETS)

clean:  ## remove the environment and the caches, keep runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"dtrl needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# CartPole and its video need pygame; nothing else of the extras is installed for the demo.
$(VENV)/.demo: $(PINS) | $(BIN)/python
	@echo "installing dtrl and what it needs into $(VENV) (some minutes the first time) …"
	$(PIP) --editable '.[classic]'
	@touch $@

$(VENV)/.test: $(PINS) | $(BIN)/python
	@echo "installing dtrl and what its tests need into $(VENV) (some minutes the first time) …"
	$(PIP) --editable '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.dev: $(PINS) | $(BIN)/python
	@echo "installing dtrl, its tests and the linters into $(VENV) (some minutes the first time) …"
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.test $@
