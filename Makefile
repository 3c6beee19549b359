# Two commands for a fresh machine: `make quickstart` and `make test`. Each sets up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test lint types check clean

$(VENV)/train.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,baselines]'
	touch $@

$(VENV)/test.stamp: $(VENV)/train.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,baselines,tracking,test]'
	touch $@

quickstart: $(VENV)/train.stamp
	$(BIN)/accelerate launch --config_file configuration/accelerate/one-process.yaml train_accelerate.py --config configuration/recipes/movielens-100k.yaml --output_dir runs/quickstart

test: lint types check

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

types: $(VENV)/test.stamp
	$(BIN)/mypy

check: $(VENV)/test.stamp
	$(BIN)/python -m pytest
	$(BIN)/python -m xdoctest modeling_ftmamba all --quiet

clean:
	rm -rf $(VENV) build dist *.egg-info
