# Two commands: `make serve` and `make test`. Each first makes .venv, if it is not there.
.DEFAULT_GOAL := help
# A start without bytecode takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

PYTHON_OF_VENV := .venv/bin/python
GPUS :=
JOBS := 2
ARGS :=

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ARGS='...' is passed on; PYTHON=python3.12 takes another interpreter"

.PHONY: install
install: ## make .venv: uv, the pinned packages and this one
	@./scripts/install.sh

.PHONY: serve
serve: install ## serve the OpenAI API; settings come from the environment
	@exec $(PYTHON_OF_VENV) server.py

.PHONY: plan
plan: install ## say what would run where, and why: make plan GPUS=8xH100
	@$(PYTHON_OF_VENV) -m pd_eagle plan $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

.PHONY: doctor
doctor: install ## check what is installed here, and say what to do
	@$(PYTHON_OF_VENV) -m pd_eagle doctor

.PHONY: test
test: install ## all tests, real engines included: make test ARGS=tests/unit JOBS=4
	@$(PYTHON_OF_VENV) -m pytest -n $(JOBS) --dist loadfile --durations=15 $(ARGS)

.PHONY: lint
lint: install ## ruff, its format, mypy --strict
	@$(PYTHON_OF_VENV) -m ruff check .
	@$(PYTHON_OF_VENV) -m ruff format --check .
	@$(PYTHON_OF_VENV) -m mypy

.PHONY: check
check: lint test ## lint, then test

.PHONY: format
format: install ## sort imports, format, write the README's table of settings
	@$(PYTHON_OF_VENV) -m ruff check --select I --fix .
	@$(PYTHON_OF_VENV) -m ruff format .
	@$(PYTHON_OF_VENV) -m tools.readme

.PHONY: lock
lock: install ## write the pins again from setup.cfg; ARGS=--upgrade takes newer ones
	@./scripts/lock.sh $(ARGS)

.PHONY: clean
clean: ## remove what make has made
	rm -rf .venv .tools .install.lock .mypy_cache .pytest_cache .ruff_cache .hypothesis
