# Everything runs in .venv, which is made and filled when first needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PAGE_TOOLS := node_modules/.package-lock.json
REAL ?= ../shared/data/common_test_1_no_1000.npz

.PHONY: demo test test-slow lint bench clean

demo: $(INSTALLED)
	$(BIN)/sublens demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED) $(PAGE_TOOLS)
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/mypy
	node node_modules/typescript/bin/tsc
	node --test tests/web/*.test.js

bench: $(INSTALLED)
	$(BIN)/python benchmarks/simulate.py
	$(BIN)/python benchmarks/train.py lensnet
	$(BIN)/python benchmarks/predict.py lensnet mobilenetv3-small resnet18 efficientnet-b5
	$(BIN)/sublens fidelity common-test-1 $(REAL)

clean:
	rm -rf .venv node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis dist demo

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .[dev]
	touch $@

# The type checker of the page; nothing of it is shipped.
$(PAGE_TOOLS): package.json package-lock.json
	@command -v npm > /dev/null || { echo "make lint: there is no npm here; the checks of the page need Node.js 20 or later with npm. Install it (on Debian: apt-get install npm) and run make lint again." >&2; exit 1; }
	npm ci --no-audit --no-fund
	touch $@
