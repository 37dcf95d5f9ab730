# `make help` lists the targets. tools/setup_env.sh prepares the environment; its
# progress goes to the screen, the interpreter's path is its last line.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help demo qfa-demo test lint format clean python
.DEFAULT_GOAL := help

export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
setup = python=$$(tools/setup_env.sh | tail -n 1)

help: ## list the targets
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/: .*## /\t/' | expand -t 10
	@echo 'MMMPQ_FAMILY=onedl runs any of them with the forks of the toolboxes.'
	@echo 'ARGS="..." adds arguments to the demos and test: make test ARGS="-k barrier"'

demo: ## search, fine-tune, test and report a small RetinaNet (10 to 15 minutes, 2 cores)
	@$(setup); "$$python" tools/demo.py $(ARGS)

qfa-demo: ## train one elastic net, search it under three budgets (15 minutes, 2 cores)
	@$(setup); "$$python" tools/qfa_demo.py $(ARGS)

TESTS = tests
test: ## run the tests (TESTS="tests/test_policy.py ...": these files)
	@$(setup); OMP_NUM_THREADS=1 "$$python" -m pytest $(TESTS) -n 2 --no-loadscope-reorder --max-worker-restart 0 -q $(ARGS)

lint: ## check style and format
	@$(setup); "$$python" -m ruff check . && "$$python" -m ruff format --check .

format: ## apply style and format
	@$(setup); "$$python" -m ruff check --fix . && "$$python" -m ruff format .

python: ## print the environment's interpreter: $(make -s python)
	@$(setup); echo "$$python"

clean: ## remove runs, builds and caches of this clone (the environment stays)
	rm -rf work_dirs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
