# Everything runs in .venv, which is made and filled when first needed.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
REAL ?= ../shared/data/common_test_1_no_1000.npz

.PHONY: demo test test-slow lint bench clean

demo: $(INSTALLED)
	$(BIN)/sublens demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/simulate.py
	$(BIN)/python benchmarks/predict.py lensnet mobilenetv3-small resnet18 efficientnet-b5
	$(BIN)/sublens fidelity common-test-1 $(REAL)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist demo

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .[dev]
	touch $@
