# make help       what there is
.DEFAULT_GOAL := help
.PHONY: help setup quickstart report experiment test mutants lint sync guide clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

help:  ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# The stamp is newer than requirements.txt when all of them are installed.
$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.10 to 3.13: name one that is, make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25'  # older ones take minutes to choose versions
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

setup: $(VENV)/installed  ## Create .venv and install the pinned requirements

quickstart: setup  ## Train on small tasks (minutes) and compare with published returns
	@$(BIN)/python benchmarks/run.py --suite quick --seeds 2 --jobs $(JOBS); status=$$?; \
		test $$status -gt 1 && exit $$status; \
		$(BIN)/python benchmarks/report.py --results runs/quick && exit $$status

report: setup  ## All tables and pictures of the committed results, README's tables included
	@$(BIN)/python benchmarks/report.py --results benchmarks/results --into README.md benchmarks/results/README.md

EXPERIMENTS = $(basename $(notdir $(shell grep -l __main__ benchmarks/experiments/*.py)))

experiment: setup  ## An experiment behind the slides, half a minute to three minutes: make experiment NAME=pg_variance
	@$(if $(filter $(NAME),$(EXPERIMENTS)),,echo "error: NAME=$(NAME) is no experiment: name one of $(EXPERIMENTS)" >&2; exit 2)
	@$(BIN)/python benchmarks/experiments/$(NAME).py

test: setup  ## All tests, one more at a time than there are cores: some wait for what they have started
	$(BIN)/python -m pytest -n $$(($(JOBS) + 1)) --dist worksteal

mutants: setup  ## Break the algorithms in many small ways; fails if the tests miss one (some 20 minutes)
	@$(BIN)/python tests/mutants.py

lint: setup  ## Style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

sync: setup  ## Copy shared blocks to the other algorithm files: make sync FROM=td3
	@$(BIN)/python tests/shared_blocks.py $(FROM)

guide: setup  ## The reading guide's tables and line numbers, from lectures.csv and the tags in the code
	@$(BIN)/python tests/guide.py

clean:  ## Remove the virtual environment and caches, not the results
	rm -rf $(VENV) .pytest_cache .ruff_cache
