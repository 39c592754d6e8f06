# make demo and make test do their own set-up: they need Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet
# torch comes first and exactly: an open range would pull gigabytes of GPU packages.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# One thread each: the tests run side by side.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := -m pytest --quiet -n 2 --dist loadgroup
LOWEST := .venv-lowest
LOWEST_READY := $(LOWEST)/.ready
LOWEST_PIP := $(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet --quiet
LOWEST_TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints-lowest.txt)

.PHONY: help demo test test-slow test-lowest test-gallery fuzz docs benchmarks clean

help:
	@echo "make demo        train a network on digits and show what that does to its kernel"
	@echo "make test        lint, types and tests"
	@echo "make test-slow   the tests that take minutes"
	@echo "make test-lowest the tests on the lowest versions that pyproject.toml states (downloads some GB)"
	@echo "make test-gallery the gallery's models of other packages (downloads some MB)"
	@echo "make fuzz        compare random models with plain autograd (SEEDS=1000)"
	@echo "make docs        build the documentation into site/"
	@echo "make benchmarks  measure speed and accuracy"
	@echo "make clean       remove what make has made"

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; some minutes for torch)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "ntkscope needs Python 3.11 or newer; run: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(TORCH)
	@$(PIP) --editable '.[dev,paper]' --constraint constraints.txt
	@touch $@

$(DOCS_READY): $(READY)
	@$(PIP) --editable '.[docs]' --constraint constraints.txt
	@touch $@

$(LOWEST_READY): pyproject.toml constraints-lowest.txt
	@echo "Setting up $(LOWEST) (once; torch of that age comes with its GPU packages, some GB)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo "these versions need Python 3.11 or 3.12; run: make test-lowest PYTHON=/path/to/python3.11" >&2; \
			exit 1; }
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST_PIP) $(LOWEST_TORCH) --constraint constraints-lowest.txt
	@$(LOWEST_PIP) --editable '.[dev,paper]' --constraint constraints-lowest.txt
	@touch $@

demo: $(READY)
	@$(BIN)/ntkscope demo

test: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(TEST_ENV) $(BIN)/python $(PYTEST) -m "not slow and not gpu"

test-slow: $(READY)
	@$(TEST_ENV) $(BIN)/python $(PYTEST) -m slow

test-lowest: $(LOWEST_READY)
	@$(TEST_ENV) $(LOWEST)/bin/python $(PYTEST) -m "not slow and not gpu"

# torchvision asks for the torch that is there.
test-gallery: $(READY)
	@$(PIP) --editable '.[gallery]' --constraint constraints.txt
	@$(TEST_ENV) $(BIN)/python $(PYTEST) tests/test_gallery.py

# Every failure prints the line that shows it alone: PYTHONPATH=tests python -m fuzz.one SEED.
SEEDS ?= 1000
fuzz: $(READY)
	@PYTHONPATH=tests $(TEST_ENV) $(BIN)/python -m fuzz.sweep 0 $(SEEDS)

docs: $(DOCS_READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@$(TEST_ENV) $(BIN)/python -m pytest --quiet -m slow tests/test_docs.py
	@echo "Wrote site/index.html"

benchmarks: $(READY)
	@$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(LOWEST) site ntkscope-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
