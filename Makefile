# Two commands for a fresh machine: `make quickstart` and `make test`. Each sets up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: quickstart test lint types check bench docs mutants sanitize clean

$(VENV)/train.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt --editable '.[train,baselines]'
	touch $@

$(VENV)/test.stamp: $(VENV)/train.stamp
	$(PIP) install --constraint constraints.txt --editable '.[train,baselines,tracking,test]'
	touch $@

quickstart: $(VENV)/train.stamp
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$($(BIN)/python -c 'import os; print(os.cpu_count())')} \
	$(BIN)/accelerate launch --quiet --config_file configuration/accelerate/one-process.yaml train_accelerate.py --config configuration/recipes/quickstart.yaml

test: lint types check

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

types: $(VENV)/test.stamp
	$(BIN)/mypy

check: $(VENV)/test.stamp
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20
	$(BIN)/python -m xdoctest modeling_ftmamba all --quiet

# The documents as a site, in build/site.
docs: $(VENV)/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/train.stamp
	$(PIP) install --constraint constraints.txt --editable '.[train,baselines,bench]'
	$(BIN)/python -m benchmarks.run_all

# Faults put into the code one by one, and the share of them that the tests notice.
mutants: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.mutants

# The C kernels' tests once more, every memory access and every arithmetic rule watched.
SANITIZED := build/sanitize/kernels.so
$(SANITIZED): $(wildcard ftmamba/kernels/csrc/*)
	mkdir -p $(@D)
	$(CC) -std=gnu11 -O1 -g -fPIC -shared -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all ftmamba/kernels/csrc/*.c -o $@

sanitize: $(VENV)/test.stamp $(SANITIZED)
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 FTMAMBA_TEST_KERNELS=$(SANITIZED) $(BIN)/python -m pytest -q $(addprefix tests/kernels/test_,elementwise.py layer.py scan.py softmax.py)

clean:
	rm -rf $(VENV) build dist *.egg-info
